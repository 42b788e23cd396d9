"""Histories: what clients saw, in words, and whether it keeps the promises."""

from collections.abc import Iterable

from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.transition_pb2 import Transition, TransitionKind
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub
from vmagent.v1.vm_pb2 import InitiatorKind, Source, Vm, VmReason, VmState

from tests.system.watcher import Watcher


def journal(stub: VmAgentServiceStub, vm: str = "", *, after: int = 0) -> list[Transition]:
    """Return the history of one VM or of all, oldest first, from behind a revision on."""
    request = pb.ListTransitionsRequest(
        vm=vm, min_revision=after + 1, oldest_first=True, page_size=1000
    )
    found: list[Transition] = []
    while True:
        page = stub.ListTransitions(request, timeout=10)
        found += page.transitions
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def tell(transition: Transition) -> str:
    """Return a transition in words: `RUNNING/BOOTED by OUT_OF_BAND`.

    What is usual is left out: a change of state, told by an event, of a VM that is persistent and
    has booted once. What is not is said: `REBOOT RUNNING/REBOOTED by GUEST, #2, transient`.
    """
    vm, kind = transition.vm, _short(TransitionKind.Name(transition.kind), "TRANSITION_KIND_")
    source = _short(Source.Name(transition.source), "SOURCE_")
    incarnation = f"#{vm.incarnation}"
    words = [
        f"{state(vm)} by {_short(InitiatorKind.Name(vm.initiator.kind), 'INITIATOR_KIND_')}",
        f"per {source}" if source != "EVENT" else "",
        incarnation if incarnation != "#1" else "",
        "transient" if not vm.persistent else "",
        "late" if transition.late else "",
        # a crashed VM whose process is still there
        "active" if vm.active and vm.state == VmState.VM_STATE_CRASHED else "",
    ]
    return (f"{kind} " if kind != "STATE" else "") + ", ".join(filter(None, words))


def state(vm: Vm) -> str:
    """Return `RUNNING/BOOTED`."""
    return "/".join((
        _short(VmState.Name(vm.state), "VM_STATE_"),
        _short(VmReason.Name(vm.reason), "VM_REASON_"),
    ))  # fmt: skip


def check_history(stub: VmAgentServiceStub, *watchers: Watcher) -> None:
    """Check what watchers saw who followed one another: the first began, the others resumed.

    Revisions are contiguous; each record has the revision of its transition; what each
    transition says was before was so; the journal tells the same; and the snapshot with all
    transitions applied is what the daemon lists, but for the times of verification.
    """
    first = watchers[0]
    seen = [transition for watcher in watchers for transition in watcher.transitions]
    begin = first.began.revision
    assert [t.revision for t in seen] == list(range(begin + 1, begin + 1 + len(seen)))
    assert {w.began.journal_id for w in watchers} == {first.began.journal_id}

    vms = dict(first.snapshot)
    complete = first.resumed is None
    for transition in seen:
        vm = transition.vm
        assert vm.revision == transition.revision
        before = vms.get(vm.uuid)
        if before is not None:
            assert before.state == transition.previous_state, tell(transition)
        vms[vm.uuid] = vm
    kept = journal(stub, after=begin)
    assert _bytes(kept[: len(seen)]) == _bytes(seen)
    if not complete:
        return
    listing = stub.ListVms(pb.ListVmsRequest(), timeout=10)
    assert not listing.next_page_token
    for transition in kept[len(seen) :]:  # what came while this was checked
        if transition.revision <= listing.cursor.revision:
            vms[transition.vm.uuid] = transition.vm
    folded = {vm.uuid: vm for vm in vms.values() if vm.state != VmState.VM_STATE_GONE}
    assert _comparable(listing.vms) == _comparable(folded.values())


def _comparable(vms: Iterable[Vm]) -> dict[str, Vm]:
    found = {}
    for vm in vms:
        copy = found[vm.uuid] = Vm()
        copy.CopyFrom(vm)
        copy.ClearField("verify_time")
        # what a snapshot shows is what a transition made
        assert vm.revision
    return found


def _bytes(transitions: Iterable[Transition]) -> list[bytes]:
    return [transition.SerializeToString(deterministic=True) for transition in transitions]


def _short(name: str, prefix: str) -> str:
    return name.removeprefix(prefix)
