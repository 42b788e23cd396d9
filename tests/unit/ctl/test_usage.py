from __future__ import annotations

import re
from pathlib import Path

import pytest
from vmagent.ctl.app import run
from vmagent.ctl.options import parse_place, parse_state
from vmagent.ctl.targets import Daemon, TlsFiles, parse_target
from vmagent.v1.transition_pb2 import Cursor
from vmagent.v1.vm_pb2 import VmState


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frob"], "'frob'"),
        (["list", "--bogus"], "--bogus"),
        (["--bogus", "list"], "--bogus"),
        (["-o", "xml", "list"], "--output"),
        (["list", "-o", "xml"], "--output"),
        (["list", "--state", "asleep"], "--state: 'asleep' is no state"),
        (["list", "more"], "more"),
        (["show"], "VM"),
        (["stop"], "VM"),
        (["stop", "a", "--grace", "5x"], "--grace: '5x' is not a duration"),
        (["stop", "a", "--grace", "-5s"], "--grace: '-5s' is not a duration"),
        (
            ["stop", "a", "--on-grace-expired", "maybe"],
            ": 'maybe' is not one of 'fail', 'force' (",
        ),
        (["stop", "a", "--reconnect-timeout", "ever"], "--reconnect-timeout: 'ever' is not a dur"),
        (["start", "a", "--timeout", "soon"], "--timeout: 'soon' is not a duration"),
        (["watch", "--heartbeat", "never"], "--heartbeat: 'never' is not a duration"),
        (["watch", "--resume-from", "a:b"], "--resume-from"),
        (["watch", "--resume-from", ""], "--resume-from"),
        (["history", "--since", "once"], "--since: 'once' is neither"),
        (["history", "--until", "once"], "--until: 'once' is neither"),
        (["history", "--since", "0001-01-01T00:00+14:00"], "is not within the years 1 to 9999"),
        (["history", "--until", "0"], "--until: revisions begin with 1"),
        (["history", "--limit", "-1"], "--limit"),
        (["operations", "--phase", "over"], "--phase: 'over' is no phase; the phases are acc"),
        (["operations", "--verb", "kill"], "--verb: 'kill' is no verb; the verbs are start,"),
        (["operations", "--outcome", "bad"], "--outcome: 'bad' is no outcome"),
        (["operations", "--since", "120"], "--since: '120' is no time"),
        (["operations", "--until", "9999-12-31T23:59:59-12:00"], "--until: '9999-12-31T23"),
        (["audit", "--since", "0001-01-01T00:00+14:00"], "--since: '0001-01-01T00"),
        (["operation", "abc"], "ID: 'abc' is not an operation"),
        (["cancel"], "ID"),
        (["pause", "a", "--timeout", "5x"], "--timeout: '5x' is not a duration"),
        (["reboot", "a", "b", "--request-id", "x"], "--request-id: it is of one request"),
        (["host", "--target", "tcp:x"], "--target: 'tcp:x' names no daemon"),
        (["host", "--target", "a:7443"], "--target: a:7443 is reached over TLS"),
        (["host", "--target", "a:7443"], "write --cert, --key, --ca before the command, or"),
        (["host", "--cert", "me.pem"], "No such option: --cert; write it before the command ("),
        (["host", "--target", "nobody-has-this"], "--target: 'nobody-has-this' is no target"),
        (["--target", "unix:", "host"], "--target: 'unix:' is not a socket"),
        (["--target", "unix:/" + "x" * 107, "host"], "107 bytes"),
        (["show", "not-utf8-\udcff"], "is not UTF-8"),
    ],
)
def test_bad_usage_is_one_line_that_names_what_is_bad(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = [] if "--target" in arguments else ["--target", f"unix:{tmp_path}/s"[:100]]
    assert run(target + arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vmagentctl: ")
    assert said in err
    assert err.count("\n") == 1


def test_no_command_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    assert "Commands:" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", "list", "stop", "operations", "watch", "audit", "pki"])
def test_no_option_is_told_with_a_type_of_pythons(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command.split(), "--help"]) == 0
    options = capsys.readouterr().out.partition("Options:")[2]
    assert not re.search(r"<(str|path|list\[.*|int range)>", options)


def test_help_names_the_values_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["operations", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "this verb: start, stop, reboot, pause, resume. May be repeated." in text
    assert "succeeded so: done, already_done. May be repeated." in text


def test_help_and_version_need_no_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert run(["stop", "--help"]) == 0
    assert run(["--version"]) == 0
    out, err = capsys.readouterr()
    assert "--on-grace-expired" in out
    assert err == ""


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("unix:/run/s", "/run/s"),
        ("unix:///run/s", "/run/s"),
        ("unix:here/s", "here/s"),
        ("/run/s", "/run/s"),
    ],
)
def test_a_target_names_a_socket(target: str, path: str) -> None:
    assert parse_target(target, TlsFiles(), {}) == Daemon(Path(path))


def test_a_state_is_written_as_people_like() -> None:
    away = VmState.VM_STATE_MIGRATED_AWAY
    assert {parse_state(t) for t in ("migrated_away", "MIGRATED-AWAY")} == {away}


def test_a_place_is_a_revision_with_or_without_its_journal() -> None:
    assert parse_place("12") == Cursor(revision=12)
    assert parse_place("abc-1:12") == Cursor(journal_id="abc-1", revision=12)
