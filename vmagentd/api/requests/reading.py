"""Requests to read: which VMs, which history, which page of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmagentd.api import convert
from vmagentd.api.pages import Pages
from vmagentd.api.requests.fields import (
    MAX_PAGE_SIZE,
    Reference,
    after_operation,
    after_revision,
    choices,
    glob,
    interval,
    name,
    page_size,
    reference,
    revision,
)
from vmagentd.errors import InvalidField
from vmagentd.model import HistoryFilter, OperationFilter, VmState

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmagent.v1.vm_agent_service_pb2 import (
        ListOperationsRequest,
        ListTransitionsRequest,
        ListVmsRequest,
    )

    from vmagentd.model import OperationPlace, Revision


@dataclass(frozen=True, slots=True, kw_only=True)
class ListVms:
    """A parsed ListVmsRequest; `after` is name and UUID of the last VM of the page before."""

    states: frozenset[VmState]
    matches: Callable[[str], object]
    page_size: int
    after: tuple[str, str] | None
    pages: Pages


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A parsed ListTransitionsRequest; `which` still lacks the VM, which is in `vm`."""

    vm: Reference | None
    which: HistoryFilter
    page_size: int
    after: Revision | None
    pages: Pages


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOperations:
    """A parsed ListOperationsRequest; `which` still lacks the VM, which is in `vm`."""

    vm: Reference | None
    which: OperationFilter
    page_size: int
    after: OperationPlace | None
    pages: Pages


def list_vms(request: ListVmsRequest, secret: bytes) -> ListVms:
    """Parse which VMs to list; a page token is good where the *secret* is the same."""
    states = choices("states", request.states, convert.VM_STATE)
    pages = Pages(request, secret)
    key = pages.after(request.page_token)
    return ListVms(
        states=states or frozenset(VmState) - {VmState.GONE},
        matches=glob("name_glob", request.name_glob),
        page_size=page_size(request.page_size, MAX_PAGE_SIZE),
        after=None if key is None else (key[36:], key[:36]),
        pages=pages,
    )


def history(request: ListTransitionsRequest, secret: bytes) -> History:
    """Parse which transitions to read; a page token is good where the *secret* is the same."""
    low, high = (
        revision("min_revision", request.min_revision),
        revision("max_revision", request.max_revision),
    )
    if low and high and low > high:
        raise InvalidField("min_revision", f"{low} is greater than max_revision {high}")
    since, until = interval(request, "min_time", "max_time")
    pages = Pages(request, secret)
    return History(
        vm=reference("vm", request.vm) if request.vm else None,
        which=HistoryFilter(
            min_revision=low or None,
            max_revision=high or None,
            min_time=since,
            max_time=until,
            oldest_first=request.oldest_first,
        ),
        page_size=page_size(request.page_size, 100),
        after=after_revision(pages.after(request.page_token)),
        pages=pages,
    )


def list_operations(request: ListOperationsRequest, secret: bytes) -> ListOperations:
    """Parse which operations to list; a page token is good where the *secret* is the same."""
    name("actor", request.actor)
    since, until = interval(request, "min_accept_time", "max_accept_time")
    pages = Pages(request, secret)
    return ListOperations(
        vm=reference("vm", request.vm) if request.vm else None,
        which=OperationFilter(
            actor=request.actor or None,
            verbs=choices("verbs", request.verbs, convert.OPERATION_VERB),
            phases=choices("phases", request.phases, convert.OPERATION_PHASE),
            outcomes=choices("outcomes", request.outcomes, convert.OPERATION_OUTCOME),
            min_accept_time=since,
            max_accept_time=until,
        ),
        page_size=page_size(request.page_size, 100),
        after=after_operation(pages.after(request.page_token)),
        pages=pages,
    )
