from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf import json_format
from vmagent.v1.access_pb2 import Caller, Grant, Role
from vmagent.v1.host_pb2 import BlindInterval, Link
from vmagent.v1.vm_agent_service_pb2 import (
    GetVmRequest,
    GetVmResponse,
    ListTransitionsRequest,
    ListTransitionsResponse,
    ListVmsRequest,
    ListVmsResponse,
    WhoAmIRequest,
    WhoAmIResponse,
)
from vmagent.v1.vm_pb2 import VmState

from tests.component.ctl.scripted import (
    JOURNAL,
    UP,
    cursor,
    get_host,
    refuse,
    serving,
    transition,
    vm,
)
from tests.component.ctl.terminal import DEADLINE_S, ended, vmagentctl

if TYPE_CHECKING:
    from pathlib import Path

    from tests.component.ctl.scripted import Context


async def two_pages(request: ListVmsRequest, _context: Context) -> ListVmsResponse:
    """Two pages of VMs, one of which changes in between; the gone ones are asked for apart."""
    if request.states == [VmState.VM_STATE_GONE]:
        gone = vm("old", VmState.VM_STATE_GONE)
        return ListVmsResponse(vms=[gone], cursor=cursor(12), link=UP)
    if not request.page_token:
        page = [vm("a"), vm("b")]
        return ListVmsResponse(vms=page, next_page_token="2", cursor=cursor(10), link=UP)
    page = [vm("b", VmState.VM_STATE_STOPPED), vm("z")]
    return ListVmsResponse(vms=page, cursor=cursor(11), link=UP)


@pytest.mark.parametrize("arguments", [("-o", "json", "list"), ("list", "-o", "json")])
async def test_list_is_one_answer_true_from_its_first_page_on(
    target: Path, arguments: tuple[str, ...]
) -> None:
    async with serving(target, ListVms=two_pages):
        done = await vmagentctl(target, *arguments)
    answer = json_format.Parse(done.out, ListVmsResponse())
    assert [(v.name, v.state) for v in answer.vms] == [
        ("a", VmState.VM_STATE_RUNNING),
        ("b", VmState.VM_STATE_STOPPED),
        ("z", VmState.VM_STATE_RUNNING),
    ]
    assert (answer.cursor, answer.next_page_token) == (cursor(10), "")
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize("more", [(), ("--state", "running"), ("--state", "gone")])
async def test_list_all_has_the_gone_ones_too(target: Path, more: tuple[str, ...]) -> None:
    asked = []

    async def note(request: ListVmsRequest, context: Context) -> ListVmsResponse:
        asked.append(list(request.states))
        return await two_pages(request, context)

    async with serving(target, ListVms=note):
        done = await vmagentctl(target, "list", "--all", *more, "-o", "json")
    assert asked.count([VmState.VM_STATE_GONE]) == 1
    if more == ("--state", "gone"):
        assert len(asked) == 1
        return
    assert [v["name"] for v in json.loads(done.out)["vms"]] == ["a", "b", "old", "z"]


async def test_list_asks_for_what_was_wanted(target: Path) -> None:
    asked = []

    async def list_vms(request: ListVmsRequest, _context: Context) -> ListVmsResponse:
        asked.append(request)
        return ListVmsResponse(cursor=cursor(1), link=UP)

    wanted = ("--state", "running", "--state", "PAUSED", "--name", "web*")
    async with serving(target, ListVms=list_vms):
        done = await vmagentctl(target, "list", *wanted)
    states = [VmState.VM_STATE_RUNNING, VmState.VM_STATE_PAUSED]
    assert asked == [ListVmsRequest(states=states, name_glob="web*")]
    assert (done.code, done.out) == (0, "no VMs\n")


async def test_a_table_is_plain_in_a_pipe_and_shows_any_name_as_text(target: Path) -> None:
    async def list_vms(_request: ListVmsRequest, _context: Context) -> ListVmsResponse:
        vms = [vm("[red]x\x1b[2J\n"), vm("new", VmState.ValueType(77)), vm("x" * 200)]
        return ListVmsResponse(vms=vms, cursor=cursor(1), link=UP)

    async with serving(target, ListVms=list_vms):
        done = await vmagentctl(target, "list")
    rows = [re.split(r" {2,}", row) for row in done.out.splitlines()]
    assert rows[0] == ["NAME", "STATE", "REASON", "SINCE", "BY"]
    assert [row[:2] for row in rows[1:]] == [
        ["[red]x\\x1b[2J\\n", "RUNNING"],
        ["new", "77"],
        ["x" * 200, "RUNNING"],
    ]
    assert "\x1b" not in done.out


