"""An independent record of what libvirt said, to hold vmagentd's journal against."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from tests.system.deadline import until

_PROGRAM = Path(__file__).with_name("record.py")


@dataclass(frozen=True, slots=True)
class Seen:
    """An event as libvirt delivered it."""

    what: str  # "STOPPED/SHUTDOWN", "REBOOT"; "CLOSED/EOF" for the connection
    uuid: str  # "" if it is not a domain's
    name: str
    id: int  # -1: none
    monotonic_s: float  # CLOCK_MONOTONIC, the same in all processes


class Recorder:
    """Records every domain event of one libvirtd, from entry to exit or the end of that libvirtd.

    Args:
        uri: of the libvirtd.
        file: to record in; must not exist.
    """

    def __init__(self, uri: str, file: Path) -> None:
        self._uri = uri
        self._file = file
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._file.open("xb") as file:
            self._process = _start(self._uri, file)
        until(self.everything, "the recorder records", within_s=20)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.communicate(timeout=20)  # closes its input

    def everything(self) -> list[Seen]:
        """Return all that was seen so far, in order."""
        whole_lines = self._file.read_text().rpartition("\n")[0].splitlines()
        return [Seen(**json.loads(line)) for line in whole_lines]

    def of(self, uuid: str) -> list[str]:
        """Return what was seen of one domain so far, in order."""
        return [seen.what for seen in self.everything() if seen.uuid == uuid]

    def until(self, uuid: str, what: str, *, times: int = 1, within_s: float = 30.0) -> list[str]:
        """Wait until something was seen of a domain, and return all that was seen of it by then.

        Args:
            uuid: of the domain; "" for what happens to the connection.
            what: as in `Seen.what`.
            times: how often it must have been seen.
            within_s: the deadline.
        """

        def seen() -> list[str] | None:
            events = self.of(uuid)
            return events if events.count(what) >= times else None

        return until(seen, f"{what} of {uuid or 'the connection'}", within_s=within_s)


def _start(uri: str, file: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, _PROGRAM, uri], stdin=subprocess.PIPE, stdout=file)
