"""Prints answers that come in pages: each as it comes, or all of them made whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmagent.ctl.channel import connect
from vmagent.ctl.failures import ExitCode
from vmagent.ctl.screen import Output, Screen, print_json, tell

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from vmagent.ctl.pages import Page
    from vmagent.ctl.targets import Daemon
    from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceAsyncStub


async def print_pages(
    daemon: Daemon,
    output: Output,
    pages: Callable[[VmAgentServiceAsyncStub], AsyncIterator[Page]],
    whole: Callable[[AsyncIterator[Page]], Awaitable[Page]],
    show: Callable[[Screen, Page], None],
    *,
    rest: str = "older",
) -> ExitCode:
    """Print what a daemon lists.

    Args:
        daemon: the daemon.
        output: in which form.
        pages: asks it, and yields the pages.
        whole: makes one of them.
        show: prints that one for a person.
        rest: what those are that a limit has cut off.
    """
    async with connect(daemon) as service:
        if output is Output.JSONL:
            async for page in pages(service):
                print_json(page, output)
            return ExitCode.DONE
        answer = await whole(pages(service))
    if output is Output.JSON:
        print_json(answer, output)
        return ExitCode.DONE
    show(Screen(), answer)
    if answer.next_page_token:
        tell(f"there are {rest} ones; --limit says how many are shown, --limit 0 shows all")
    return ExitCode.DONE
