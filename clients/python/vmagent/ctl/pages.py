"""Answers that come in pages, made whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmagent.ctl.channel import ANSWER_TIMEOUT_S
from vmagent.v1.vm_agent_service_pb2 import (
    ListTransitionsRequest,
    ListTransitionsResponse,
    ListVmsRequest,
    ListVmsResponse,
)
from vmagent.v1.vm_pb2 import VmState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceAsyncStub

_LARGEST_PAGE = 1000


async def vm_pages(
    service: VmAgentServiceAsyncStub, request: ListVmsRequest
) -> AsyncIterator[ListVmsResponse]:
    """Yield every page of an answer."""
    following = ListVmsRequest()
    following.CopyFrom(request)
    while True:
        page = await service.ListVms(following, timeout=ANSWER_TIMEOUT_S)
        yield page
        if not page.next_page_token:
            return
        following.page_token = page.next_page_token


async def whole_list(
    service: VmAgentServiceAsyncStub, requests: Iterable[ListVmsRequest]
) -> ListVmsResponse:
    """Return all pages of all answers as one, by name, then UUID."""
    whole = ListVmsResponse()
    vms = {}
    for request in requests:
        async for page in vm_pages(service, request):
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
    if with_gone and not states:
        gone = [VmState.VM_STATE_GONE]
        requests.append(ListVmsRequest(states=gone, name_glob=name_glob))
    return requests


async def history_pages(
    service: VmAgentServiceAsyncStub, request: ListTransitionsRequest, limit: int
) -> AsyncIterator[ListTransitionsResponse]:
    """Yield pages of history until *limit* transitions were read; 0 means all."""
    following = ListTransitionsRequest()
    following.CopyFrom(request)
    count = 0
    while True:
        rest = limit - count if limit else _LARGEST_PAGE
        following.page_size = min(rest, _LARGEST_PAGE)
        page = await service.ListTransitions(following, timeout=ANSWER_TIMEOUT_S)
        yield page
        count += len(page.transitions)
        if not page.next_page_token or (limit and count >= limit):
            return
        following.page_token = page.next_page_token


async def whole_history(
    service: VmAgentServiceAsyncStub, request: ListTransitionsRequest, limit: int
) -> ListTransitionsResponse:
    """Return the pages of a history as one; it keeps the token if the limit cut it."""
    whole = ListTransitionsResponse()
    async for page in history_pages(service, request, limit):
        whole.transitions.extend(page.transitions)
        # An interval that reaches over the end of a page is in both.
        fresh = [i for i in page.blind_intervals if i not in whole.blind_intervals]
        whole.blind_intervals.extend(fresh)
        whole.next_page_token = page.next_page_token
        whole.oldest_revision = page.oldest_revision
        whole.link.CopyFrom(page.link)
    return whole
