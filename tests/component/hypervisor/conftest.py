"""libvirt's own test driver, each test with a host of its own; and a libvirtd to be hurt."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.component.hypervisor.host import Host, Witness, host_xml, until
from tests.system.domains import Guests
from tests.system.guests import Roms
from tests.system.libvirtd import PrivateLibvirtd
from tests.system.machine import CannotRunError, check_machine
from vmagentd.hypervisor import eventloop
from vmagentd.hypervisor.connection import Connection
from vmagentd.hypervisor.domains import Domains

Connect = Callable[..., contextlib.AbstractAsyncContextManager[Host]]


@contextlib.asynccontextmanager
async def connecting(uri: str, *, keepalive_s: int = 5) -> AsyncIterator[Host]:
    witness = Witness()
    connection = Connection(
        uri,
        record=witness.record,
        on_up=witness.up,
        fatal=witness.fatal.append,
        jitter=lambda longest: min(longest, 0.1),
        keepalive_s=keepalive_s,
    )
    host = Host(connection, Domains(connection), witness)
    keeping = asyncio.create_task(connection.keep(), name="keep")
    try:
        yield host
        assert not keeping.done()
        assert witness.fatal == witness.fatal_expected
    finally:
        keeping.cancel()
        await asyncio.wait((keeping,))
        await connection.close()
        host.domains.close()


@pytest.fixture
def connect() -> Connect:
    """What connects to a URI, without waiting until the connection is up; see `connecting`."""
    return connecting


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    """A host of libvirt's test driver, with the VMs `a` and `b` running."""
    description = tmp_path / "host.xml"
    description.write_text(host_xml(["a", "b"]))
    async with connecting(f"test://{description}") as host:
        await until(lambda: host.connection.connected, "connected")
        yield host


@pytest.fixture(scope="session", autouse=True)
def _event_loop_first() -> None:
    eventloop.start()  # raw connections of the tests need it too, before they are opened


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[PrivateLibvirtd]:
    """A libvirtd of this module's own."""
    try:
        check_machine()
    except CannotRunError as why:
        pytest.skip(str(why))
    with PrivateLibvirtd() as private:
        private.connection.getCapabilities()
        yield private


@pytest.fixture(scope="module")
def roms(libvirtd: PrivateLibvirtd) -> Roms:
    directory = libvirtd.directory / "roms"
    directory.mkdir(mode=0o755)
    return Roms(directory)


@pytest.fixture
def guest(libvirtd: PrivateLibvirtd, roms: Roms) -> Iterator[Guests]:
    """Makes guests on the module's libvirtd."""
    guests = Guests(libvirtd, roms)
    yield guests
    guests.remove_all()


@pytest.fixture
async def real(libvirtd: PrivateLibvirtd) -> AsyncIterator[Host]:
    """A connection to the module's libvirtd."""
    async with connecting(libvirtd.uri) as host:
        await until(lambda: host.connection.connected, "connected")
        yield host
