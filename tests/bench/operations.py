"""What an operation costs beside the same call of libvirt made directly.

    python -m tests.bench.operations

Start and forced Stop of a QEMU guest, and of a VM of libvirt's test driver, by turns through the
daemon and directly; 200 VMs of the test driver stopped at once; and how long after libvirt's
STOPPED event, timed in another process, the caller of a graceful Stop has its answer.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import libvirt
from vmagent.v1 import operation_pb2, vm_pb2
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

from tests.bench.bare import bare
from tests.bench.bed import Bed, bed, told
from tests.system.calls import FORCE, finished, start, stop
from tests.system.daemon import Daemon
from tests.system.deadline import until
from tests.system.domains import Spec
from tests.system.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable

QEMU_ROUNDS = 40
TEST_ROUNDS = 200
AT_ONCE = 200
GRACEFUL_ROUNDS = 20
STOPPED = "STOPPED/SHUTDOWN"
DONE = operation_pb2.OPERATION_OUTCOME_DONE

Times: TypeAlias = "dict[str, list[float]]"


def main() -> None:
    """Measure, and print the figures."""
    with bed() as here:
        _qemu(here)
        _graceful(here)
    with TemporaryDirectory(prefix="bench-") as directory:
        _test_driver(Path(directory))


def _qemu(here: Bed) -> None:
    guest = here.guests(Spec(name="guest"), running=False)
    until(lambda: _knows(here.daemon.stub, guest.uuid), "it is known")
    times = _by_turns(here.daemon.stub, guest.uuid, guest.domain, QEMU_ROUNDS)
    for verb in ("Start", "Stop"):
        _compare(f"{verb}, QEMU", times[verb], times[f"{verb} directly"])


def _graceful(here: Bed) -> None:
    """Time from libvirt's STOPPED to the answer."""
    guest = here.guests(Spec(name="obeys"), running=False)
    until(lambda: _knows(here.daemon.stub, guest.uuid), "it is known")
    file = Path(here.libvirtd.directory) / "events.jsonl"
    with Recorder(here.libvirtd.uri, file) as recorder:
        answers = []
        for _ in range(GRACEFUL_ROUNDS):
            guest.domain.create()
            outcome = finished(stop(here.daemon.stub, guest.uuid, grace_s=60))
            answers.append(time.monotonic())
            _check(outcome.operation.outcome)
        recorder.until(guest.uuid, STOPPED, times=GRACEFUL_ROUNDS)
        stopped = [
            seen.monotonic_s
            for seen in recorder.everything()
            if (seen.uuid, seen.what) == (guest.uuid, STOPPED)
        ]
    took = [answer - event for answer, event in zip(answers, stopped, strict=True)]
    print(told("graceful Stop, from libvirt's STOPPED to the answer", took))


def _test_driver(directory: Path) -> None:
    node = directory / "node.xml"
    node.write_text(f"<node>{''.join(map(_test_domain, range(AT_ONCE)))}</node>")
    uri = f"test://{node}"
    alone = directory / "alone.xml"
    alone.write_text(f"<node>{_test_domain(0)}</node>")
    with Daemon(uri, directory) as daemon, bare(directory, f"test://{alone}") as floor:
        vms = daemon.stub.ListVms(pb.ListVmsRequest(page_size=1000), timeout=10).vms
        # the test driver lives in its process: directly is in this one
        link = libvirt.open(uri)
        domain = link.lookupByName("vm0")
        uuid = next(vm.uuid for vm in vms if vm.name == "vm0")
        domain.destroy()
        finished(stop(daemon.stub, uuid, mode=FORCE))
        finished(floor.Stop(pb.StopRequest()))
        times = _by_turns(daemon.stub, uuid, domain, TEST_ROUNDS, floor)
        for verb in ("Start", "Stop"):
            ours, theirs, least = (times[f"{verb}{how}"] for how in ("", " directly", " bare"))
            print(told(f"{verb}, test driver", ours))
            print(told(f"{verb}, test driver, directly", theirs))
            print(told(f"{verb}, test driver, the least", least))
            floor_ms, added_ms = (
                1000 * (statistics.median(each) - statistics.median(theirs))
                for each in (least, ours)
            )
            print(
                f"{verb}, test driver: added at the median {added_ms:.2f} ms, by the least that"
                f" it must consist of {floor_ms:.2f} ms: {added_ms / floor_ms:.2f} times that"
            )
        print(told("for comparison, one GetVm", times["GetVm"]))
        print(told("for comparison, one fdatasync", [_sync(directory) for _ in range(100)]))
        domain.create()
        finished(start(daemon.stub, uuid))
        _at_once(daemon, [vm.uuid for vm in vms], link)


