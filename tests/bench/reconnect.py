"""How long after libvirtd answers again a change that was missed is in the journal.

    python -m tests.bench.reconnect

1,000 VMs are defined. In each round libvirtd is killed, a guest's QEMU is killed while nobody
looks, libvirtd is started, and the clock runs from its first answer until a watcher has the
transition.
"""

from __future__ import annotations

import os
import signal
import time

import libvirt
from vmagent.v1 import vm_pb2

from tests.bench.bed import Bed, bed, told
from tests.system.deadline import until
from tests.system.domains import Spec
from tests.system.watcher import Watcher

VMS = 1000
ROUNDS = 7
RUNNING, CRASHED = vm_pb2.VM_STATE_RUNNING, vm_pb2.VM_STATE_CRASHED


def main() -> None:
    """Measure, and print the figures."""
    with bed() as here:
        for number in range(VMS - 1):
            here.guests(Spec(name=f"vm{number:04d}"), running=False)
        guest = here.guests(Spec(name="guest"), running=False)
        took = []
        with Watcher(here.daemon.target) as watcher:
            for _ in range(ROUNDS):
                guest.domain.create()
                watcher.until(lambda: watcher.vms[guest.uuid].state == RUNNING, "it runs")
                took.append(_round(here, watcher, guest.uuid))
        print(told(f"journaled after libvirtd answers, {VMS} VMs", took))


def _round(here: Bed, watcher: Watcher, uuid: str) -> float:
    process = here.libvirtd.qemu_pid("guest")
    here.libvirtd.kill()
    until(lambda: not here.daemon.host().link.libvirt_connected, "it is blind")
    os.kill(process, signal.SIGKILL)
    here.libvirtd.start()  # returns when it answers
    libvirt.open(here.libvirtd.uri).close()
    began = time.monotonic()
    watcher.until(lambda: watcher.vms[uuid].state == CRASHED, "it is journaled", within_s=30)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
