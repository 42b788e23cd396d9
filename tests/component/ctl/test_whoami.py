from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vmagent.v1.access_pb2 import Caller, CallerOrigin, Role
from vmagent.v1.vm_agent_service_pb2 import WhoAmIRequest, WhoAmIResponse

from tests.component.ctl.scripted import serving
from tests.component.ctl.terminal import vmagentctl

if TYPE_CHECKING:
    from pathlib import Path

REMOTE = Caller(
    actor="spiffe://example.org/ops",
    role=Role.ROLE_OPERATOR,
    vm_globs=["web*", "db1"],
    origin=CallerOrigin.CALLER_ORIGIN_REMOTE,
    peer="198.51.100.2:40000",
    certificate_fingerprint="ab" * 32,
)


async def said(target: Path, caller: Caller, *arguments: str) -> str:
    async def who_am_i(_request: WhoAmIRequest, _context: Any) -> WhoAmIResponse:  # noqa: ANN401
        return WhoAmIResponse(caller=caller)

    async with serving(target, WhoAmI=who_am_i):
        done = await vmagentctl(target, "whoami", *arguments)
    assert (done.code, done.err) == (0, "")
    return done.out


async def test_somebody_from_elsewhere(target: Path) -> None:
    caller = Caller()
    caller.CopyFrom(REMOTE)
    caller.certificate_end_time.FromJsonString("2026-03-01T12:00:00Z")
    assert (await said(target, caller)).splitlines() == [
        "You are:     spiffe://example.org/ops",
        "Role:        operator",
        "For:         VMs named web*, db1",
        "From:        the network, 198.51.100.2:40000",
        f"Certificate: SHA-256 {'ab' * 32}",
        "It ends:     2026-03-01 12:00:00",
    ]


async def test_somebody_without_a_role(target: Path) -> None:
    nobody = Caller(
        actor="user:nobody",
        origin=CallerOrigin.CALLER_ORIGIN_LOCAL,
        peer="uid 65534, pid 7",
    )
    assert (await said(target, nobody)).splitlines() == [
        "You are:     user:nobody",
        "Role:        none: nothing but this question is answered",
        "From:        this host, uid 65534, pid 7",
    ]


async def test_for_scripts(target: Path) -> None:
    answer = json.loads(await said(target, REMOTE, "-o", "json"))
    assert answer["caller"]["role"] == "ROLE_OPERATOR"
