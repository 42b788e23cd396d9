"""Everything that can go wrong and be told.

    VmagentdError
    ├── RequestError                what was asked cannot be done as asked
    │   ├── InvalidField
    │   ├── VmNotFound · OperationNotFound
    │   ├── VmPaused · VmSleeping · VmCrashed · VmMigratedAway · VmInState · NoShutdownMethod
    │   ├── OperationInProgress · RequestIdReused
    │   └── RevisionCompacted · JournalReplaced · WatcherTooSlow
    ├── OperationEnded              an accepted operation did not succeed
    │   └── StartFailed · StartTimedOut · GraceExpired · ForceTimedOut
    │       CancelledByStop · OperationCancelled · OperationInterrupted
    ├── HypervisorError             libvirt refused, or could not be asked
    │   └── LibvirtUnreachable · OutcomeUnknown · LibvirtInvalidState · LibvirtBusy
    │       LibvirtDenied · LibvirtUnsupported · HostExhausted · LibvirtRefused
    ├── JournalUnwritable           nothing new can be promised
    ├── ShuttingDown                the daemon ends
    └── StartupError                the daemon cannot run; one line for the operator
        └── ConfigError · SocketInUse · StateDirInUse · JournalUnusable

An error builds its own sentence from its facts: what is, and what to do next. `facts` are the
same facts by name, as text: they travel to clients and into the journal with a failed operation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from vmagentd.model import JournalId, OperationId, Revision, Vm, VmUuid


def utc(time: datetime) -> str:
    """Return *time* as people and programs read it: `2026-01-31T23:59:59.123Z`."""
    return f"{time:%FT%T}.{time.microsecond // 1000:03d}Z"


class VmagentdError(Exception):
    """Any error that the daemon can tell of."""

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.facts = {name: str(fact) for name, fact in facts.items() if fact is not None}


class RequestError(VmagentdError):
    """What was asked cannot be done as asked; nothing was changed by it."""


class InvalidField(RequestError):
    """A field of a request is missing, malformed or out of range."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}", field=field)
        self.field, self.problem = field, problem


class VmNotFound(RequestError):
    """libvirt on this host does not know the VM; `last` is what the journal still has of it."""

    def __init__(self, ref: str, last: Vm | None = None) -> None:
        if last is None:
            message = (
                f"no VM {ref!r} on this host; list the VMs to see their names, "
                "or ask the host on which it is defined"
            )
            super().__init__(message, vm=ref)
        else:
            message = (
                f"VM {last.name} ({last.uuid}) is no longer defined on this host "
                f"(gone since {utc(last.state_time)}); it must be recreated before it can be used"
            )
            super().__init__(
                message, vm=last.uuid, last_state=last.state, last_revision=last.revision
            )
        self.ref, self.last = ref, last


class OperationNotFound(RequestError):
    """No operation of that identity is kept."""

    def __init__(self, operation_id: str) -> None:
        super().__init__(
            f"no operation {operation_id!r}; operations are kept for days, not for ever",
            operation_id=operation_id,
        )


class _VmStateError(RequestError):
    """The VM is in a state in which this cannot be done."""

    advice = ""

    def __init__(self, vm: Vm) -> None:
        super().__init__(
            f"VM {vm.name} ({vm.uuid}) {self.advice.format(since=utc(vm.state_time))}",
            vm=vm.uuid,
            state=vm.state,
            since=utc(vm.state_time),
        )
        self.vm = vm


class VmPaused(_VmStateError):
    """The VM is paused: a guest that gets no CPU can neither start nor shut down."""

    advice = "has been paused since {since}; resume it, or stop it by force"


class VmSleeping(_VmStateError):
    """The guest sleeps: it must be woken before it can do anything."""

    advice = "has been sleeping (ACPI S3) since {since}; wake it up, or stop it by force"


class VmCrashed(_VmStateError):
    """The guest panicked and its hypervisor process was preserved: only force ends it."""

    advice = "panicked at {since} and its process was preserved; stop it by force"


class VmMigratedAway(_VmStateError):
    """The VM left for another host: its disk may be in use there."""

    advice = (
        "was migrated away at {since} and its disk may be in use on the other host; "
        "start it there, or here with force if it certainly does not run there"
    )


class VmInState(_VmStateError):
    """The VM is in some other state in which this cannot be done."""

    advice = "does not allow this in its present state (since {since}); look at it and ask again"