async def test_a_blind_daemon_says_so_and_marks_every_state(target: Path) -> None:
    blind = Link()
    blind.blind_since.FromJsonString("2026-01-31T12:00:00Z")

    async def list_vms(_request: ListVmsRequest, _context: Context) -> ListVmsResponse:
        return ListVmsResponse(vms=[vm("a"), vm("b")], cursor=cursor(1), link=blind)

    async with serving(target, ListVms=list_vms):
        done = await vmagentctl(target, "list")
    first, _, *rows = done.out.splitlines()
    assert first.startswith("libvirt cannot be asked since 2026-01-31 12:00:00 (")
    assert all("RUNNING (last known)" in row for row in rows)


async def get_vm(request: GetVmRequest, context: Context) -> GetVmResponse:
    match request.vm:
        case "web1":
            return GetVmResponse(vm=vm(vcpus=2, memory_bytes=1 << 31), link=UP)
        case "nope":
            await refuse(
                context, grpc.StatusCode.NOT_FOUND, "VM_NOT_FOUND", "no VM 'nope'\non this host"
            )
        case "":
            await refuse(
                context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "vm: it is empty"
            )
        case _:
            await context.abort(grpc.StatusCode.INTERNAL, "oops")
    raise AssertionError


@pytest.mark.parametrize(
    ("name", "code", "err"),
    [
        ("nope", 3, "vmagentctl: no VM 'nope'\\non this host [VM_NOT_FOUND]\n"),
        ("", 2, "vmagentctl: vm: it is empty [INVALID_FIELD]\n"),
        ("other", 1, "vmagentctl: oops\n"),
    ],
)
async def test_a_refusal_is_the_daemons_sentence_and_its_reason(
    target: Path, name: str, code: int, err: str
) -> None:
    async with serving(target, GetVm=get_vm):
        done = await vmagentctl(target, "show", name)
    assert (done.code, done.out, done.err) == (code, "", err)


async def test_show_has_a_page_and_the_whole_message(target: Path) -> None:
    async with serving(target, GetVm=get_vm):
        page = await vmagentctl(target, "show", "web1")
        whole = await vmagentctl(target, "show", "web1", "-o", "json")
    assert "Definition:       persistent, 2 vCPUs, 2 GiB\n" in page.out
    assert re.search(r"Since: +2026-01-31 12:00:00 \(\d+d ago\)\n", page.out)
    assert json.loads(whole.out)["vm"]["memoryBytes"] == str(1 << 31)


async def long_history(
    request: ListTransitionsRequest, _context: Context
) -> ListTransitionsResponse:
    """2500 transitions, newest first; one blind time that shows on every page."""
    newest = int(request.page_token or 2500)
    oldest = max(newest - request.page_size, 0)
    blind = BlindInterval(cause="libvirtd restarted")
    return ListTransitionsResponse(
        transitions=[transition(n) for n in range(newest, oldest, -1)],
        next_page_token=str(oldest) if oldest else "",
        blind_intervals=[blind],
        oldest_revision=1,
        link=UP,
    )


@pytest.mark.parametrize(("limit", "count"), [(0, 2500), (1200, 1200), (9000, 2500)])
async def test_history_is_one_answer_as_long_as_wanted(
    target: Path, limit: int, count: int
) -> None:
    async with serving(target, ListTransitions=long_history):
        done = await vmagentctl(target, "history", "--limit", str(limit), "-o", "json")
    answer = json_format.Parse(done.out, ListTransitionsResponse())
    assert [t.revision for t in answer.transitions] == list(range(2500, 2500 - count, -1))
    assert len(answer.blind_intervals) == 1
    assert bool(answer.next_page_token) == (count < 2500)


