"""The threads for calls that block."""

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from datetime import timedelta

import pytest

from tests.component.hypervisor.host import until
from vmagentd.pool import NotRun, Occupied, Pool

SOON = timedelta(seconds=10)
SHORT = timedelta(milliseconds=50)
SECOND = timedelta(seconds=1)


class Gate:
    """Something that calls wait for, until the test opens it."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.entered: list[int] = []

    def wait(self, number: int) -> int:
        self.entered.append(number)
        assert self._open.wait(10)
        return number

    def open(self) -> None:
        self._open.set()

    async def until_entered(self, count: int) -> None:
        await until(lambda: len(self.entered) >= count, f"{count} calls under way")


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool("pool", 2, backlog=3)
    yield pool
    pool.close()


async def test_it_returns_and_raises_what_the_call_does(pool: Pool) -> None:
    assert await pool.run(lambda _: 42, deadline=SOON) == 42

    def fail(_: int) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await pool.run(fail)


async def test_threads_have_names_and_start_when_they_are_needed(pool: Pool, gate: Gate) -> None:
    def name(_: int) -> str:
        return threading.current_thread().name

    for _ in range(3):
        assert await pool.run(name) == "pool-0"
    first = asyncio.create_task(pool.run(gate.wait))
    await gate.until_entered(1)
    assert await pool.run(name) == "pool-1"
    gate.open()
    assert await first == 0


async def test_no_more_threads_than_the_limit_and_no_more_calls_than_the_backlog(
    pool: Pool, gate: Gate
) -> None:
    calls = [asyncio.create_task(pool.run(gate.wait)) for _ in range(5)]
    await gate.until_entered(2)
    with pytest.raises(NotRun):
        await pool.run(gate.wait)
    assert sorted(gate.entered) == [0, 1]
    gate.open()
    assert set(await asyncio.gather(*calls)) <= {0, 1}
    assert len(gate.entered) == 5
    assert await pool.run(lambda _: "free again") == "free again"


async def test_a_call_goes_on_after_its_deadline(
    pool: Pool, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "vmagentd.pool")
    ended = threading.Event()

    def late(number: int) -> None:
        try:
            gate.wait(number)
            raise ValueError("too late")
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        await pool.run(late, deadline=0.5 * SECOND)  # by then it has begun
    assert not ended.is_set()
    gate.open()
    assert await pool.run(lambda _: ended.wait(10))
    await until(lambda: "too late" in caplog.text, "the late exception in the log")


async def test_a_call_that_had_no_thread_in_time_never_begins(pool: Pool, gate: Gate) -> None:
    hanging = [asyncio.create_task(pool.run(gate.wait)) for _ in range(2)]
    await gate.until_entered(2)
    with pytest.raises(NotRun):
        await pool.run(gate.wait, deadline=SHORT)
    cancelled = asyncio.create_task(pool.run(gate.wait))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    gate.open()
    await asyncio.gather(*hanging)
    await pool.run(lambda _: None)
    assert len(gate.entered) == 2


async def test_a_call_in_a_hurry_has_little_time_left(pool: Pool, gate: Gate) -> None:
    hurry = asyncio.get_running_loop().create_future()
    call = asyncio.create_task(pool.run(gate.wait, hurry=hurry))
    await gate.until_entered(1)
    hurry.set_result(None)
    with pytest.raises(TimeoutError):
        await call
    assert await pool.run(lambda _: "in time", hurry=hurry) == "in time"


async def test_cancelling_the_await_does_not_stop_the_call(pool: Pool, gate: Gate) -> None:
    call = asyncio.create_task(pool.run(gate.wait))
    await gate.until_entered(1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    gate.open()
    assert await pool.run(lambda number: number) in {0, 1}


@pytest.mark.parametrize("fails", [False, True])
async def test_one_that_was_over_when_it_was_cancelled_counts_as_it_ended(
    pool: Pool, *, fails: bool
) -> None:
    told: list[str] = []

    def end(_: int) -> None:
        if fails:
            raise ValueError

    call = asyncio.create_task(pool.run(end, on_end=lambda how, _: told.append(how)))
    await asyncio.sleep(0)  # it is begun; the loop hears of its end with its next turn
    wait(pool._unfinished)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert told == ["ValueError" if fails else "ok"]


async def test_what_goes_on_counts_as_cancelled(pool: Pool, gate: Gate) -> None:
    told: list[str] = []
    call = asyncio.create_task(pool.run(gate.wait, on_end=lambda how, _: told.append(how)))
    await gate.until_entered(1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert told == ["CancelledError"]


async def test_what_was_given_up_does_not_pile_up(pool: Pool, gate: Gate) -> None:
    """It lies in the queue for as long as no thread comes to it."""
    hanging = [asyncio.create_task(pool.run(gate.wait)) for _ in range(2)]
    await gate.until_entered(2)
    for _ in range(20):
        with pytest.raises(NotRun):
            await pool.run(lambda _: None, deadline=timedelta())
    assert pool._jobs.qsize() <= 5
    gate.open()
    await asyncio.gather(*hanging)
    await until(lambda: not pool._jobs.qsize(), "the queue seen through")
    assert await pool.run(lambda _: "free again") == "free again"


class TestLanes:
    async def test_one_call_at_a_time(self, pool: Pool, gate: Gate) -> None:
        first = asyncio.create_task(pool.run(gate.wait, lane="a"))
        await gate.until_entered(1)
        second = asyncio.create_task(pool.run(gate.wait, lane="a"))
        # it is not at the gate, and it takes no thread from those of other lanes
        assert await pool.run(lambda number: number, lane="b") == 1
        assert await pool.run(lambda number: number) == 1
        assert len(gate.entered) == 1
        assert (pool.has("a"), pool.has("b")) == (True, False)
        gate.open()
        await asyncio.gather(first, second)
        assert len(gate.entered) == 2
        await until(lambda: not pool.has("a"), "the lane free")

    async def test_one_that_was_given_up_has_it_until_it_returns(
        self, pool: Pool, gate: Gate
    ) -> None:
        first = asyncio.create_task(pool.run(gate.wait, lane="a"))
        await gate.until_entered(1)
        first.cancel()
        await asyncio.wait([first])
        for _ in range(3):
            with pytest.raises(Occupied):
                await pool.run(gate.wait, lane="a", deadline=SHORT)
        assert (len(gate.entered), pool._threads) == (1, 1)
        gate.open()
        assert await pool.run(lambda _: "mine", lane="a", deadline=SOON) == "mine"

    async def test_one_that_never_begins_leaves_it(self, pool: Pool, gate: Gate) -> None:
        hanging = [asyncio.create_task(pool.run(gate.wait)) for _ in range(2)]
        await gate.until_entered(2)
        for _ in range(3):  # not Occupied
            with pytest.raises(NotRun):
                await pool.run(gate.wait, lane="a", deadline=SHORT)
        gate.open()
        await asyncio.gather(*hanging)

    async def test_one_in_a_hurry_does_not_wait_for_it(self, pool: Pool, gate: Gate) -> None:
        hurry = asyncio.get_running_loop().create_future()
        first = asyncio.create_task(pool.run(gate.wait, lane="a"))
        await gate.until_entered(1)
        second = asyncio.create_task(pool.run(gate.wait, lane="a", hurry=hurry))
        hurry.set_result(None)
        with pytest.raises(Occupied):
            await second
        gate.open()
        await first


async def test_closed_it_runs_nothing(pool: Pool, gate: Gate) -> None:
    calls = [asyncio.create_task(pool.run(gate.wait)) for _ in range(3)]
    await gate.until_entered(2)
    pool.close()
    with pytest.raises(NotRun):
        await pool.run(lambda _: None)
    with pytest.raises(NotRun):
        await calls[2]
    gate.open()
    await asyncio.gather(*calls[:2])


HANGS = """
import asyncio, threading
from datetime import timedelta
from vmagentd.pool import Pool

async def main():
    hang = threading.Event()
    try:
        await Pool("pool", 1).run(lambda _: hang.wait(), deadline=timedelta(seconds=.1))
    except TimeoutError:
        print("gave up", flush=True)

asyncio.run(main())
"""
BUSY = """
import asyncio, sys, threading
from vmagentd.hypervisor.connection import Connection

async def main():
    up = asyncio.Event()
    c = Connection("test:///default", record=lambda _: None, on_up=up.set, fatal=print)
    keeping = asyncio.create_task(c.keep())
    await up.wait()
    domain = c.links().of("test", 0).lookupByName("test")
    def flap():
        while True:
            domain.suspend()
            domain.resume()
    threading.Thread(target=flap, daemon=True).start()
    while c.events_taken < 100:
        await asyncio.sleep(.001)
    keeping.cancel()
    print("gave up", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("program", [HANGS, BUSY], ids=["a call hangs", "events arrive"])
def test_the_process_ends_whatever_its_threads_do(program: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "gave up\n", "")
