"""Files whose reading does not end: told of, asked for by one thread, and left for others."""

from __future__ import annotations

import asyncio
import logging
import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmagentd.api.followed import Followed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE_S = 20.0


class Disk:
    """A file system that answers, or does not until it is told to."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "denied"
        self.answers = threading.Event()
        self.answers.set()
        self.hang: set[str] = set()  # texts
        self.threads = 0  # that wait

    def wait(self) -> None:
        self.threads += 1
        self.answers.wait()
        self.threads -= 1

    def read(self, file: Path) -> str:
        text = file.read_text()
        if text in self.hang:
            self.wait()
        return text

    def followed(self, file: Path) -> Followed[Path, str]:
        return Followed(
            file,
            paths=lambda file: (file,),
            read=self.read,
            meanwhile="what was before holds",
            patience=timedelta(seconds=0.5),
        )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path)
    yield disk
    disk.answers.set()


async def look_until(followed: Followed[Path, str], fact: Callable[[], bool]) -> None:
    """Look at the files again and again, as for ever."""
    async with asyncio.timeout(DEADLINE_S):
        while not fact():
            await followed.look()
            await asyncio.sleep(0.01)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]


async def test_it_is_told_of_once_and_read_by_one_thread(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.file.write_text("good")
    followed = disk.followed(disk.file)
    disk.answers.clear()
    disk.hang = {"endless"}
    disk.file.write_text("endless")
    await look_until(followed, lambda: disk.threads == 1)
    await look_until(followed, lambda: bool(told(caplog)))
    assert followed.content == "good"
    followed._again = 0
    await followed.look()
    (message,) = told(caplog)
    assert f"{disk.file} cannot be used: its reading does not end" in message
    assert "what was before holds" in message
    assert disk.threads == 1
    # when there is an end after all, it is taken without a touch
    disk.answers.set()
    followed._again = 0
    await look_until(followed, lambda: followed.content == "endless")
    followed.close()


async def test_another_in_its_place_is_read(disk: Disk) -> None:
    disk.file.write_text("good")
    followed = disk.followed(disk.file)
    disk.answers.clear()
    disk.hang = {"endless"}
    disk.file.write_text("endless")
    await look_until(followed, lambda: disk.threads == 1)
    new = disk.file.with_name("new")
    new.write_text("another")
    new.rename(disk.file)
    await look_until(followed, lambda: followed.content == "another")
    assert disk.threads == 1
    followed.close()


async def test_nobody_waits_for_the_marks_of_a_file(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a network file system whose server is gone: each time it is told of again."""

    class Far(type(Path())):  # type: ignore[misc]
        def stat(self, **how: Any) -> Any:  # noqa: ANN401
            if threading.current_thread() is not threading.main_thread():
                disk.wait()
            return super().stat(**how)

    disk.file.write_text("good")
    followed = disk.followed(Far(disk.file))
    for times in (1, 2):
        before = len(told(caplog))
        disk.answers.clear()
        await look_until(followed, lambda: len(told(caplog)) > before)  # noqa: B023
        assert disk.threads <= 1
        disk.answers.set()
        disk.file.write_text(f"good {times}")
        await look_until(followed, lambda: followed.content == f"good {times}")  # noqa: B023
    followed.close()
