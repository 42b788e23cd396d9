"""Whatever is written down is read back as it was."""

from __future__ import annotations

import dataclasses
import json
import types
from datetime import UTC, datetime, timedelta
from enum import Enum
from itertools import product
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NewType,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.component.journal.facts import BEGIN, SECOND, operation, sighting, survey, uuid
from vmagentd import model
from vmagentd.journal.schema import OPERATION, PARAMETERS, TRANSITION, VM, from_column, to_column
from vmagentd.lifecycle.steps import step
from vmagentd.model import Operation, OperationId, OperationPhase, Transition, Vm

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from tests.component.journal.conftest import Open

ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {
    Vm: VM,
    Transition: TRANSITION,
    Operation: OPERATION,
}
CHOICES = [
    choice
    for name in model.__all__
    if isinstance(choice := getattr(model, name), type) and issubclass(choice, Enum)
]

PLAIN: dict[object, st.SearchStrategy[Any]] = {
    str: st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    int: st.integers(-(2**63), 2**63 - 1),
    bool: st.booleans(),
    type(None): st.none(),
    datetime: st.datetimes(
        datetime(1970, 1, 1),  # noqa: DTZ001 - a bound bears no zone
        datetime(9999, 1, 1),  # noqa: DTZ001
        timezones=st.just(UTC),
    ),
    timedelta: st.timedeltas(timedelta(0), timedelta(days=1000)),
}


def values(kind: Any) -> st.SearchStrategy[Any]:  # noqa: ANN401 - any type
    """Return a strategy for every field of a record, whatever it is made of."""
    if isinstance(kind, NewType):
        kind = kind.__supertype__
    if kind in PLAIN:
        return PLAIN[kind]
    if isinstance(kind, type) and issubclass(kind, Enum):
        kind = Literal[tuple(kind)]
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        return st.builds(kind, **{name: values(hint) for name, hint in hints.items()})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in {Union, types.UnionType}:
        return st.one_of(*map(values, arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        assert arguments[1] is Ellipsis
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    assert origin is dict, f"no values for {kind}"
    return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)


@pytest.mark.parametrize("kind", ADAPTERS)
@settings(max_examples=100)
@given(data=st.data())
def test_round_trip(kind: type[Any], data: st.DataObject) -> None:
    value = data.draw(values(kind))
    adapter = ADAPTERS[kind]
    again = adapter.validate_json(adapter.dump_json(value))
    assert again == value
    assert type(again) is type(value)
    if isinstance(value, Operation):  # of two kinds, told apart by their fields alone
        assert type(again.parameters) is type(value.parameters)


@given(time=PLAIN[datetime])
def test_times_in_columns(time: datetime) -> None:
    assert from_column(to_column(time)) == time


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_is_written_as_its_name(choice: type[Enum]) -> None:
    assert all(member.value == member.name for member in choice)


def vm_in(state: model.VmState, reason: model.Reason) -> Vm:
    return Vm(
        uuid=uuid(1),
        name="a",
        state=state,
        reason=reason,
        initiator=model.UNKNOWN_INITIATOR,
        source=model.Source.EVENT,
        state_time=BEGIN,
    )


def test_every_state_and_reason() -> None:
    for state, reason in product(model.VmState, model.Reason):
        vm = vm_in(state, reason)
        assert VM.validate_json(VM.dump_json(vm)) == vm


def test_a_record_of_before_a_field_was_added_is_readable() -> None:
    """Fields with a default are those that may have been added."""
    vm = vm_in(model.VmState.RUNNING, model.Reason.BOOTED)
    record = json.loads(VM.dump_json(vm))
    for field in dataclasses.fields(Vm):
        if field.default is not dataclasses.MISSING:
            del record[field.name]
    assert VM.validate_python(record) == vm


async def test_an_operation_is_kept_as_its_newest_step_left_it(opened: Open) -> None:
    first = operation(1, request_id="r")
    second = step(first, OperationPhase.SIGNALLED, time=BEGIN + SECOND)
    async with opened() as journal:
        await journal.append(survey(sighting()))
        await journal.append(first)
        assert await journal.operation(OperationId("op-1")) == first
        await journal.append(second)
        assert await journal.operation(OperationId("op-1")) == second
    async with opened() as journal:
        assert list(journal.left_open) == [second]


def test_a_record_of_before_verbs_were_written_is_readable() -> None:
    stop = b'{"mode": "FORCE", "grace_period": "PT60S", "on_grace_expired": "FAIL"}'
    assert isinstance(PARAMETERS.validate_json(stop), model.StopParameters)
    start = b'{"paused": false, "discard_saved_state": false, "force": true, "timeout": "PT60S"}'
    assert isinstance(PARAMETERS.validate_json(start), model.StartParameters)
