"""Which VM a client means, and whether it exists for that client.

A VM that the caller may not see is answered for exactly as one that nobody ever heard of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from vmagentd.api import access
from vmagentd.errors import RoleDenied, VmNotFound
from vmagentd.model import Role
from vmagentd.watch import shown

if TYPE_CHECKING:
    from vmagentd.api.requests import Reference
    from vmagentd.journal.store import Journal
    from vmagentd.model import Operation, Transition, Vm


def known(journal: Journal, reference: Reference) -> Vm | None:
    """Return the VM that is meant, None if there is none for the caller."""
    caller = access.caller()
    vms = (journal.find(spelling) for spelling in reference)
    return next((vm for vm in vms if vm is not None and caller.sees(vm.name)), None)


def found(journal: Journal, reference: Reference) -> Vm:
    """Return the VM that is meant.

    Raises:
        VmNotFound: the journal never heard of it, or the caller may not.
    """
    vm = known(journal, reference)
    if vm is None:
        raise VmNotFound(reference[-1])
    return vm


def to_operate(journal: Journal, reference: Reference) -> str:
    """Return that spelling of *reference* by which a VM is known, else the one to ask libvirt by.

    Raises:
        VmNotFound: it does not exist for the caller.
        RoleDenied: the caller sees it, and may do nothing to it.
    """
    caller = access.caller()
    for spelling in reference:
        vm = journal.find(spelling)
        if vm is not None and caller.sees(vm.name):
            if not caller.has_for(Role.OPERATOR, vm.name):
                raise RoleDenied(caller, Role.OPERATOR, vm_name=vm.name)
            return spelling
    if caller.has_for_all(Role.OPERATOR):
        return reference[0]
    # libvirt may know a VM that the journal does not. For whoever may do this to some VMs only
    # it is asked by a name that is one of theirs, never by UUID, which could be anybody's.
    name = reference[-1]
    if _is_uuid(name) or not caller.sees(name):
        raise VmNotFound(name)
    if not caller.has_for(Role.OPERATOR, name):
        raise RoleDenied(caller, Role.OPERATOR, vm_name=name)
    return name


def sees_transition(transition: Transition) -> bool:
    """Return whether the present caller is shown a transition: by the name before, or after."""
    return shown(transition, access.caller().sees)


def sees_operation(journal: Journal, operation: Operation) -> bool:
    """Return whether the VM of *operation* exists for the present caller."""
    return access.caller().sees(_name(journal, operation))


def check_may_cancel(journal: Journal, operation: Operation) -> None:
    """Refuse a caller who sees the operation, and may do nothing to its VM.

    Raises:
        RoleDenied: it may not.
    """
    caller, name = access.caller(), _name(journal, operation)
    if not caller.has_for(Role.OPERATOR, name):
        raise RoleDenied(caller, Role.OPERATOR, vm_name=name)


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _name(journal: Journal, operation: Operation) -> str:
    """Return the name of its VM now, or then if the journal has forgotten it."""
    vm = journal.vms.get(operation.vm)
    return vm.name if vm else operation.vm_name
