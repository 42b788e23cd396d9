"""What people see who use vmagentctl on real guests, several of them at once."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.system.daemon import Daemon
from tests.system.domains import Guest, Guests, Spec
from tests.system.guests import Behaviour
from tests.system.vms import Vms
from tests.system.watcher import Watcher

pytestmark = pytest.mark.timeout(120)

DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Run:
    """A vmagentctl that somebody has begun."""

    process: subprocess.Popen[bytes]
    said: list[str]  # the lines it was seen to print

    def operation(self) -> str:
        """Wait until it says which operation it follows, and return that."""
        return self.until(r"accepted, operation (\S+)")[1]

    def until(self, wanted: str) -> re.Match[str]:
        """Wait until it has said something that matches *wanted*."""
        assert self.process.stdout is not None
        while not (found := re.search(wanted, "".join(self.said))):
            line = self.process.stdout.readline().decode()
            assert line, "it ended before it said so"
            self.said.append(line)
        return found

    def end(self) -> tuple[int, str, str]:
        """Wait until it ends; return its exit code, and what it printed to both outputs."""
        out, err = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, "".join(self.said) + out.decode(), err.decode()


Begin = Callable[..., Run]


@pytest.fixture
def begun(daemon: Daemon) -> Iterator[Begin]:
    """Begins runs of vmagentctl; none outlives the test."""
    with ExitStack() as runs:

        def begin(*arguments: str, target: str = daemon.target) -> Run:
            process = runs.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "vmagent.ctl", *arguments],
                    env=os.environ | {"VMAGENTD_TARGET": target},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,  # else what was read ahead of a line is not there at the end
                )
            )
            runs.callback(process.kill)
            return Run(process, [])

        yield begin


@pytest.fixture
def deaf(vms: Vms) -> Guest:
    """A guest that ignores the power button, up."""
    return vms.up(Spec(Behaviour.DEAF))


def test_two_who_stop_a_guest_get_the_same_answer(deaf: Guest, begun: Begin) -> None:
    one, two = (begun("stop", deaf.name) for _ in range(2))
    operation = one.operation()
    assert two.operation() == operation
    for run in (one, two):
        run.until("guest asked to shut down")  # both wait by now
    deaf.domain.destroy()
    ends = [run.end() for run in (one, two)]
    assert [(code, err) for code, _, err in ends] == [(0, ""), (0, "")]
    (last,) = {out.splitlines()[-1] for _, out, _ in ends}
    assert last.startswith(f"{deaf.name}: STOPPED (forced) after ")
    listed = json.loads(begun("operations", "--vm", deaf.name, "-o", "json").end()[1])
    assert [each["operationId"] for each in listed["operations"]] == [operation]


def test_force_comes_to_the_aid_of_a_stop(deaf: Guest, begun: Begin) -> None:
    patient = begun("stop", deaf.name)
    operation = patient.operation()
    patient.until("guest asked to shut down")  # before that nobody is asked who could be deaf
    forced = begun("stop", deaf.name, "--force")
    assert forced.operation() == operation
    for code, out, err in (patient.end(), forced.end()):
        assert (code, err) == (0, "")
        assert f"{deaf.name}: guest asked to shut down" in out
        assert f"{deaf.name}: forcing it off" in out
        assert f"{deaf.name}: STOPPED (forced) after " in out


def test_a_stop_is_cancelled_and_whoever_waits_is_told(
    vms: Vms, deaf: Guest, begun: Begin
) -> None:
    stopping = begun("stop", deaf.name)
    operation = stopping.operation()
    code, out, err = begun("cancel", operation[:8]).end()
    assert (code, err) == (0, "")
    assert out == f"{deaf.name}: stop operation {operation} is cancelled\n"
    code, _, err = stopping.end()
    assert code == 1
    assert err.endswith(" [OPERATION_CANCELLED]\n")
    vms.until(deaf, "RUNNING/BOOTED")
    code, out, _ = begun("operation", operation[:8]).end()
    assert code == 0
    assert re.search(r"^Phase: +cancelled$", out, re.MULTILINE)
    assert begun("cancel", operation[:8]).end()[0] == 0  # it is cancelled, as was wished


def test_pause_resume_and_reboot(vms: Vms, begun: Begin) -> None:
    vm = vms.up()
    for arguments, state in (
        (("pause",), "PAUSED (paused by user)"),
        (("resume",), "RUNNING (unpaused)"),
        (("reboot",), "RUNNING (rebooted)"),
        (("reboot", "--force"), "RUNNING (rebooted)"),
    ):
        code, out, err = begun(*arguments, vm.name).end()
        assert (code, err) == (0, ""), out
        assert out.splitlines()[-1].startswith(f"{vm.name}: {state} after ")
    code, out, _ = begun("operations", "--vm", vm.name, "--verb", "reboot").end()
    assert len(out.splitlines()) == 3


@pytest.fixture
def own_deaf(own_daemon: Daemon, guest: Guests) -> Guest:
    """A guest that ignores the power button, up, and a daemon that may be killed."""
    with Watcher(own_daemon.target) as watcher:
        return Vms(guest, own_daemon, watcher).up(Spec(Behaviour.DEAF))


def test_a_stop_is_followed_into_the_next_daemon(
    own_daemon: Daemon, own_deaf: Guest, begun: Begin
) -> None:
    ask = ("stop", own_deaf.name, "--grace", "8s", "--on-grace-expired", "force")
    run = begun(*ask, target=own_daemon.target)
    operation = run.operation()
    own_daemon.kill()
    own_daemon.start()
    code, out, err = run.end()
    waiting = f"lost vmagentd at {own_daemon.target}; waiting for it up to 1m"
    assert (code, err) == (0, f"vmagentctl: {waiting}\n")
    assert out.count(" accepted, operation ") == 1
    assert out.splitlines()[-1].startswith(f"{own_deaf.name}: STOPPED (forced) after ")
    listed = begun("operations", "--vm", own_deaf.name, "-o", "json", target=own_daemon.target)
    kept = json.loads(listed.end()[1])["operations"]
    assert [each["operationId"] for each in kept] == [operation]


def test_a_stop_is_followed_through_an_orderly_restart(
    own_daemon: Daemon, own_deaf: Guest, begun: Begin
) -> None:
    run = begun("stop", own_deaf.name, target=own_daemon.target)
    run.until("guest asked to shut down")
    own_daemon.stop()
    own_daemon.start()
    own_deaf.domain.destroy()
    code, out, err = run.end()
    assert (code, err.count("\n")) == (0, 1)
    assert out.splitlines()[-1].startswith(f"{own_deaf.name}: STOPPED (forced) after ")


def test_a_request_is_repeated_after_the_daemon_was_killed(
    own_daemon: Daemon, own_deaf: Guest, begun: Begin
) -> None:
    vm = own_deaf
    ask = ("stop", vm.name, "--grace", "8s", "--on-grace-expired", "force", "--request-id", "r1")
    first = begun(*ask, "--reconnect-timeout", "0s", target=own_daemon.target)
    operation = first.operation()
    own_daemon.kill()
    code, _, err = first.end()
    assert code == 4
    assert f"see `vmagentctl operation {operation[:8]}`, or ask again with --request-id r1" in err
    own_daemon.start()
    code, out, err = begun(*ask, target=own_daemon.target).end()
    assert (code, err) == (0, "")
    assert f"stop accepted, operation {operation}" in out
    assert out.splitlines()[-1].startswith(f"{vm.name}: STOPPED (forced) after ")
    shown = begun("operation", operation, "-o", "json", target=own_daemon.target).end()[1]
    kept = json.loads(shown)["operation"]
    assert (kept["requestId"], kept["phase"]) == ("r1", "OPERATION_PHASE_SUCCEEDED")
