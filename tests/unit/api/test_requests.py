"""Nothing a client can send is believed, and each refusal names the field."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.transition_pb2 import Cursor as CursorMessage

from vmagentd.api import convert, requests
from vmagentd.errors import InvalidField
from vmagentd.model import (
    Cursor,
    HistoryFilter,
    JournalId,
    OnGraceExpired,
    Revision,
    StartParameters,
    StopMode,
    StopParameters,
    VmState,
)

from . import values

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from google.protobuf.message import Message

_T = TypeVar("_T")

SECRET = b"secret"
JOURNAL = JournalId("6f1ed002-ab5a-4f4c-9d2c-0a6f1f4b8d11")
DURATIONS = st.builds(
    Duration, seconds=st.integers(-(2**63), 2**63 - 1), nanos=st.integers(-(2**31), 2**31 - 1)
)
TIMESTAMPS = st.builds(
    Timestamp, seconds=st.integers(-(2**63), 2**63 - 1), nanos=st.integers(-(2**31), 2**31 - 1)
)


def refused(field: str, parse: Callable[[], object]) -> str:
    """Return the problem that *parse* has with *field*."""
    with pytest.raises(InvalidField) as caught:
        parse()
    assert caught.value.field == field
    assert caught.value.facts == {"field": field}
    return caught.value.problem


def parsed_or_refused(field: str, parse: Callable[[], _T]) -> _T | None:
    """Return what *parse* makes of any input; it may only refuse *field*."""
    try:
        return parse()
    except InvalidField as error:
        if error.field != field:
            raise
        return None


def history(**fields: object) -> requests.History:
    return requests.history(pb.ListTransitionsRequest(**fields), SECRET)  # type: ignore[arg-type]


# --- VM references ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["web", "a" * 255, "ä" * 127, "web 1", "-", "🦆", "urn:uuid:x"])
def test_a_name_is_itself(name: str) -> None:
    assert requests.reference("vm", name) == (name,)


@given(st.uuids())
def test_a_uuid_in_any_spelling_has_one_spelling_and_may_still_be_a_name(uuid: UUID) -> None:
    one = str(uuid)
    assert requests.reference("vm", one) == (one,)
    for other in {one.upper(), uuid.hex, uuid.hex.upper()} - {one}:
        assert requests.reference("vm", other) == (one, other)


@pytest.mark.parametrize(
    "name", ["6f1ed002ab5a-4f4c-9d2c-0a6f1f4b8d11", "6f1ed002-ab5a-4f4c-9d2c-0a6f1f4b8d1g"]
)
def test_what_only_resembles_a_uuid_is_a_name(name: str) -> None:
    assert requests.reference("vm", name) == (name,)


@pytest.mark.parametrize(
    "text", ["", "a" * 256, "ä" * 128, "a\x00b", "a\nb", "\x7f", "a\x85", "\x9f", "\t"]
)
def test_no_name_is_refused(text: str) -> None:
    refused("vm", lambda: requests.reference("vm", text))
    refused("vm", lambda: requests.start(pb.StartRequest(vm=text)))
    refused("vm", lambda: requests.stop(pb.StopRequest(vm=text)))
    refused("vms[1]", lambda: requests.watch(pb.WatchStatusRequest(vms=["web", text])))
    if text:
        refused("vm", lambda: history(vm=text))
        refused("name_glob", lambda: requests.list_vms(pb.ListVmsRequest(name_glob=text), SECRET))


@given(st.text())
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    spellings = parsed_or_refused("vm", lambda: requests.reference("vm", text))
    assert spellings is None or spellings[-1] == text


# --- Start and Stop ---------------------------------------------------------------------------


def test_a_bare_start_has_the_defaults_of_the_contract() -> None:
    asked = requests.start(pb.StartRequest(vm="web"))
    assert asked == requests.Asked(
        vm=("web",), request_id=None, parameters=StartParameters(timeout=timedelta(seconds=120))
    )


def test_a_full_start() -> None:
    request = pb.StartRequest(
        vm="web",
        request_id="r",
        paused=True,
        discard_saved_state=True,
        force=True,
        timeout=Duration(seconds=1, nanos=500_000_000),
    )
    parameters = StartParameters(
        paused=True, discard_saved_state=True, force=True, timeout=timedelta(seconds=1.5)
    )
    asked = requests.start(request)
    assert asked == requests.Asked(vm=("web",), request_id="r", parameters=parameters)


def test_a_bare_stop_has_the_defaults_of_the_contract() -> None:
    asked = requests.stop(pb.StopRequest(vm="web"))
    parameters = StopParameters(
        mode=StopMode.GRACEFUL,
        grace_period=timedelta(seconds=60),
        on_grace_expired=OnGraceExpired.FAIL,
    )
    assert asked == requests.Asked(vm=("web",), request_id=None, parameters=parameters)


@pytest.mark.parametrize("mode", StopMode)
@pytest.mark.parametrize("on_grace_expired", OnGraceExpired)
def test_a_full_stop(mode: StopMode, on_grace_expired: OnGraceExpired) -> None:
    asked = requests.stop(
        pb.StopRequest(
            vm="web",
            mode=convert.STOP_MODE.number(mode),
            grace_period=Duration(seconds=3600),
            on_grace_expired=convert.STOP_ON_GRACE_EXPIRED.number(on_grace_expired),
        )
    ).parameters
    assert (asked.mode, asked.on_grace_expired) == (mode, on_grace_expired)
    if mode is StopMode.GRACEFUL:
        assert asked.grace_period == timedelta(hours=1)


def test_the_grace_period_of_a_forced_stop_is_ignored() -> None:
    force = convert.STOP_MODE.number(StopMode.FORCE)
    odd = pb.StopRequest(vm="web", mode=force, grace_period=Duration(seconds=-1))
    assert requests.stop(odd) == requests.stop(pb.StopRequest(vm="web", mode=force))


@pytest.mark.parametrize("request_id", ["a", "~" * 128, " ", "6f1ed002-ab5a-4f4c-9d2c"])
def test_request_ids(request_id: str) -> None:
    asked = requests.start(pb.StartRequest(vm="web", request_id=request_id))
    assert asked.request_id == request_id


@pytest.mark.parametrize("request_id", ["a" * 129, "ä", "a\n", "\x00", "\x7f"])
def test_no_request_ids(request_id: str) -> None:
    for parse in (
        lambda: requests.start(pb.StartRequest(vm="web", request_id=request_id)),
        lambda: requests.stop(pb.StopRequest(vm="web", request_id=request_id)),
    ):
        refused("request_id", parse)


@pytest.mark.parametrize("number", [3, 99, -1, 2**31 - 1])
def test_unknown_numbers_are_refused(number: int) -> None:
    mode = pb.StopRequest(vm="web", mode=number)  # type: ignore[arg-type]
    expired = pb.StopRequest(vm="web", on_grace_expired=number)  # type: ignore[arg-type]
    refused("mode", lambda: requests.stop(mode))
    refused("on_grace_expired", lambda: requests.stop(expired))


# --- Durations and times ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        Duration(),
        Duration(seconds=-1),
        Duration(nanos=-1),
        Duration(nanos=999_999_999),
        Duration(seconds=3600, nanos=1),
        Duration(seconds=3601),
        Duration(seconds=2**63 - 1),
        Duration(seconds=-(2**63)),
        Duration(seconds=2, nanos=-1),
        Duration(seconds=-2, nanos=1),
        Duration(seconds=2, nanos=1_000_000_000),
        Duration(seconds=2, nanos=2**31 - 1),
    ],
)
def test_bad_durations_are_refused(bad: Duration) -> None:
    refused("timeout", lambda: requests.start(pb.StartRequest(vm="web", timeout=bad)))
    refused("grace_period", lambda: requests.stop(pb.StopRequest(vm="web", grace_period=bad)))


@pytest.mark.parametrize("bad", [Duration(), Duration(nanos=99_999_999), Duration(seconds=3601)])
def test_a_heartbeat_must_not_be_too_often_nor_too_rare(bad: Duration) -> None:
    request = pb.WatchStatusRequest(heartbeat_interval=bad)
    problem = refused("heartbeat_interval", lambda: requests.watch(request))
    assert "from 0.1 s to 3600 s" in problem


def test_limits_belong_to_the_range() -> None:
    least = pb.WatchStatusRequest(heartbeat_interval=Duration(nanos=100_000_000))
    assert requests.watch(least).heartbeat_interval == timedelta(milliseconds=100)
    most = pb.StartRequest(vm="web", timeout=Duration(seconds=3600))
    assert requests.start(most).parameters.timeout == timedelta(hours=1)


@given(DURATIONS)
def test_any_duration_is_in_range_or_refused(message: Duration) -> None:
    request = pb.StartRequest(vm="web", timeout=message)
    asked = parsed_or_refused("timeout", lambda: requests.start(request).parameters.timeout)
    if asked is not None:
        assert timedelta(seconds=1) <= asked <= timedelta(hours=1)
        assert asked == message.ToTimedelta()


@given(TIMESTAMPS)
def test_any_timestamp_is_a_time_or_refused(message: Timestamp) -> None:
    asked = parsed_or_refused("min_time", lambda: history(min_time=message))
    assert asked is None or asked.which.min_time is not None


@given(values.TIMES)
def test_times_are_exact(time: datetime) -> None:
    which = history(min_time=convert.timestamp(time), max_time=convert.timestamp(time)).which
    assert which.min_time == which.max_time == time


def test_a_time_between_microseconds_is_rounded_up_so_that_at_or_after_holds() -> None:
    assert history(min_time=Timestamp(nanos=1001)).which.min_time == datetime(
        1970, 1, 1, 0, 0, 0, 2, tzinfo=UTC
    )
    latest = Timestamp(seconds=253402300799, nanos=999_999_999)
    assert history(max_time=latest).which.max_time == datetime.max.replace(tzinfo=UTC)


# --- Watch ------------------------------------------------------------------------------------


def test_a_bare_watch() -> None:
    assert requests.watch(pb.WatchStatusRequest()) == requests.Watch(
        vms=(), resume=None, heartbeat_interval=timedelta(seconds=10)
    )


def test_watched_vms_are_taken_in_both_spellings_once() -> None:
    watched = requests.watch(pb.WatchStatusRequest(vms=["web", JOURNAL.upper(), JOURNAL, "web"]))
    assert watched.vms == ("web", JOURNAL, JOURNAL.upper())


def test_too_many_vms_are_refused() -> None:
    assert len(requests.watch(pb.WatchStatusRequest(vms=map(str, range(1000)))).vms) == 1000
    request = pb.WatchStatusRequest(vms=map(str, range(1001)))
    refused("vms", lambda: requests.watch(request))


def test_a_place_to_resume_from() -> None:
    for revision in (0, 1, 2**63 - 1):
        resume = CursorMessage(journal_id=JOURNAL.upper(), revision=revision)
        assert requests.watch(pb.WatchStatusRequest(resume=resume)).resume == Cursor(
            journal_id=JOURNAL, revision=Revision(revision)
        )


@pytest.mark.parametrize(
    ("field", "resume"),
    [
        ("resume.journal_id", CursorMessage()),
        ("resume.journal_id", CursorMessage(revision=7)),
        ("resume.journal_id", CursorMessage(journal_id="the one", revision=7)),
        ("resume.journal_id", CursorMessage(journal_id=f"{JOURNAL} ", revision=7)),
        ("resume.revision", CursorMessage(journal_id=JOURNAL, revision=-1)),
    ],
)
def test_no_place_to_resume_from(field: str, resume: CursorMessage) -> None:
    refused(field, lambda: requests.watch(pb.WatchStatusRequest(resume=resume)))


# --- Lists ------------------------------------------------------------------------------------


def test_a_bare_list_leaves_out_what_is_gone() -> None:
    asked = requests.list_vms(pb.ListVmsRequest(), SECRET)
    assert asked.states == set(VmState) - {VmState.GONE}
    assert (asked.page_size, asked.after) == (1000, None)
    assert asked.matches("anything")


def test_states_that_are_asked_for() -> None:
    states = [convert.VM_STATE.number(VmState.GONE), convert.VM_STATE.number(VmState.PAUSED)]
    asked = requests.list_vms(pb.ListVmsRequest(states=states), SECRET)
    assert asked.states == {VmState.GONE, VmState.PAUSED}


@pytest.mark.parametrize("number", [0, 13, 99, -1])
def test_a_state_must_be_one(number: int) -> None:
    request = pb.ListVmsRequest(states=[1, number])  # type: ignore[list-item]
    refused("states[1]", lambda: requests.list_vms(request, SECRET))


def test_so_many_choices_and_no_more() -> None:
    """Each is looked at, on the loop, and there are never so many."""
    states = [convert.VM_STATE.number(VmState.PAUSED)] * 100
    assert requests.list_vms(pb.ListVmsRequest(states=states), SECRET).states == {VmState.PAUSED}
    request = pb.ListVmsRequest(states=states + states[:1])
    assert "more than 100" in refused("states", lambda: requests.list_vms(request, SECRET))


@pytest.mark.parametrize(
    ("glob", "fits", "fits_not"),
    [
        ("web-*", "web-1", "Web-1"),
        ("web-?", "web-1", "web-10"),
        ("[ab]", "a", "c"),
        ("[!ab]", "c", "a"),
        ("web", "web", "web1"),
        ("[*]", "*", "a"),
        ("*\\*", "a\\b", "ab"),
    ],
)
def test_globs(glob: str, fits: str, fits_not: str) -> None:
    matches = requests.list_vms(pb.ListVmsRequest(name_glob=glob), SECRET).matches
    assert matches(fits)
    assert not matches(fits_not)


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_glob_can_be_matched_or_is_refused(glob: str, name: str) -> None:
    request = pb.ListVmsRequest(name_glob=glob)
    asked = parsed_or_refused("name_glob", lambda: requests.list_vms(request, SECRET))
    if asked is not None:
        asked.matches(name)


@pytest.mark.timeout(5)
def test_no_glob_is_slow() -> None:
    for glob in ("*a" * 127, "*" * 255, "*[ab]" * 51, "?*" * 127):
        matches = requests.list_vms(pb.ListVmsRequest(name_glob=glob), SECRET).matches
        for _ in range(100):
            matches("a" * 254 + "b")
            matches("ab" * 127)


@pytest.mark.parametrize("page_size", [-1, 1001, 2**31 - 1, -(2**31)])
def test_page_sizes_out_of_range(page_size: int) -> None:
    refused("page_size", lambda: history(page_size=page_size))
    request = pb.ListVmsRequest(page_size=page_size)
    refused("page_size", lambda: requests.list_vms(request, SECRET))


def test_a_bare_history() -> None:
    asked = history()
    assert (asked.vm, asked.which, asked.page_size, asked.after) == (
        None,
        HistoryFilter(),
        100,
        None,
    )


def test_a_full_history() -> None:
    asked = history(
        vm="web",
        min_revision=3,
        max_revision=3,
        min_time=Timestamp(seconds=1),
        max_time=Timestamp(seconds=2),
        oldest_first=True,
        page_size=7,
    )
    assert (asked.vm, asked.page_size) == (("web",), 7)
    assert asked.which == HistoryFilter(
        min_revision=Revision(3),
        max_revision=Revision(3),
        min_time=datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC),
        max_time=datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC),
        oldest_first=True,
    )


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("min_revision", {"min_revision": -1}),
        ("max_revision", {"max_revision": -1}),
        ("min_revision", {"min_revision": 4, "max_revision": 3}),
        ("min_time", {"min_time": Timestamp(seconds=2), "max_time": Timestamp(seconds=1)}),
        ("min_time", {"min_time": Timestamp(seconds=-(2**62))}),
        ("max_time", {"max_time": Timestamp(seconds=253402300800)}),
        ("max_time", {"max_time": Timestamp(nanos=-1)}),
        ("max_time", {"max_time": Timestamp(nanos=1_000_000_000)}),
    ],
)
def test_no_history(field: str, fields: dict[str, Message]) -> None:
    refused(field, lambda: history(**fields))