class NoShutdownMethod(RequestError):
    """The guest cannot be asked to shut down."""

    def __init__(self, vm: VmUuid, why: str) -> None:
        super().__init__(f"VM {vm} cannot be asked to shut down ({why}); stop it by force", vm=vm)


class OperationInProgress(RequestError):
    """Another operation on the VM is under way that this one can neither join nor end."""

    def __init__(self, vm: VmUuid, operation_id: OperationId, verb: str) -> None:
        super().__init__(
            f"VM {vm}: {verb.lower()} operation {operation_id} is under way; "
            "wait for it, cancel it, or stop the VM by force",
            vm=vm,
            operation_id=operation_id,
            verb=verb,
        )


class RequestIdReused(RequestError):
    """The request id belongs to an operation with other parameters."""

    def __init__(self, request_id: str, operation_id: OperationId) -> None:
        super().__init__(
            f"request_id {request_id!r} was used for operation {operation_id} "
            "with other parameters; take a new one",
            request_id=request_id,
            operation_id=operation_id,
        )


class RevisionCompacted(RequestError):
    """History at the place asked for is not kept any more."""

    def __init__(self, revision: Revision, oldest: Revision) -> None:
        super().__init__(
            f"history after revision {revision} is compacted, the oldest kept revision is "
            f"{oldest}; start again with a snapshot",
            oldest_revision=oldest,
        )


class JournalReplaced(RequestError):
    """The place asked for is in another journal, or in a later copy of this one."""

    def __init__(self, journal_id: JournalId, head: Revision) -> None:
        super().__init__(
            f"this is journal {journal_id} with newest revision {head}, not the one to resume "
            "from, or an older copy of it; start again with a snapshot",
            journal_id=journal_id,
            head_revision=head,
        )


class WatcherTooSlow(RequestError):
    """The watcher did not read for too long."""

    def __init__(self, last: Revision) -> None:
        super().__init__(
            f"the watcher did not read for too long; resume after revision {last}",
            last_revision=last,
        )


class OperationEnded(VmagentdError):
    """An accepted operation did not succeed; the VM's true state is in the journal."""


class StartFailed(OperationEnded):
    """libvirt could not start the VM."""

    def __init__(self, vm: Vm, code: int, domain: int, message: str) -> None:
        super().__init__(
            f"VM {vm.name} ({vm.uuid}) could not be started, libvirt says: {message}",
            vm=vm.uuid,
            libvirt_code=code,
            libvirt_domain=domain,
            libvirt_message=message,
        )


class StartTimedOut(OperationEnded):
    """The VM was not up in time."""

    def __init__(self, vm: Vm, timeout: timedelta) -> None:
        super().__init__(
            f"VM {vm.name} ({vm.uuid}) was not running within {timeout.total_seconds():g} s, "
            f"it is {vm.state}; watch it, it may still come up",
            vm=vm.uuid,
            state=vm.state,
            timeout_s=f"{timeout.total_seconds():g}",
        )


class GraceExpired(OperationEnded):
    """The guest did not shut down within the grace period; the VM was left alone."""

    def __init__(self, vm: Vm, grace_period: timedelta) -> None:
        super().__init__(
            f"VM {vm.name} ({vm.uuid}) did not shut down within "
            f"{grace_period.total_seconds():g} s and is still {vm.state}; "
            "give it more time, or stop it by force",
            vm=vm.uuid,
            state=vm.state,
            grace_period_s=f"{grace_period.total_seconds():g}",
        )


class ForceTimedOut(OperationEnded):
    """The VM was forced off and libvirt does not report it off."""

    def __init__(self, vm: Vm) -> None:
        super().__init__(
            f"VM {vm.name} ({vm.uuid}) was forced off but is still {vm.state}; its hypervisor "
            "process hangs in the kernel: look at the host's storage",
            vm=vm.uuid,
            state=vm.state,
        )


class CancelledByStop(OperationEnded):
    """A Stop ended a Start that had not reached its end."""

    def __init__(self, vm: VmUuid, stop_id: OperationId) -> None:
        super().__init__(
            f"VM {vm}: the start was cancelled by stop operation {stop_id}",
            vm=vm,
            operation_id=stop_id,
        )


