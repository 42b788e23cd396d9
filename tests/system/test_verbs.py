"""Reboot, Pause, Resume and CancelOperation of real guests, as their callers see them."""

from google.protobuf.duration_pb2 import Duration
from vmagent.v1 import operation_pb2
from vmagent.v1 import vm_agent_service_pb2 as pb

from tests.system.calls import THEN_FORCE, Outcome, duration, finished, read_until
from tests.system.domains import Guest, Spec
from tests.system.guests import Behaviour
from tests.system.history import state
from tests.system.vms import Vms

RESET = operation_pb2.REBOOT_MODE_FORCE
THEN_RESET = operation_pb2.REBOOT_ON_GRACE_EXPIRED_FORCE


def reboot(vms: Vms, vm: Guest, **more: object) -> Outcome:
    request = pb.RebootRequest(vm=vm.uuid, **more)  # type: ignore[arg-type]  # any field
    return finished(vms.stub.Reboot(request))


def pause(vms: Vms, vm: Guest) -> Outcome:
    return finished(vms.stub.Pause(pb.PauseRequest(vm=vm.uuid)))


def resume(vms: Vms, vm: Guest) -> Outcome:
    return finished(vms.stub.Resume(pb.ResumeRequest(vm=vm.uuid)))


def check_rebooted(vms: Vms, vm: Guest, outcome: Outcome) -> None:
    """Check that a guest has rebooted once, in its process, by that operation."""
    assert outcome.result == "DONE"
    assert state(outcome.vm) == "RUNNING/REBOOTED"
    assert outcome.vm.incarnation == 1
    assert outcome.vm.initiator.operation_id == outcome.operation.operation_id
    vms.settle()
    assert sum(line.startswith("REBOOT ") for line in vms.story(vm)) == 1
    assert state(vms.vm(vm)) == "RUNNING/REBOOTED"
    assert vm.domain.isActive()


def test_a_guest_is_rebooted_in_order(vms: Vms) -> None:
    vm = vms.up()
    outcome = reboot(vms, vm)
    check_rebooted(vms, vm, outcome)
    assert outcome.phases.count("SIGNALLED") == 1


def test_a_guest_is_reset(vms: Vms) -> None:
    vm = vms.up(Spec(Behaviour.DEAF))
    outcome = reboot(vms, vm, mode=RESET)
    check_rebooted(vms, vm, outcome)
    assert outcome.phases == ["ACCEPTED", "FORCING", "SUCCEEDED"]


def test_a_guest_is_reset_twice_in_a_row(vms: Vms) -> None:
    vm = vms.up(Spec(Behaviour.DEAF))
    first, second = reboot(vms, vm, mode=RESET), reboot(vms, vm, mode=RESET)
    assert (first.result, second.result) == ("DONE", "DONE")
    assert vms.vm(vm).initiator.operation_id == second.operation.operation_id


def test_a_guest_that_needs_a_second_press_gets_it_and_no_third(vms: Vms) -> None:
    vm = vms.up(Spec(Behaviour.SECOND_PRESS))
    outcome = reboot(vms, vm, grace_period=Duration(seconds=30))
    check_rebooted(vms, vm, outcome)
    assert outcome.phases.count("SIGNALLED") == 2


def test_a_deaf_guest_is_left_alone_or_reset(vms: Vms) -> None:
    vm = vms.up(Spec(Behaviour.DEAF))
    outcome = reboot(vms, vm, grace_period=duration(1))
    assert outcome.result == "GRACE_EXPIRED"
    assert state(vms.vm(vm)) == "RUNNING/BOOTED"
    outcome = reboot(vms, vm, grace_period=duration(1), on_grace_expired=THEN_RESET)
    check_rebooted(vms, vm, outcome)
    assert outcome.phases[-2:] == ["FORCING", "SUCCEEDED"]


def test_a_guest_that_goes_off_instead(vms: Vms) -> None:
    vm = vms.up(Spec(Behaviour.DEAF))
    steps = vms.stub.Reboot(pb.RebootRequest(vm=vm.uuid))
    outcome = read_until(steps, "SIGNALLED")
    vm.domain.destroy()
    outcome = finished(steps, outcome)
    assert outcome.result == "VM_STATE"
    assert outcome.refusal is not None
    assert outcome.refusal.facts["state"] == "STOPPED"


def test_a_guest_is_paused_and_resumed(vms: Vms) -> None:
    vm = vms.up()
    paused = pause(vms, vm)
    assert paused.result == "DONE"
    assert state(paused.vm) == state(vms.vm(vm)) == "PAUSED/PAUSED_BY_USER"
    assert paused.vm.initiator.operation_id == paused.operation.operation_id
    assert pause(vms, vm).result == "ALREADY_DONE"
    assert reboot(vms, vm).result == "VM_PAUSED"
    resumed = resume(vms, vm)
    assert resumed.result == "DONE"
    assert state(resumed.vm) == "RUNNING/UNPAUSED"
    assert resumed.vm.initiator.operation_id == resumed.operation.operation_id
    assert resume(vms, vm).result == "ALREADY_DONE"


def test_a_guest_that_sleeps_is_woken(vms: Vms) -> None:
    vm = vms.up(Spec(Behaviour.SLEEP))
    vms.until(vm, "SLEEPING/SUSPENDED_TO_RAM")
    assert pause(vms, vm).result == "VM_SLEEPING"
    assert reboot(vms, vm, mode=RESET).result == "VM_SLEEPING"
    outcome = resume(vms, vm)
    assert outcome.result == "DONE"
    assert outcome.vm.initiator.operation_id == outcome.operation.operation_id


def test_a_stop_that_waits_is_cancelled(vms: Vms) -> None:
    vm = vms.up(Spec(Behaviour.DEAF))
    steps = vms.stopping(vm, grace_s=60, on_grace_expired=THEN_FORCE)
    outcome = read_until(steps, "SIGNALLED")
    cancelled = vms.stub.CancelOperation(
        pb.CancelOperationRequest(operation_id=outcome.operation.operation_id), timeout=10
    ).operation
    assert cancelled.phase == operation_pb2.OPERATION_PHASE_CANCELLED
    assert cancelled.error.reason == "OPERATION_CANCELLED"
    outcome = finished(steps, outcome)
    assert outcome.operation == cancelled
    assert outcome.result == "OPERATION_CANCELLED"
    assert state(vms.vm(vm)) == "RUNNING/BOOTED"
    assert not vms.vm(vm).active_operation_id
