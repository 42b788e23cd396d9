"""Answers that come in pages, made whole."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, TypeVar

from vmagent.ctl.channel import ANSWER_TIMEOUT_S
from vmagent.v1.vm_agent_service_pb2 import (
    ListAuditRecordsRequest,
    ListAuditRecordsResponse,
    ListOperationsRequest,
    ListOperationsResponse,
    ListTransitionsRequest,
    ListTransitionsResponse,
    ListVmsRequest,
    ListVmsResponse,
)
from vmagent.v1.vm_pb2 import VmState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sized

    from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceAsyncStub

_LARGEST_PAGE = 1000

_Asking = TypeVar(
    "_Asking", ListTransitionsRequest, ListOperationsRequest, ListAuditRecordsRequest
)
_Rows = TypeVar("_Rows", ListOperationsResponse, ListAuditRecordsResponse)
_Limited = TypeVar(
    "_Limited", ListTransitionsResponse, ListOperationsResponse, ListAuditRecordsResponse
)
Page = TypeVar(
    "Page",
    ListVmsResponse,
    ListTransitionsResponse,
    ListOperationsResponse,
    ListAuditRecordsResponse,
)


async def vm_pages(
    service: VmAgentServiceAsyncStub, requests: Iterable[ListVmsRequest]
) -> AsyncIterator[ListVmsResponse]:
    """Yield every page of every answer."""
    for request in requests:
        following = copy.deepcopy(request)
        while True:
            page = await service.ListVms(following, timeout=ANSWER_TIMEOUT_S)
            yield page
            if not page.next_page_token:
                break
            following.page_token = page.next_page_token


async def whole_list(pages: AsyncIterator[ListVmsResponse]) -> ListVmsResponse:
    """Return all pages of all answers as one, by name, then UUID."""
    whole = ListVmsResponse()
    vms = {}
    async for page in pages:
        # A VM may change between two pages and then be in both: the later one is truer.
        vms.update({vm.uuid: vm for vm in page.vms})
        # Each page is true at its own place. Whoever watches from the first one's misses
        # nothing of the others.
        if not whole.HasField("cursor"):
            whole.cursor.CopyFrom(page.cursor)
        whole.link.CopyFrom(page.link)
    whole.vms.extend(sorted(vms.values(), key=lambda vm: (vm.name, vm.uuid)))
    return whole


def list_requests(
    states: Iterable[VmState.ValueType], name_glob: str, *, with_gone: bool
) -> list[ListVmsRequest]:
    """Return the requests that together ask for what is wanted.

    Without states a request means every state but GONE, also those of a newer daemon that have
    no name here; so the gone ones are asked for beside them, not by a list of all states.
    """
    states = list(states)
    requests = [ListVmsRequest(states=states, name_glob=name_glob)]
    if with_gone and VmState.VM_STATE_GONE not in states:
        gone = [VmState.VM_STATE_GONE]
        requests.append(ListVmsRequest(states=gone, name_glob=name_glob))
    return requests


def history_pages(
    service: VmAgentServiceAsyncStub, request: ListTransitionsRequest, limit: int
) -> AsyncIterator[ListTransitionsResponse]:
    """Yield pages of history until *limit* transitions were read; 0 means all."""
    return _pages(service.ListTransitions, request, limit, lambda page: page.transitions)


async def whole_history(pages: AsyncIterator[ListTransitionsResponse]) -> ListTransitionsResponse:
    """Return the pages of a history as one; it keeps the token if the limit cut it."""
    whole = ListTransitionsResponse()
    async for page in pages:
        whole.transitions.extend(page.transitions)
        # An interval that reaches over the end of a page is in both.
        fresh = [i for i in page.blind_intervals if i not in whole.blind_intervals]
        whole.blind_intervals.extend(fresh)
        whole.next_page_token = page.next_page_token
        whole.oldest_revision = page.oldest_revision
        whole.link.CopyFrom(page.link)
    return whole


def audit_pages(
    service: VmAgentServiceAsyncStub, request: ListAuditRecordsRequest, limit: int
) -> AsyncIterator[ListAuditRecordsResponse]:
    """Yield pages of audit records until *limit* were read; 0 means all."""
    return _pages(service.ListAuditRecords, request, limit, lambda page: page.records)


def operation_pages(
    service: VmAgentServiceAsyncStub, request: ListOperationsRequest, limit: int
) -> AsyncIterator[ListOperationsResponse]:
    """Yield pages of operations until *limit* were read; 0 means all."""
    return _pages(service.ListOperations, request, limit, lambda page: page.operations)


async def joined(pages: AsyncIterator[_Rows]) -> _Rows:
    """Return the pages of what is only rows as one; it keeps the token if the limit cut it."""
    whole = await anext(pages)
    async for page in pages:
        whole.MergeFrom(page)
        whole.next_page_token = page.next_page_token
    return whole


async def _pages(
    call: Callable[..., Awaitable[_Limited]],
    request: _Asking,
    limit: int,
    elements: Callable[[_Limited], Sized],
) -> AsyncIterator[_Limited]:
    following = copy.deepcopy(request)
    count = 0
    while True:
        rest = limit - count if limit else _LARGEST_PAGE
        following.page_size = min(rest, _LARGEST_PAGE)
        page = await call(following, timeout=ANSWER_TIMEOUT_S)
        yield page
        count += len(elements(page))
        if not page.next_page_token or (limit and count >= limit):
            return
        following.page_token = page.next_page_token