class OperationCancelled(OperationEnded):
    """Somebody cancelled the operation; the VM was left as it was."""

    def __init__(self, vm: VmUuid, operation_id: OperationId) -> None:
        super().__init__(
            f"VM {vm}: operation {operation_id} was cancelled; the VM was left as it was",
            vm=vm,
            operation_id=operation_id,
        )


class OperationInterrupted(OperationEnded):
    """The daemon ended before libvirt was asked."""

    def __init__(self, vm: VmUuid, operation_id: OperationId) -> None:
        super().__init__(
            f"VM {vm}: the daemon ended before operation {operation_id} took effect; ask again",
            vm=vm,
            operation_id=operation_id,
        )


class HypervisorError(VmagentdError):
    """libvirt refused, or could not be asked."""


class LibvirtUnreachable(HypervisorError):
    """libvirt cannot be asked. It says nothing about any VM."""

    def __init__(self, cause: str, blind_since: datetime | None = None) -> None:
        since = f" since {utc(blind_since)}" if blind_since else ""
        super().__init__(
            f"libvirt cannot be asked{since} ({cause}); the daemon keeps trying, so try again",
            blind_since=utc(blind_since) if blind_since else None,
            cause=cause,
        )
        self.cause = cause


class OutcomeUnknown(HypervisorError):
    """libvirt did not answer in time, or the link broke during the call; the VM may still change.

    Never repeat the call blindly: the event or the next query settles it.
    """

    def __init__(self, vm: VmUuid | None, call: str, why: str) -> None:
        super().__init__(
            f"libvirt call {call} for VM {vm}: outcome unknown ({why}); "
            "watch the VM, it may still change",
            vm=vm,
            call=call,
        )


class _LibvirtError(HypervisorError):
    """libvirt answered with an error."""

    sentence = "libvirt refused"

    def __init__(self, vm: VmUuid | None, code: int, domain: int, message: str) -> None:
        super().__init__(
            f"{self.sentence}: {message}",
            vm=vm,
            libvirt_code=code,
            libvirt_domain=domain,
            libvirt_message=message,
        )
        self.vm, self.code, self.domain, self.message = vm, code, domain, message


class LibvirtInvalidState(_LibvirtError):
    """The VM is not in a state for this call: look at its state before judging."""

    sentence = "libvirt says that the VM's state does not allow this; look at it and ask again"


class LibvirtBusy(_LibvirtError):
    """Another job holds the VM's lock in libvirt."""

    sentence = "libvirt is busy with another job on the VM, try again later"


class LibvirtDenied(_LibvirtError):
    """libvirt does not let the daemon do this."""

    sentence = "libvirt denies this to the daemon, look at its polkit rules"


class LibvirtUnsupported(_LibvirtError):
    """This hypervisor cannot do this."""

    sentence = "this hypervisor cannot do this"


class HostExhausted(_LibvirtError):
    """The host lacks what the VM needs."""

    sentence = "the host lacks what the VM needs, free some or use another host"


class LibvirtRefused(_LibvirtError):
    """libvirt refused for a reason that has no type of its own."""

    sentence = "libvirt refused, look at the VM's definition and at libvirt's log"


class JournalUnwritable(VmagentdError):
    """The journal cannot be written, so nothing new can be promised."""

    def __init__(self, cause: str) -> None:
        super().__init__(
            f"the journal cannot be written ({cause}); make room on its disk and try again",
            cause=cause,
        )


class ShuttingDown(VmagentdError):
    """The daemon ends. Nothing is lost: resume elsewhere or later."""

    def __init__(self) -> None:
        super().__init__("vmagentd is shutting down; connect again and resume, nothing is lost")


class StartupError(VmagentdError):
    """The daemon cannot run; its sentence is the one line that the operator sees."""


class ConfigError(StartupError):
    """The configuration cannot be used; every bad key is named."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        super().__init__(f"{source}: " + "; ".join(problems))
        self.problems = tuple(problems)


class SocketInUse(StartupError):
    """Another daemon serves the socket, or something that is no socket is in its place."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"socket {path}: {why}; stop that one, or choose another with --socket")


class StateDirInUse(StartupError):
    """Another daemon holds the state directory, or it cannot be used."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"state directory {path}: {why}; choose another with --state-dir, or mend this one"
        )


class JournalUnusable(StartupError):
    """The journal's file cannot be used by this version of the daemon."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"journal {path}: {why}")
