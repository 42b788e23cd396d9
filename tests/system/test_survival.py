"""What vmagentctl shows of operations that are joined, escalated, and outlive the daemon."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest

from tests.system.daemon import Daemon
from tests.system.deadline import until
from tests.system.domains import Guests, Spec
from tests.system.guests import Behaviour
from tests.system.history import state
from tests.system.vms import Vms
from tests.system.watcher import Watcher

GRACE_S = 8
# How long the daemon is gone, and what it may be late with on a busy machine: less.
GONE_S = 5.0
LATE_S = 4.0


@dataclass(frozen=True, slots=True)
class Said:
    """What vmagentctl said, and how it ended."""

    code: int
    lines: list[dict[str, Any]]
    errors: str

    @property
    def operation(self) -> dict[str, Any]:
        """The operation as the last line has it."""
        found: dict[str, Any] = self.lines[-1]["operation"]
        return found


def begin(daemon: Daemon, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "vmagent.ctl", *arguments),
            *("--target", daemon.target, "--output", "jsonl"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> Said:
    out, errors = process.communicate(timeout=60)
    return Said(process.returncode, [json.loads(line) for line in out.splitlines()], errors)


def ctl(daemon: Daemon, *arguments: str) -> Said:
    return end(begin(daemon, *arguments))


def test_a_deaf_guest_is_forced_off_in_time_though_the_daemon_was_killed(
    own_daemon: Daemon, guest: Guests
) -> None:
    asked = [
        *("stop", "deaf", "--grace", f"{GRACE_S}s", "--on-grace-expired", "force"),
        *("--request-id", str(uuid4())),
    ]
    with Watcher(own_daemon.target) as watcher:
        vms = Vms(guest, own_daemon, watcher)
        vm = vms.up(Spec(Behaviour.DEAF, name="deaf"))
        first = begin(own_daemon, *asked)
        vms.until_true(vm, lambda vm: vm.active_operation_id, "asked")
        own_daemon.kill()
    back = time.monotonic() + GONE_S
    until(lambda: time.monotonic() >= back, "it has been gone for long enough")
    own_daemon.start()
    serving = time.time()
    followed = end(first)
    assert followed.code == 0, followed.errors
    operation = followed.operation
    deadline, forced = operation["deadlineTime"], last(operation, "OPERATION_PHASE_FORCING")
    assert seconds(forced) > seconds(deadline) - 0.05
    assert seconds(forced) < max(seconds(deadline), serving) + LATE_S
    assert seconds(deadline) - seconds(operation["acceptTime"]) == pytest.approx(GRACE_S, abs=0.1)
    assert operation["outcome"] == "OPERATION_OUTCOME_DONE"
    assert state(vms.vm(vm)) == "STOPPED/FORCED"
    # and who asks the same again is told the same
    assert ctl(own_daemon, *asked).operation == operation


def test_two_who_stop_a_guest_at_once_get_one_answer(vms: Vms, daemon: Daemon) -> None:
    vm = vms.up(Spec(Behaviour.SLOW, 4))
    with ThreadPoolExecutor(2) as callers:
        both = [*callers.map(lambda _: ctl(daemon, "stop", vm.name), range(2))]
    assert [said.code for said in both] == [0, 0], both
    assert both[0].operation == both[1].operation


def test_force_during_a_graceful_stop_is_told_to_both(vms: Vms, daemon: Daemon) -> None:
    vm = vms.up(Spec(Behaviour.DEAF))
    patient = begin(daemon, "stop", vm.name)
    until(lambda: vms.vm(vm).active_operation_id, "it is under way")
    forced, waited = ctl(daemon, "stop", vm.name, "--force"), end(patient)
    assert (forced.code, waited.code) == (0, 0)
    assert forced.operation == waited.operation
    assert last(forced.operation, "OPERATION_PHASE_FORCING")
    assert state(vms.vm(vm)) == "STOPPED/FORCED"


def last(operation: dict[str, Any], phase: str) -> str:
    """Return when an operation came to a phase for the last time."""
    times = [step["time"] for step in operation["steps"] if step["phase"] == phase]
    return str(times[-1])


def seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
