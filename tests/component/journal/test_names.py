"""A name means the VM that bears it now."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.component.journal.facts import operation, query, sighting, survey, uuid
from vmagentd.journal.known import KnownVms
from vmagentd.model import VmState

if TYPE_CHECKING:
    from tests.component.journal.conftest import Open
    from vmagentd.journal.store import Journal


def bearer(journal: Journal, name: str) -> str | None:
    vm = journal.find(name)
    return None if vm is None else vm.uuid


async def test_of_a_vm_that_was_defined_anew_while_the_old_one_seems_to_be_there(
    journal: Journal,
) -> None:
    await journal.append(survey(sighting(1)))
    await journal.append(query(replace(sighting(2), name="vm1"), vm=2, after_event=0))
    assert bearer(journal, "vm1") == uuid(2)
    await journal.append(operation(1, vm=1))  # something is told of the old one
    assert journal.vms[uuid(1)].active_operation_id is not None
    assert bearer(journal, "vm1") == uuid(2)
    await journal.append(query(None, vm=1, after_event=0))
    assert journal.vms[uuid(1)].state is VmState.GONE
    assert bearer(journal, "vm1") == uuid(2)


@pytest.mark.parametrize(("old", "new"), [(1, 2), (2, 1)])
async def test_of_both_over_a_restart(opened: Open, old: int, new: int) -> None:
    async with opened() as journal:
        for vm in old, new:
            await journal.append(query(replace(sighting(vm), name="it"), vm=vm, after_event=0))
    async with opened() as journal:
        await journal.append(survey(replace(sighting(new), name="it")))
        assert journal.vms[uuid(old)].state is VmState.GONE
        assert bearer(journal, "it") == uuid(new)


async def test_of_vms_that_exchanged_their_names(journal: Journal) -> None:
    await journal.append(survey(sighting(1), sighting(2)))
    one, two = replace(sighting(1), name="vm2"), replace(sighting(2), name="vm1")
    await journal.append(survey(one, two))
    assert (bearer(journal, "vm1"), bearer(journal, "vm2")) == (uuid(2), uuid(1))


async def test_of_a_vm_that_came_back(journal: Journal) -> None:
    await journal.append(survey(sighting(1)))
    await journal.append(survey())
    assert bearer(journal, "vm1") == uuid(1)  # nobody else bears it
    await journal.append(survey(replace(sighting(2), name="vm1")))
    assert bearer(journal, "vm1") == uuid(2)
    await journal.append(survey(sighting(1)))
    assert bearer(journal, "vm1") == uuid(1)


async def test_an_old_name_means_nobody(journal: Journal) -> None:
    await journal.append(survey(sighting(1)))
    await journal.append(survey(replace(sighting(1), name="other")))
    assert (bearer(journal, "vm1"), bearer(journal, "other")) == (None, uuid(1))


async def test_only_of_a_vm_that_is_gone_is_nothing_left(journal: Journal) -> None:
    await journal.append(survey(sighting(1), sighting(2)))
    await journal.append(survey(sighting(1)))
    known = KnownVms(journal.vms.values())
    for number in 1, 2, 3:
        known.forget(uuid(number))
    assert known.find("vm1") == journal.vms[uuid(1)]
    assert (known.find("vm2"), known.find(uuid(2))) == (None, None)
