"""What watchers get is what the model says, in messages of bounded size, encoded once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from vmagent.v1.vm_agent_service_pb2 import WatchStatusResponse

from vmagentd.api import convert
from vmagentd.api.frames import KEPT, MAX_SNAPSHOT_BYTES, SPARE, Frames
from vmagentd.model import Cursor, JournalId, Link, Revision, Transition, Vm

from . import values


def transitions_in(frames: list[bytes]) -> list[object]:
    return [each for frame in frames for each in WatchStatusResponse.FromString(frame).transitions]


@given(st.lists(values.TRANSITIONS, max_size=20, unique_by=lambda each: each.revision))
def test_transitions_come_in_their_order(transitions: list[Transition]) -> None:
    frames = list(Frames().changes(transitions))
    assert transitions_in(frames) == [convert.transition(each) for each in transitions]
    assert len(frames) == bool(transitions)


@given(st.lists(values.VMS, max_size=20))
def test_a_snapshot_has_all_vms(vms: list[Vm]) -> None:
    message = WatchStatusResponse.FromString(b"".join(Frames().snapshot(vms)))
    assert list(message.vms) == [convert.vm(each) for each in vms]


def test_messages_are_bounded_and_as_few_as_can_be() -> None:
    vms = [values.a_vm("x" * 255, number=number) for number in range(1, 4000)]
    frames = list(Frames().snapshot(vms))
    assert all(len(frame) <= MAX_SNAPSHOT_BYTES for frame in frames)
    assert len(frames) == -(-sum(map(len, frames)) // (MAX_SNAPSHOT_BYTES - 400))
    names = [vm.uuid for frame in frames for vm in WatchStatusResponse.FromString(frame).vms]
    assert names == [vm.uuid for vm in vms]


def test_one_that_is_too_long_goes_alone() -> None:
    long = [values.a_vm("x" * MAX_SNAPSHOT_BYTES, number=number) for number in (1, 2)]
    short = values.a_vm(number=3)
    frames = list(Frames().snapshot([short, *long, short]))
    assert [len(WatchStatusResponse.FromString(frame).vms) for frame in frames] == [1, 1, 1, 1]


def test_a_transition_is_encoded_once() -> None:
    frames = Frames()
    transition = values.a_transition(7, values.a_vm())
    assert next(frames.changes([transition])) is next(frames.changes([transition]))


def test_an_old_transition_displaces_no_newer_one() -> None:
    frames = Frames()
    old, new = (values.a_transition(n, values.a_vm(str(n))) for n in (7, 7 + KEPT))
    kept = next(frames.changes([new]))
    assert transitions_in(list(frames.changes([old]))) == [convert.transition(old)]
    assert next(frames.changes([new])) is kept
    assert transitions_in(list(frames.changes([old]))) == [convert.transition(old)]


def test_a_record_that_was_replaced_is_encoded_anew() -> None:
    frames = Frames()
    one = values.a_vm(verify_time=None)
    assert next(frames.snapshot([one])) is next(frames.snapshot([one]))
    verified = values.a_vm(verify_time=values.A_TIME)
    (message,) = map(WatchStatusResponse.FromString, frames.snapshot([verified]))
    assert message.vms[0].HasField("verify_time")


def test_of_vms_that_are_gone_nothing_is_kept() -> None:
    frames, stays = Frames(), values.a_vm(number=0)
    for number in range(1, 3 * SPARE):
        vms = [stays, values.a_vm(number=number)]
        (message,) = map(WatchStatusResponse.FromString, frames.snapshot(vms))
        assert list(message.vms) == [convert.vm(each) for each in vms]
    assert len(frames._vms) <= SPARE + 3 * 2


def test_ends_and_heartbeats() -> None:
    cursor = Cursor(journal_id=JournalId("j"), revision=Revision(3))
    end = WatchStatusResponse.FromString(Frames().snapshot_end(cursor))
    assert end.snapshot_end == convert.cursor(cursor)
    link = Link(connected=False, blind_since=values.A_TIME, last_survey_time=values.A_TIME)
    beat = Frames().heartbeat(Revision(9), link, journal_writable=True)
    assert WatchStatusResponse.FromString(beat).heartbeat == convert.heartbeat(
        Revision(9), link, journal_writable=True
    )
