"""Start in full, and each verb from each state that is in its way, with real guests."""

import os
import signal

from vmagent.v1 import vm_agent_service_pb2 as pb

from tests.system.calls import Outcome, finished, start, stop
from tests.system.daemon import Daemon
from tests.system.deadline import until
from tests.system.domains import Guest, Guests, Spec, Then
from tests.system.guests import Behaviour
from tests.system.history import state
from tests.system.vms import Vms


def answers(vms: Vms, vm: Guest) -> dict[str, str]:
    """Ask for everything that does not use force; return what came of each."""
    stub, uuid = vms.stub, vm.uuid
    return {
        "start": vms.start(vm).result,
        "stop": vms.stop(vm).result,
        "reboot": finished(stub.Reboot(pb.RebootRequest(vm=uuid))).result,
        "pause": finished(stub.Pause(pb.PauseRequest(vm=uuid))).result,
        "resume": finished(stub.Resume(pb.ResumeRequest(vm=uuid))).result,
    }


def test_a_paused_start(vms: Vms) -> None:
    vm = vms.off()
    outcome = vms.start(vm, paused=True)
    assert outcome.result == "DONE"
    assert state(outcome.vm) == state(vms.vm(vm)) == "PAUSED/PAUSED_BY_USER"
    assert vms.start(vm, paused=True).result == "ALREADY_DONE"
    assert vms.start(vm).result == "VM_PAUSED"
    assert finished(vms.stub.Resume(pb.ResumeRequest(vm=vm.uuid))).result == "DONE"
    assert state(vms.vm(vm)).startswith("RUNNING/")


def test_a_saved_vm_goes_on_or_begins_afresh(vms: Vms) -> None:
    vm = vms.up()
    vm.domain.managedSave()
    vms.until(vm, "SAVED/SAVED")
    assert vms.stop(vm).result == "ALREADY_DONE"
    outcome = vms.start(vm)
    assert (outcome.result, state(outcome.vm)) == ("DONE", "RUNNING/RESTORED")
    vm.domain.managedSave()
    vms.until(vm, "SAVED/SAVED")
    outcome = vms.start(vm, discard_saved_state=True)
    assert (outcome.result, state(outcome.vm)) == ("DONE", "RUNNING/BOOTED")
    assert not vm.domain.hasManagedSaveImage()


def test_of_a_guest_that_crashed_and_was_kept(vms: Vms) -> None:
    vm = vms.up(Spec(Behaviour.PANIC, on_crash=Then.PRESERVE))
    vms.until(vm, "CRASHED/GUEST_PANIC")
    assert set(answers(vms, vm).values()) == {"VM_CRASHED"}
    assert vms.force_off(vm).result == "DONE"


def test_of_a_guest_that_sleeps(vms: Vms) -> None:
    vm = vms.up(Spec(Behaviour.SLEEP))
    vms.until(vm, "SLEEPING/SUSPENDED_TO_RAM")
    asked = answers(vms, vm)
    assert asked.pop("resume") == "DONE"
    assert set(asked.values()) == {"VM_SLEEPING"}


def test_of_a_guest_that_is_off(vms: Vms) -> None:
    vm = vms.off()
    asked = answers(vms, vm)
    # the first one started it, the second stopped it
    assert (asked.pop("start"), asked.pop("stop")) == ("DONE", "DONE")
    assert set(asked.values()) == {"VM_STATE"}


def test_the_hosts_limits(guest: Guests, own_daemon: Daemon) -> None:
    def ask(vm: Guest) -> Outcome:
        return finished(start(own_daemon.stub, vm.uuid))

    first, second = guest(running=False), guest(running=False)
    running = own_daemon.host().capacity.active_vms
    own_daemon.config.write_text(f"[host_limits]\nrunning_vms = {running + 1}\n")
    own_daemon.restart()
    assert ask(first).result == "DONE"
    refused = ask(second)
    assert refused.refusal is not None
    assert (refused.refusal.code, refused.result) == ("RESOURCE_EXHAUSTED", "LIMIT_REACHED")
    assert refused.refusal.facts["limit"] == "running VMs"
    assert refused.phases == ["ACCEPTED", "FAILED"]
    assert not second.domain.isActive()
    capacity = own_daemon.host().capacity
    assert (capacity.active_vms, capacity.active_vms_limit) == (running + 1, running + 1)
    assert (capacity.running_starts, capacity.running_starts_limit) == (0, 8)
    # the limit can be raised while the daemon runs
    own_daemon.config.write_text(f"[host_limits]\nrunning_vms = {running + 2}\n")
    os.kill(own_daemon.pid, signal.SIGHUP)
    until(
        lambda: own_daemon.host().capacity.active_vms_limit == running + 2, "the limit is raised"
    )
    assert ask(second).result == "DONE"
    assert finished(stop(own_daemon.stub, first.uuid)).result == "DONE"
