"""vmagentd as an administrator of the host sees it: systemctl, journalctl, vmagentctl."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tests.host.host import CommandFailedError, Host
from tests.system.deadline import until
from tests.system.domains import Spec, domain_xml
from tests.system.guests import Behaviour, Roms

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

WITHIN_S = 60.0


def install(host: Host, package: Path) -> str:
    """Install a package the way README says, and return what apt said."""
    shutil.copy(package, host.path("/root"))
    return host.run(f"apt-get install --quiet --yes /root/{package.name}", timeout_s=300)


def define(host: Host, name: str, behaviour: Behaviour = Behaviour.ACPI) -> None:
    """Define a guest by virsh; its firmware comes into the host with it."""
    place = host.path("/srv")
    rom = Roms(host.directory).rom(behaviour)
    shutil.copy(rom, place)
    xml = domain_xml(Spec(behaviour, name=name, rom=Path("/srv") / rom.name), Roms(place))
    (place / f"{name}.xml").write_text(xml)
    host.run(f"virsh define /srv/{name}.xml")


def show(host: Host, unit_property: str, unit: str = "vmagentd.service") -> str:
    """Return one property of a unit."""
    return host.run(f"systemctl show --value --property={unit_property} {unit}")


def vm(host: Host, name: str) -> dict[str, Any]:
    """Return a VM as vmagentctl shows it, or nothing while it knows none of that name."""
    _, said = host.try_run(f"vmagentctl --output json show {name}")
    try:
        answer = json.loads(said)
    except ValueError:
        return {}
    found: dict[str, Any] = answer.get("vm", answer)
    return found


def until_state(host: Host, name: str, state: str) -> dict[str, Any]:
    """Wait until vmagentctl says that a VM is in a state, and return it."""

    def reached() -> dict[str, Any] | None:
        seen = vm(host, name)
        return seen if seen.get("state") == f"VM_STATE_{state}" else None

    return until(reached, f"{name} is {state}", within_s=WITHIN_S)


def until_serving(host: Host, *, but_not: str = "") -> str:
    """Wait until the service is up, in another process than *but_not*; return its pid."""

    def serving() -> str | None:
        pid = show(host, "MainPID")
        is_new = pid not in {"0", but_not}
        return pid if is_new and show(host, "ActiveState") == "active" else None

    return until(serving, "vmagentd serves", within_s=WITHIN_S)


class Watch:
    """`vmagentctl watch`, and what it has said so far."""

    def __init__(self, output: Path, process: subprocess.Popen[bytes]) -> None:
        self._output, self.process = output, process

    @property
    def transitions(self) -> list[dict[str, Any]]:
        """All transitions so far, in order."""
        return [t for response in self.said() for t in response.get("transitions", [])]

    def said(self) -> list[dict[str, Any]]:
        """Return all responses so far."""
        lines = self._output.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]

    def until(self, fact: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """Wait for a transition, and return it."""
        return until(
            lambda: next((t for t in self.transitions if fact(t)), None), what, within_s=WITHIN_S
        )

    def until_state(self, name: str, state: str, *, after: int = 0) -> dict[str, Any]:
        """Wait for the transition that brings a VM into a state."""
        return self.until(
            lambda t: (
                t["vm"]["name"] == name
                and t["vm"]["state"] == f"VM_STATE_{state}"
                and int(t["revision"]) > after
            ),
            f"the watcher sees {name} {state}",
        )

    def check(self) -> None:
        """Check that it goes on, and that nothing was left out or told twice."""
        assert self.process.poll() is None, "the watcher has ended"
        revisions = [int(t["revision"]) for t in self.transitions]
        if revisions:
            expected = list(range(revisions[0], revisions[0] + len(revisions)))
            assert revisions == expected, self._output.read_text()


@contextmanager
def watching(host: Host, *, resume_from: str = "") -> Iterator[Watch]:
    """Watch all VMs from within the host; whoever watches is at its place when this yields.

    Which is a snapshot's, or *resume_from*.
    """
    resume = f"--resume-from {resume_from}" if resume_from else ""
    command = f"exec vmagentctl --output jsonl watch --heartbeat 1s {resume}"
    output = host.directory / f"watch-{uuid4()}.jsonl"
    with output.open("wb") as file, host.running(command, stdout=file) as process:
        watch = Watch(output, process)
        until(watch.said, "the watcher is at its place", within_s=WITHIN_S)
        yield watch


def journal(host: Host, *, command: str = "") -> str:
    """Return what the service logged."""
    try:
        return host.run(f"journalctl --unit=vmagentd --output=cat --no-pager {command}")
    except CommandFailedError as error:
        return str(error)