def _at_once(daemon: Daemon, vms: list[str], link: Any) -> None:  # noqa: ANN401 - untyped
    took = asyncio.run(_stop_all(daemon.target, vms))
    off = daemon.stub.ListVms(
        pb.ListVmsRequest(states=[vm_pb2.VM_STATE_STOPPED], page_size=1000), timeout=10
    ).vms
    if len(off) != len(vms):
        raise AssertionError(f"{len(off)} of {len(vms)} are off")
    domains = link.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
    began = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda domain: domain.destroy(), domains))
    directly = time.monotonic() - began
    print(told(f"Stop, {len(vms)} at once on the test driver", took))
    print(f"all of them {1000 * max(took):.0f} ms; directly {1000 * directly:.0f} ms")


async def _stop_all(target: str, vms: list[str]) -> list[float]:
    async with grpc.aio.insecure_channel(target) as channel:
        stub = VmAgentServiceStub(channel)
        await stub.GetHost(pb.GetHostRequest())
        began = time.monotonic()

        async def one(vm: str) -> float:
            last = None
            async for response in stub.Stop(pb.StopRequest(vm=vm, mode=FORCE)):
                last = response
            if last is None or last.operation.vm_uuid != vm:
                raise AssertionError(last)
            _check(last.operation.outcome)
            return time.monotonic() - began

        return await asyncio.gather(*map(one, vms))


def _by_turns(
    stub: VmAgentServiceStub,
    vm: str,
    domain: Any,  # noqa: ANN401 - untyped
    rounds: int,
    floor: VmAgentServiceStub | None = None,
) -> Times:
    """Start and stop a VM that is off, by turns through the daemon and directly.

    With a *floor*, that is called by turns with them, at the same speed of the machine.
    """
    times: Times = defaultdict(list)

    def timed(name: str, call: Callable[[], object]) -> None:
        began = time.perf_counter()
        call()
        times[name].append(time.perf_counter() - began)

    for _ in range(rounds):
        timed("Start", lambda: _check(finished(start(stub, vm)).operation.outcome))
        timed("Stop", lambda: _check(finished(stop(stub, vm, mode=FORCE)).operation.outcome))
        timed("Start directly", domain.create)
        timed("Stop directly", domain.destroy)
        until(lambda: _is_off(stub, vm), "the daemon has seen it too")
        timed("GetVm", lambda: _is_off(stub, vm))
        if floor is not None:
            timed("Start bare", lambda: finished(floor.Start(pb.StartRequest())))
            timed("Stop bare", lambda: finished(floor.Stop(pb.StopRequest())))
    return times


def _compare(name: str, ours: list[float], theirs: list[float]) -> None:
    print(told(name, ours))
    print(told(f"{name}, directly", theirs))
    pairs = statistics.median(o / t for o, t in zip(ours, theirs, strict=True))
    medians = statistics.median(ours) / statistics.median(theirs)
    print(f"{name}: ratio of the medians {medians:.3f}, median of the ratios {pairs:.3f}")


def _check(outcome: operation_pb2.OperationOutcome.ValueType) -> None:
    if outcome != DONE:
        raise AssertionError(operation_pb2.OperationOutcome.Name(outcome))


def _knows(stub: VmAgentServiceStub, vm: str) -> bool:
    listed = stub.ListVms(pb.ListVmsRequest(), timeout=10).vms
    return any(each.uuid == vm and each.vcpus for each in listed)


def _is_off(stub: VmAgentServiceStub, vm: str) -> bool:
    return not stub.GetVm(pb.GetVmRequest(vm=vm), timeout=10).vm.active


def _sync(directory: Path) -> float:
    """Return how long the disk takes for a page, as at a commit."""
    with (directory / "page").open("wb", buffering=0) as file:
        file.write(bytes(4096))
        began = time.perf_counter()
        os.fdatasync(file)
        return time.perf_counter() - began


def _test_domain(number: int) -> str:
    return (
        f"<domain type='test'><name>vm{number}</name><memory>1024</memory>"
        "<os><type>hvm</type></os></domain>"
    )


if __name__ == "__main__":
    main()
