from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from vmagent.ctl.lines import blind_line, history_lines, transition_line
from vmagent.v1.host_pb2 import BlindInterval
from vmagent.v1.operation_pb2 import OperationPhase
from vmagent.v1.transition_pb2 import Transition, TransitionKind
from vmagent.v1.vm_agent_service_pb2 import ListTransitionsResponse
from vmagent.v1.vm_pb2 import (
    Initiator,
    InitiatorKind,
    Source,
    Unresponsive,
    Vm,
    VmReason,
    VmState,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

NOON = 1_769_860_800  # 2026-01-31 12:00:00 UTC
SOMEBODY = Initiator(
    kind=InitiatorKind.INITIATOR_KIND_CLIENT, actor="root", operation_id="1f3c2b9a-7b4e"
)


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def at(seconds: float) -> Timestamp:
    return Timestamp(seconds=NOON + int(seconds), nanos=int(seconds % 1 * 1e9))


def line(
    vm: Vm | None = None, kind: int = TransitionKind.TRANSITION_KIND_STATE, **more: object
) -> str:
    stopped = Vm(
        name="web1",
        state=VmState.VM_STATE_STOPPED,
        reason=VmReason.VM_REASON_FORCED,
        initiator=SOMEBODY,
    )
    transition = Transition(
        revision=7,
        kind=TransitionKind.ValueType(kind),
        vm=vm or stopped,
        time=at(1.5),
        source=Source.SOURCE_EVENT,
    )
    for name, value in more.items():
        if isinstance(value, Timestamp):
            getattr(transition, name).CopyFrom(value)
        else:
            setattr(transition, name, value)
    return transition_line(transition).plain


def test_a_change_of_state_tells_all_of_it() -> None:
    assert line(previous_state=VmState.VM_STATE_RUNNING) == (
        "      7  2026-01-31 12:00:01.500  web1              RUNNING → STOPPED (forced) by root, "
        "operation 1f3c2b9a  [event]"
    )


def test_a_first_state_has_no_previous_one() -> None:
    assert "  STOPPED (forced) by root" in line()


def test_a_late_one_tells_when_it_can_have_been() -> None:
    assert line(late=True, earliest_time=at(-60)).endswith(
        "  [event]  late: between 2026-01-31 11:59:00.000 and 12:00:01.500"
    )


def test_what_a_newer_daemon_says_is_a_number() -> None:
    vm = Vm(name="web1", state=VmState.ValueType(77), reason=VmReason.ValueType(88))
    assert "  RUNNING → 77 (88)  99  [55]" in line(
        vm, 99, previous_state=VmState.VM_STATE_RUNNING, source=55
    )


def test_a_name_cannot_draw_on_the_terminal_nor_style_itself() -> None:
    assert "  \\x1b[2J[red]x\\n  " in line(Vm(name="\x1b[2J[red]x\n"))


def test_wide_characters_keep_their_column() -> None:
    assert f"  {'数据库':<13}  STOPPED" in line(Vm(name="数据库", state=VmState.VM_STATE_STOPPED))


def test_a_vm_without_a_name_is_its_uuid() -> None:
    assert "  0b5f6d52  " in line(Vm(uuid="0b5f6d52"))


@pytest.mark.parametrize(
    ("kind", "vm", "more", "said"),
    [
        (
            TransitionKind.TRANSITION_KIND_OPERATION,
            None,
            {
                "operation_id": "1f3c2b9a-7b4e",
                "operation_phase": OperationPhase.OPERATION_PHASE_ACCEPTED,
            },
            "operation 1f3c2b9a accepted",
        ),
        (
            TransitionKind.TRANSITION_KIND_DEFINITION,
            Vm(persistent=True, vcpus=1, memory_bytes=1 << 30),
            {},
            "definition: persistent, 1 vCPU, 1 GiB",
        ),
        (
            TransitionKind.TRANSITION_KIND_RESPONSIVENESS,
            Vm(unresponsive=Unresponsive(job="modify")),
            {},
            "does not answer libvirt, job modify",
        ),
        (TransitionKind.TRANSITION_KIND_RESPONSIVENESS, Vm(), {}, "answers libvirt again"),
        (
            TransitionKind.TRANSITION_KIND_REBOOT,
            Vm(state=VmState.VM_STATE_RUNNING, reason=VmReason.VM_REASON_REBOOTED),
            {"previous_state": VmState.VM_STATE_RUNNING},
            "RUNNING → RUNNING (rebooted)",
        ),
    ],
)
def test_each_kind_says_what_it_changed(
    kind: int, vm: Vm | None, more: dict[str, object], said: str
) -> None:
    assert said in line(vm, kind, **more)


def test_a_blind_time_says_how_long_and_why() -> None:
    blind = BlindInterval(begin_time=at(0), end_time=at(90), cause="libvirtd\nrestarted")
    assert blind_line(blind).plain == (
        "         2026-01-31 12:00:00.000  libvirt could not be asked for 1m30s: "
        "libvirtd\\nrestarted"
    )


def test_one_that_lasts_says_so() -> None:
    blind = BlindInterval(begin_time=at(0), cause="gone")
    assert blind_line(blind).plain.endswith("libvirt cannot be asked since then: gone")


@pytest.mark.parametrize("oldest_first", [True, False])
def test_history_has_blind_times_where_they_began(*, oldest_first: bool) -> None:
    transitions = [Transition(revision=n, time=at(10 * n)) for n in (1, 2, 3)]
    blind = [BlindInterval(begin_time=at(n), end_time=at(n + 1)) for n in (30, 15)]
    history = ListTransitionsResponse(
        transitions=transitions if oldest_first else transitions[::-1], blind_intervals=blind
    )
    lines = [text.plain for text in history_lines(history, oldest_first=oldest_first)]
    if not oldest_first:
        lines.reverse()
    assert ["libvirt" in text for text in lines] == [False, True, False, False, True]
