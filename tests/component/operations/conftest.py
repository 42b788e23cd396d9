"""Operations on real VMs of libvirt's test driver, each test with a host of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.component.operations.site import Daemon, Site, site
from vmagentd.hypervisor import eventloop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(scope="session", autouse=True)
def _event_loop_first() -> None:
    eventloop.start()


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Site]:
    """A host on which `a` and `b` run and `off` is defined."""
    async with site(tmp_path, ["a", "b"]) as place:
        place.define("off")
        yield place


@pytest.fixture
async def daemon(here: Site) -> AsyncIterator[Daemon]:
    async with here.daemon() as running:
        yield running
