"""The connection's life, on libvirt's test driver and on sockets where nobody answers."""

import asyncio
import socket
from pathlib import Path

import libvirt
import pytest

from tests.component.hypervisor.conftest import Connect
from tests.component.hypervisor.host import Host, until
from vmagentd.hypervisor import eventloop
from vmagentd.hypervisor.connection import Connection
from vmagentd.model import Event, EventKind, LinkLost, RawPair


async def test_the_event_loop_is_started_once() -> None:
    assert eventloop.start() is eventloop.start()
    assert not eventloop.start().done()


async def test_facts_of_the_connection(host: Host) -> None:
    facts = host.connection.facts
    assert facts is not None
    version = libvirt.getVersion()
    major, minor, release = version // 1_000_000, version // 1000 % 1000, version % 1000
    assert facts.libvirt_version == f"{major}.{minor}.{release}"
    assert facts.hypervisor_version.startswith("TEST ")
    _, memory_mib, cpus, *_ = host.raw.getInfo()
    assert (facts.host_memory_bytes, facts.host_cpus) == (memory_mib << 20, cpus)
    assert (host.connection.link, host.connection.cause) == (1, None)
    assert host.witness.losses == []


async def test_events_arrive_in_order_and_numbered(host: Host) -> None:
    vm = host.vm("a")
    domain = host.raw.lookupByName("a")
    run_id = domain.ID()
    for _ in range(500):
        domain.suspend()
        domain.resume()
    domain.destroy()
    domain.undefine()
    changes = ["SUSPENDED_PAUSED", "RESUMED_UNPAUSED"] * 500
    await host.until_seen(vm, *changes, "STOPPED_DESTROYED", "UNDEFINED")

    events = host.witness.events
    assert [event.number for event in events] == list(range(1, 1003))
    assert host.connection.events_taken == 1002
    assert events[0] == Event(
        number=1,
        vm=vm,
        name="a",
        kind=EventKind.SUSPENDED_PAUSED,
        raw=RawPair(libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED),
        run_id=run_id,
        observe_time=events[0].observe_time,
    )
    assert events[-1].run_id is None
    times = [event.observe_time for event in events]
    assert times == sorted(times)


async def test_definitions_are_events(host: Host) -> None:
    domain = host.define("new")
    domain.create()
    await host.until_seen(domain.UUIDString(), "DEFINED", "STARTED_RUNNING")


async def test_a_number_is_public_only_after_its_event_was_recorded(host: Host) -> None:
    numbers: list[tuple[int, int]] = []
    record = host.witness.record

    def note(fact: Event | LinkLost) -> None:
        assert isinstance(fact, Event)
        numbers.append((host.connection.events_taken, fact.number))
        record(fact)

    host.connection._record = note
    host.raw.lookupByName("a").suspend()
    await until(lambda: host.connection.events_taken == 1, "an event")
    assert numbers == [(0, 1)]


async def test_what_a_callback_raises_is_fatal(host: Host) -> None:
    error = RuntimeError("full")

    def fail(_: Event | LinkLost) -> None:
        raise error

    host.connection._record = fail
    host.witness.fatal_expected.append(error)
    host.raw.lookupByName("a").suspend()
    await until(lambda: host.witness.fatal, "fatal")
    assert host.connection.events_taken == 0


async def test_after_close_no_event_is_recorded(host: Host) -> None:
    raw, domain = host.raw, host.raw.lookupByName("a")
    await host.connection.close()
    domain.suspend()
    assert not host.connection.connected
    # another connection's event passes the same libvirt-events thread, after that one
    assert raw.isAlive()
    other = libvirt.open("test:///default")
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()
    number = other.domainEventRegisterAny(
        None,
        libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
        lambda *_: loop.call_soon_threadsafe(heard.set),
        None,
    )
    other.lookupByName("test").suspend()
    other.lookupByName("test").resume()
    await asyncio.wait_for(heard.wait(), 10)
    other.domainEventDeregisterAny(number)
    assert host.witness.events == []


async def test_a_socket_that_is_not_there(connect: Connect) -> None:
    async with connect("qemu:///system?socket=/nowhere/sock") as host:
        tried = count_opens(host.connection)
        await until(lambda: len(tried) >= 4, "four attempts")
        (loss,) = host.witness.losses
        assert "/nowhere/sock" in loss.cause
        assert loss.link == 0
        assert not host.connection.connected
        assert host.connection.cause == loss.cause
        assert host.connection.facts is None
        assert host.witness.ups == []


async def test_a_uri_that_nobody_knows(connect: Connect, tmp_path: Path) -> None:
    async with connect(f"test://{tmp_path}/missing.xml") as host:
        await until(lambda: host.witness.losses, "a loss")
        assert "missing.xml" in host.witness.losses[0].cause


async def test_libvirt_comes_up_later(connect: Connect, tmp_path: Path) -> None:
    description = tmp_path / "host.xml"
    async with connect(f"test://{description}") as host:
        await until(lambda: host.witness.losses, "a loss")
        description.write_text("<node/>")
        await until(lambda: host.connection.connected, "connected")
        assert host.witness.ups == [1]
        assert host.connection.link == 1
        assert len(host.witness.losses) == 1


async def test_a_broken_socket_is_tried_again_and_told_once(
    connect: Connect, tmp_path: Path
) -> None:
    """Accepts and hangs up: what a dying libvirtd does."""
    path = tmp_path / "sock"
    hung_up = 0

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal hung_up
        hung_up += 1
        writer.close()

    server = await asyncio.start_unix_server(hang_up, path)
    async with server, connect(f"qemu:///system?socket={path}") as host:
        await until(lambda: hung_up >= 3, "three attempts")
        assert len(host.witness.losses) == 1


async def test_an_open_that_hangs_is_told_and_not_repeated(tmp_path: Path) -> None:
    """A socket that accepts and never answers: what a stopped libvirtd looks like."""
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(0)
        seen: list[Event | LinkLost] = []
        connection = Connection(
            f"qemu:///system?socket={path}", record=seen.append, on_up=lambda: None, fatal=print
        )
        loop = asyncio.get_running_loop()
        keeping = asyncio.create_task(connection.keep())
        client, _ = await asyncio.wait_for(loop.sock_accept(listener), 10)
        with client:
            client.settimeout(0)
            assert await asyncio.wait_for(loop.sock_recv(client, 64), 10)  # its first request
            connection._blind("libvirt does not answer")  # as the timer does, after 10 s
            connection._blind("libvirt does not answer")
            began = loop.time()
            keeping.cancel()
            await asyncio.wait((keeping,))
            await connection.close()
            assert loop.time() - began < 3
            assert len(seen) == 1
            with pytest.raises(BlockingIOError):  # no second open beside one that hangs
                listener.accept()


def count_opens(connection: Connection) -> list[object]:
    tried: list[object] = []
    original = connection._connect

    def counting(life: object) -> object:
        tried.append(life)
        return original(life)  # type: ignore[arg-type]

    connection._connect = counting  # type: ignore[assignment,method-assign]
    return tried