async def test_history_says_that_there_is_more(target: Path) -> None:
    async with serving(target, ListTransitions=long_history):
        done = await vmagentctl(target, "history", "--limit", "2")
    assert [line[:9] for line in done.out.splitlines()] == ["   2500  ", "   2499  ", " " * 9]
    assert done.err.startswith("vmagentctl: there are older ones")


async def test_history_asks_for_what_was_wanted(target: Path) -> None:
    asked = []

    async def history(
        request: ListTransitionsRequest, _context: Context
    ) -> ListTransitionsResponse:
        asked.append(request)
        return ListTransitionsResponse(link=UP)

    wanted = ("--since", "12", "--until", "2026-01-31T12:00", "--oldest-first", "--limit", "5")
    async with serving(target, ListTransitions=history):
        done = await vmagentctl(target, "history", "web1", *wanted)
    expected = ListTransitionsRequest(vm="web1", min_revision=12, oldest_first=True, page_size=5)
    expected.max_time.FromJsonString("2026-01-31T12:00:00Z")
    assert (asked, done.code, done.out) == ([expected], 0, "no history\n")


async def test_host_and_version_tell_of_the_daemon(target: Path) -> None:
    async with serving(target, GetHost=get_host):
        page = await vmagentctl(target, "host")
        whole = await vmagentctl(target, "host", "-o", "json")
        version = await vmagentctl(target, "version")
    assert f"Journal:          {JOURNAL}\n" in page.out
    assert json.loads(whole.out)["host"]["journalId"] == JOURNAL
    assert re.match(r"vmagentctl  \S+\nvmagentd +on h1\n", version.out)


async def test_an_address_may_hold_anything(target: Path) -> None:
    odd = target.parent / "a%20b ü?#"
    async with serving(target, GetHost=get_host):
        odd.symlink_to(target)
        done = await vmagentctl(odd, "host")
    assert (done.code, done.err) == (0, "")


async def test_a_terminal_gets_colours_and_a_name_still_cannot_draw(target: Path) -> None:
    async def list_vms(_request: ListVmsRequest, _context: Context) -> ListVmsResponse:
        return ListVmsResponse(vms=[vm("a\x1b[2J")], cursor=cursor(1), link=UP)

    ours, theirs = os.openpty()
    async with serving(target, ListVms=list_vms):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "vmagent.ctl", "--target", f"unix:{target}", "list"),
            stdout=theirs,
            env=os.environ | {"TERM": "xterm"},
        )
        assert await asyncio.wait_for(process.wait(), DEADLINE_S) == 0
    shown = os.read(ours, 4096).decode()
    os.close(ours)
    os.close(theirs)
    assert "a\\x1b[2J  \x1b[32mRUNNING\x1b[0m" in shown


@pytest.mark.parametrize("output", ["table", "jsonl"])
async def test_a_full_disk_is_told(target: Path, output: str) -> None:
    with open("/dev/full", "w") as full:  # noqa: ASYNC230, PTH123  # does not block
        async with serving(target, GetHost=get_host):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "vmagent.ctl", "--target", f"unix:{target}"),
                *("host", "-o", output),
                stdout=full,
                stderr=asyncio.subprocess.PIPE,
            )
            done = await ended(process)
    expected = "vmagentctl: cannot write the answer: No space left on device\n"
    assert (done.code, done.err) == (1, expected)


@pytest.mark.parametrize("arguments", [("--help",), ("stop", "--help"), ("--version",)])
async def test_help_that_nobody_reads_ends_as_all_does(arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vmagent.ctl", *arguments),
        stdout=writer,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(writer)
    done = await ended(process)
    assert (done.code, done.err) == (141, "")


async def test_whoami_tells_each_role_and_its_vms(target: Path) -> None:
    async def who(_request: WhoAmIRequest, _context: Context) -> WhoAmIResponse:
        grants = [
            Grant(role=Role.ROLE_VIEWER),
            Grant(role=Role.ROLE_OPERATOR, vm_globs=["web*", "db1"]),
        ]
        return WhoAmIResponse(
            caller=Caller(actor="user:alice", role=Role.ROLE_OPERATOR, grants=grants)
        )

    async with serving(target, WhoAmI=who):
        done = await vmagentctl(target, "whoami")
    assert "viewer for all VMs" in done.out
    assert "operator for VMs named web*, db1" in done.out
    assert (done.code, done.err) == (0, "")
