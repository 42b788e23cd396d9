"""The host as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmagent.ctl.lines import blind_line
from vmagent.ctl.vms import print_link
from vmagent.ctl.words import NOTHING, ago, clock, plain, size, state_word

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from vmagent.ctl.screen import Screen
    from vmagent.v1.host_pb2 import Capacity, Host


def print_host(screen: Screen, host: Host, now: datetime) -> None:
    """Print everything about the host."""
    print_link(screen, host.link, now)
    for title, value in _facts(host, now):
        screen.line((f"{title + ':':<18}", "bold"), value)
    if host.blind_intervals:
        screen.line("")
        screen.line(("Times during which libvirt could not be asked:", "bold"))
        for interval in host.blind_intervals:
            screen.line(blind_line(interval))


def _facts(host: Host, now: datetime) -> Iterator[tuple[str, str]]:
    yield "Host", plain(host.name)
    yield "vmagentd", plain(host.daemon_version)
    yield "libvirt", plain(host.libvirt_version) or NOTHING
    yield "Hypervisor", plain(host.hypervisor_version) or NOTHING
    yield "libvirt URI", plain(host.libvirt_uri)
    yield "libvirt link", "up" if host.link.libvirt_connected else "blind"
    if host.link.HasField("last_survey_time"):
        yield "Last survey", ago(host.link.last_survey_time, now)
    yield "Host's boot", plain(host.boot_id)
    yield "Started", ago(host.start_time, now)
    if host.HasField("ready_time"):
        took = host.ready_time.ToMilliseconds() - host.start_time.ToMilliseconds()
        yield "Ready", f"{clock(host.ready_time)} (after {took} ms)"
    yield "Journal", plain(host.journal_id)
    kept = f"{host.oldest_revision} to {host.head_revision}" if host.head_revision else "none yet"
    yield "Revisions", kept
    yield "Journal writable", "yes" if host.journal_writable else "NO"
    counts = (f"{c.count} {state_word(c.state)}" for c in host.state_counts)
    yield "VMs", ", ".join(counts) or "none"
    yield from _capacity(host.capacity)


def _capacity(capacity: Capacity) -> Iterator[tuple[str, str]]:
    active, vcpus = capacity.active_vms, capacity.used_vcpus
    yield "Active VMs", f"{active}{_bound(capacity.active_vms_limit)}"
    cpus = f", host has {capacity.host_cpus} CPUs" if capacity.host_cpus else ""
    yield "vCPUs in use", f"{vcpus}{_bound(capacity.vcpus_limit)}{cpus}"
    memory = size(capacity.used_memory_bytes)
    has = f", host has {size(capacity.host_memory_bytes)}" if capacity.host_memory_bytes else ""
    limit = f" of {size(capacity.memory_limit_bytes)}" if capacity.memory_limit_bytes else ""
    yield "Memory in use", f"{memory}{limit}{has}"


def _bound(limit: int) -> str:
    return f" of {limit}" if limit else ""
