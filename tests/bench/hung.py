"""What six guests that hang cost a healthy one.

    python -m tests.bench.hung

Six deaf guests have a graceful Stop under way, so libvirt talks to them all the time. By turns
their QEMU processes are stopped with SIGSTOP and let run; meanwhile a healthy VM is started and
forced off through the daemon, and a watcher times a suspend that comes from outside. Each guest
that hangs has been pressed three times before that: the first press does not return, and the
others come on top of it.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from vmagent.v1 import operation_pb2, vm_pb2
from vmagent.v1 import vm_agent_service_pb2 as pb

from tests.bench.bed import Bed, bed, told
from tests.system.calls import FORCE
from tests.system.deadline import until
from tests.system.domains import Spec
from tests.system.guests import Behaviour
from tests.system.watcher import Watcher

if TYPE_CHECKING:
    from tests.system.domains import Guest

HUNG = 6
ROUNDS = 3
CYCLES = 16
PRESSES = 3
PAUSED = vm_pb2.VM_STATE_PAUSED
SIGNALLED = operation_pb2.OPERATION_PHASE_SIGNALLED

Times = dict[str, list[float]]


def main() -> None:
    """Measure, and print the figures."""
    with bed() as here, ThreadPoolExecutor(HUNG) as callers:
        deaf = [here.guests(Spec(name=f"deaf{n}", behaviour=Behaviour.DEAF)) for n in range(HUNG)]
        healthy = here.guests(Spec(name="healthy"), running=False)
        processes = [here.libvirtd.qemu_pid(guest.name) for guest in deaf]
        presses = dict.fromkeys((guest.name for guest in deaf), 0)
        for guest in deaf:
            callers.submit(_stop_for_long, here, guest, presses)
        free: Times = {}
        hung: Times = {}
        with Watcher(here.daemon.target) as watcher:
            try:
                for _ in range(ROUNDS):
                    _measure(here, watcher, healthy, free)
                    _signal(processes, signal.SIGSTOP)
                    _await_presses(presses)
                    _measure(here, watcher, healthy, hung)
                    _signal(processes, signal.SIGCONT)
            finally:
                _signal(processes, signal.SIGCONT)
                for guest in deaf:
                    _call(here.daemon.stub.Stop(pb.StopRequest(vm=guest.name, mode=FORCE)))
        for name in free:
            print(told(f"{name}, all well", free[name]))
            print(told(f"{name}, {HUNG} hung", hung[name]))
            ratio = statistics.median(hung[name]) / statistics.median(free[name])
            print(f"{name}: ratio of the medians {ratio:.3f}")


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        os.kill(process, number)


def _stop_for_long(here: Bed, guest: Guest, presses: dict[str, int]) -> None:
    request = pb.StopRequest(vm=guest.name, grace_period=Duration(seconds=3000))
    for step in here.daemon.stub.Stop(request):
        presses[guest.name] = sum(each.phase == SIGNALLED for each in step.operation.steps)


def _await_presses(presses: dict[str, int]) -> None:
    before = presses.copy()
    until(
        lambda: all(presses[name] >= number + PRESSES for name, number in before.items()),
        f"{PRESSES} presses of each",
        within_s=180,
    )


def _call(steps: object) -> None:
    for _ in steps:  # type: ignore[attr-defined]
        pass


def _measure(here: Bed, watcher: Watcher, healthy: Guest, times: Times) -> None:
    stub = here.daemon.stub
    for _ in range(CYCLES):
        began = time.monotonic()
        _call(stub.Start(pb.StartRequest(vm=healthy.name)))
        times.setdefault("Start", []).append(time.monotonic() - began)
        began = time.monotonic()
        healthy.domain.suspend()
        watcher.until(lambda: watcher.vms[healthy.uuid].state == PAUSED, "it is seen")
        times.setdefault("watch", []).append(time.monotonic() - began)
        began = time.monotonic()
        _call(stub.Stop(pb.StopRequest(vm=healthy.name, mode=FORCE)))
        times.setdefault("Stop", []).append(time.monotonic() - began)


if __name__ == "__main__":
    main()
