"""VMs as text: a table of many, a page of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from vmagent.ctl.words import (
    NOTHING,
    age,
    ago,
    clock,
    initiator_words,
    plain,
    reason_words,
    short,
    size,
    source_word,
    state_word,
)
from vmagent.v1.vm_pb2 import VmState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from vmagent.ctl.screen import Screen
    from vmagent.v1.host_pb2 import Link
    from vmagent.v1.vm_pb2 import Vm

_STYLES = {
    VmState.VM_STATE_STARTING: "cyan",
    VmState.VM_STATE_RUNNING: "green",
    VmState.VM_STATE_PAUSED: "yellow",
    VmState.VM_STATE_SLEEPING: "yellow",
    VmState.VM_STATE_STOPPING: "cyan",
    VmState.VM_STATE_CRASHED: "bold red",
    VmState.VM_STATE_MIGRATING_IN: "cyan",
    VmState.VM_STATE_MIGRATED_AWAY: "magenta",
    VmState.VM_STATE_GONE: "dim",
    VmState.VM_STATE_UNRECOGNIZED: "bold red",
}


def styled_state(state: VmState.ValueType) -> Text:
    """Return a state's word in its colour."""
    return Text(state_word(state), style=_STYLES.get(state, ""))


def state_and_reason(vm: Vm) -> Text:
    """Return a VM's state, and why it is in it if that is known."""
    reason = reason_words(vm.reason)
    state = styled_state(vm.state)
    return state if reason == NOTHING else state.append(f" ({reason})")


def name_of(vm: Vm) -> str:
    """Return what a VM is called; a VM without a name by its UUID."""
    return plain(vm.name or vm.uuid)


def print_table(screen: Screen, vms: Iterable[Vm], link: Link, now: datetime) -> None:
    """Print VMs as a table; when the daemon is blind, say so first and mark every state."""
    print_link(screen, link, now)
    rows = [_row(vm, link, now) for vm in vms]
    titles = ["NAME", "STATE", "REASON", "SINCE", "BY", "NOTE"]
    if not any(row[-1] for row in rows):  # most of the time nothing is to be noted
        titles.pop()
        rows = [row[:-1] for row in rows]
    screen.table(titles, rows, nothing="no VMs")


def print_link(screen: Screen, link: Link, now: datetime) -> None:
    """Say that libvirt cannot be asked, if so."""
    if not link.libvirt_connected:
        screen.line((blindness(link, now), "bold yellow"))


def blindness(link: Link, now: datetime) -> str:
    """Return the sentence that tells of a daemon that cannot ask libvirt."""
    since = f" since {ago(link.blind_since, now)}" if link.HasField("blind_since") else ""
    if link.HasField("last_survey_time"):
        return (
            f"libvirt cannot be asked{since}: states are the last known ones, "
            f"all VMs were last surveyed at {clock(link.last_survey_time)}"
        )
    return f"libvirt cannot be asked{since}: states are the last known ones"


def _row(vm: Vm, link: Link, now: datetime) -> list[str | Text]:
    state = styled_state(vm.state)
    if not link.libvirt_connected:
        state.append(" (last known)", style="yellow")
    since = age(vm.state_time, now) if vm.HasField("state_time") else NOTHING
    return [
        name_of(vm),
        state,
        reason_words(vm.reason),
        since,
        initiator_words(vm.initiator),
        ", ".join(_notes(vm)),
    ]


def _notes(vm: Vm) -> Iterator[str]:
    if vm.active_operation_id:
        yield f"operation {short(vm.active_operation_id)} under way"
    if vm.HasField("unresponsive"):
        yield "does not answer libvirt"
    if vm.late:
        yield "found late"
    if vm.HasField("last_start_error"):
        yield "last start failed"
    if not vm.persistent and vm.state != VmState.VM_STATE_GONE:
        yield "transient"


def print_page(screen: Screen, vm: Vm, link: Link, now: datetime) -> None:
    """Print everything about one VM."""
    print_link(screen, link, now)
    for title, value in _facts(vm, now):
        screen.line((f"{title + ':':<18}", "bold"), value)


def _facts(vm: Vm, now: datetime) -> Iterator[tuple[str, str | Text]]:
    yield "Name", plain(vm.name)
    yield "UUID", plain(vm.uuid)
    yield "State", state_and_reason(vm)
    if vm.HasField("state_time"):
        yield "Since", ago(vm.state_time, now)
    if vm.late:
        yield "Found late", f"it began after {clock(vm.earliest_time)}, when nobody was looking"
    yield "By", initiator_words(vm.initiator)
    if vm.initiator.operation_id:
        yield "By operation", plain(vm.initiator.operation_id)
    yield "Learned from", source_word(vm.source)
    if vm.HasField("verify_time"):
        yield "Confirmed", ago(vm.verify_time, now)
    if vm.HasField("raw_state"):
        yield "libvirt's state", f"{vm.raw_state.major}, reason {vm.raw_state.minor}"
    if vm.HasField("unresponsive"):
        since = ago(vm.unresponsive.since_time, now)
        yield "Does not answer", f"since {since}, job {plain(vm.unresponsive.job)}"
    if vm.active_operation_id:
        yield "Operation", f"{plain(vm.active_operation_id)} under way"
    if vm.HasField("last_start_error"):
        error = vm.last_start_error
        text = f"{plain(error.message)} (libvirt error {error.libvirt_code})"
        yield "Last start failed", f"{ago(error.fail_time, now)}: {text}"
    yield "Definition", _definition(vm)
    yield "Active", "yes" if vm.active else "no"
    yield "Boots", str(vm.incarnation)
    yield "Crashes", str(vm.crash_count)
    yield "Revision", str(vm.revision)


def _definition(vm: Vm) -> str:
    kind = "persistent" if vm.persistent else "transient"
    return f"{kind}, {definition_size(vm)}"


def definition_size(vm: Vm) -> str:
    """Return how large a VM is, as far as that is known."""
    vcpus = f"{vm.vcpus} vCPU{'' if vm.vcpus == 1 else 's'}" if vm.vcpus else "vCPUs not known"
    memory = size(vm.memory_bytes) if vm.memory_bytes else "memory not known"
    return f"{vcpus}, {memory}"
