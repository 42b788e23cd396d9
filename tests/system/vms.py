"""Guests that the daemon knows: made, awaited, and their journal read."""

import contextlib
from collections.abc import Callable

from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub
from vmagent.v1.vm_pb2 import Vm

from tests.system.calls import FORCE, Outcome, Steps, finished, start, stop
from tests.system.daemon import Daemon
from tests.system.deadline import NeverHappenedError
from tests.system.domains import Guest, Guests, Spec
from tests.system.history import journal, state, tell
from tests.system.watcher import Watcher


class Vms:
    """Makes guests on one libvirtd, seen through one daemon and one watcher of it."""

    def __init__(self, guests: Guests, daemon: Daemon, watcher: Watcher) -> None:
        self._guests = guests
        self._daemon = daemon
        self._watcher = watcher
        self._marks: dict[str, int] = {}

    @property
    def stub(self) -> VmAgentServiceStub:
        return self._daemon.stub

    def off(self, spec: Spec | None = None) -> Guest:
        """Make a guest that is defined and off; its story begins after that."""
        guest = self._guests(spec, running=False)
        self._until_sized(guest)
        self._marks[guest.uuid] = self._watcher.revision
        return guest

    def up(self, spec: Spec | None = None) -> Guest:
        """Make a persistent guest and have others start it; its story begins before that."""
        guest = self.off(spec)
        guest.domain.create()
        self.until_true(guest, lambda vm: vm.incarnation, "up")
        return guest

    def transient(self, spec: Spec | None = None) -> Guest:
        """Make a transient guest; its story begins before that."""
        guest = self._guests(spec, persistent=False)
        self._until_sized(guest)
        return guest

    def vm(self, guest: Guest) -> Vm:
        """Return what the daemon says of a guest now."""
        return self.stub.GetVm(pb.GetVmRequest(vm=guest.uuid), timeout=10).vm

    def story(self, guest: Guest) -> list[str]:
        """Return the guest's transitions since its story began, in words."""
        return [tell(t) for t in journal(self.stub, guest.uuid, after=self._mark(guest))]

    def expect(self, guest: Guest, *story: str, perhaps: str = "", within_s: float = 30.0) -> None:
        """Wait for the guest's story; nothing else may be in it but one line *perhaps*.

        Also that the watcher saw the same.
        """

        def told() -> list[str]:
            seen = [tell(t) for t in self._watcher.of(guest.uuid, after=self._mark(guest))]
            return [line for line in seen if line != perhaps]

        with contextlib.suppress(NeverHappenedError):  # what there is instead is told below
            self._watcher.until(
                lambda: len(told()) >= len(story), "all is told", within_s=within_s
            )
        self.settle()
        told_by_journal = [line for line in self.story(guest) if line != perhaps]
        assert told_by_journal == [*story]
        assert told() == [*story]

    def until(self, guest: Guest, wanted: str, *, within_s: float = 30.0) -> None:
        """Wait until the watcher has seen a guest in a state, like `RUNNING/BOOTED`."""
        self.until_true(guest, lambda vm: state(vm) == wanted, wanted, within_s=within_s)

    def until_true(
        self, guest: Guest, fact: Callable[[Vm], object], what: str, *, within_s: float = 30.0
    ) -> None:
        """Wait until something holds of a guest as the watcher has it."""
        self._watcher.until(
            lambda: guest.uuid in self._watcher.vms and fact(self._watcher.vms[guest.uuid]),
            f"{guest.name}: {what}",
            within_s=within_s,
        )

    def settle(self) -> None:
        """Wait until the daemon has come to the end of what libvirt has told so far.

        Events keep their order, so one more guest will do; and so does a look at it.
        """
        probe = self._guests(running=False)
        self._until_sized(probe)

    def start(self, guest: Guest, **more: object) -> Outcome:
        """Have the daemon start a guest, to the end of the call."""
        return finished(start(self.stub, guest.uuid, **more))

    def stop(self, guest: Guest, *, grace_s: float | None = None, **more: object) -> Outcome:
        """Have the daemon stop a guest, to the end of the call."""
        return finished(self.stopping(guest, grace_s=grace_s, **more))

    def stopping(self, guest: Guest, *, grace_s: float | None = None, **more: object) -> Steps:
        """Have the daemon begin to stop a guest."""
        return stop(self.stub, guest.uuid, grace_s=grace_s, **more)

    def force_off(self, guest: Guest) -> Outcome:
        return self.stop(guest, mode=FORCE)

    def _mark(self, guest: Guest) -> int:
        return self._marks.get(guest.uuid, 0)

    def _until_sized(self, guest: Guest) -> None:
        self.until_true(guest, lambda vm: vm.vcpus, "looked at")
