"""What was asked cannot be done as asked; nothing was changed by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmagentd.errors.base import VmagentdError, utc

if TYPE_CHECKING:
    from vmagentd.model import JournalId, OperationId, Revision, Vm, VmUuid


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
            f"VM {vm.name} ({vm.uuid}) "
            + self.advice.format(state=vm.state, since=utc(vm.state_time)),
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

    advice = "is {state} (since {since}), which does not allow this; look at it and ask again"


class NoShutdownMethod(RequestError):
    """The guest cannot be asked to shut down."""

    def __init__(self, vm: VmUuid, why: str) -> None:
        super().__init__(
            f"VM {vm} cannot be asked to shut down or reboot ({why}); use force", vm=vm
        )


class OperationInProgress(RequestError):
    """Another operation on the VM is under way that this one can neither join nor end."""

    def __init__(self, vm: Vm, operation_id: OperationId, verb: str) -> None:
        super().__init__(
            f"VM {vm.name} ({vm.uuid}): {verb.lower()} operation {operation_id} is under way; "
            "wait for it, cancel it, or stop the VM by force",
            vm=vm.uuid,
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
