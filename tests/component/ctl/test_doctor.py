"""`vmagentctl doctor` with daemons that are well, blind, full or away."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from vmagent.ctl import doctor
from vmagent.ctl.doctor import Verdict
from vmagent.v1.access_pb2 import Caller, CallerOrigin, Role
from vmagent.v1.host_pb2 import Host

from tests.component.ctl.terminal import vmagentctl
from tests.component.process import daemon
from tests.pki import issue

NOW = datetime(2026, 1, 2, tzinfo=UTC)


async def examined(socket: Path) -> tuple[int, dict[str, tuple[str, str]]]:
    """Return the exit code, and by each check's name its verdict and all that it said."""
    done = await vmagentctl(socket, "doctor", "-o", "json")
    assert done.err == ""
    checks = json.loads(done.out)["checks"]
    found = {c["name"]: (c["verdict"], f"{c['message']}; {c['action']}") for c in checks}
    assert len(found) == len(checks)
    return done.code, found


async def test_all_is_well(folder: Path) -> None:
    async with daemon(folder):
        code, found = await examined(folder / "s")
        assert code == 0
        well = {"client", "socket", "role", "versions", "libvirt", "survey", "journal", "clocks"}
        assert {name for name, (verdict, _) in found.items() if verdict == "ok"} >= well
        assert "fail" not in {verdict for verdict, _ in found.values()}
        done = await vmagentctl(folder / "s", "doctor")
        assert done.code == 0
        assert [line.split()[1] for line in done.out.splitlines()] == list(found)


async def test_a_blind_daemon_fails_and_it_is_said_why(folder: Path) -> None:
    async with daemon(folder, "qemu:///system?socket=/no/such/socket"):
        code, found = await examined(folder / "s")
        assert code == 1
        verdict, said = found["libvirt"]
        assert verdict == "fail"
        assert "/no/such/socket" in said
        assert "systemctl status libvirtd" in said
        assert found["survey"][0] == "warn"


async def test_nobody_is_there(folder: Path) -> None:
    code, found = await examined(folder / "s")
    assert code == 4
    verdict, said = found["daemon"]
    assert verdict == "fail"
    assert "systemctl start vmagentd" in said
    assert "libvirt" not in found


async def test_a_port_where_nobody_listens(tmp_path: Path) -> None:
    ca = issue(None, "the CA", ca=True)
    certificate, key = issue(ca, "me", "spiffe://example.org/me").write(tmp_path, "me")
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    options = ("--cert", str(certificate), "--key", str(key), "--ca", str(tmp_path / "ca.pem"))
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        target = ("--target", f"127.0.0.1:{deaf.getsockname()[1]}")
        done = await vmagentctl(tmp_path, *target, *options, "doctor", "-o", "json")
    assert done.code == 4
    _client, *checks = json.loads(done.out)["checks"]
    assert [check["name"] for check in checks] == ["certificate", "daemon"]
    for check in checks:
        assert "nobody listens there; is vmagentd running" in check["message"]


def verdicts(*checks: doctor.Check | None) -> list[Verdict]:
    return [check.verdict for check in checks if check is not None]


class TestSingleChecks:
    def test_a_journal_that_cannot_be_written(self) -> None:
        assert verdicts(doctor._journal(Host(journal_writable=False))) == [Verdict.FAIL]

    def test_another_version(self) -> None:
        assert verdicts(doctor._versions(Host(daemon_version="0.0.1"))) == [Verdict.WARN]

    def test_a_survey_that_is_old(self) -> None:
        host = Host()
        host.link.libvirt_connected = True
        host.link.last_survey_time.FromDatetime(NOW - timedelta(hours=1))
        check = doctor._survey(host, NOW)
        assert check.verdict is Verdict.WARN
        assert check.todo.startswith("unless survey_interval is as long, ")

    @pytest.mark.parametrize(("state", "verdict"), [(0, "ok"), (5, "warn"), (-1, "warn")])
    def test_a_clock_that_nobody_sets_or_that_cannot_be_asked(
        self, state: int, verdict: str
    ) -> None:
        assert verdicts(doctor._synchronised(state)) == [Verdict(verdict)]

    def test_clocks_that_differ(self) -> None:
        host = Host()
        host.link.last_survey_time.FromDatetime(NOW + timedelta(minutes=1))
        assert verdicts(doctor._skew(host, NOW)) == [Verdict.WARN]

    def test_who_has_no_role(self) -> None:
        (check,) = doctor._caller(Caller(actor="user:eve"))
        assert check.verdict is Verdict.FAIL
        assert "vmagentd-viewer" in check.todo

    @pytest.mark.parametrize(
        ("days", "verdict"), [(-1, Verdict.FAIL), (5, Verdict.WARN), (90, Verdict.OK)]
    )
    def test_a_certificate_that_ends(self, days: int, verdict: Verdict) -> None:
        caller = Caller(
            actor="dns:a",
            role=Role.ROLE_VIEWER,
            origin=CallerOrigin.CALLER_ORIGIN_REMOTE,
        )
        caller.certificate_end_time.FromDatetime(datetime.now(UTC) + timedelta(days=days))
        assert verdicts(*doctor._caller(caller)) == [Verdict.OK, verdict]

    def test_the_disk(self, tmp_path: Path) -> None:
        assert verdicts(doctor._disk(tmp_path)) != []
        assert verdicts(doctor._disk(tmp_path / "missing")) == []

    def test_a_journal_that_was_set_aside(self, tmp_path: Path) -> None:
        assert doctor._set_aside(tmp_path) is None
        assert doctor._set_aside(tmp_path / "missing") is None
        stamp = ".corrupt-2026-01-02T03:04:05Z"
        for name in ("", "-wal", stamp, f"{stamp}-wal", ".corrupt-2025-12-31T00:00:00Z.1-wal"):
            (tmp_path / f"journal.db{name}").touch()
        check = doctor._set_aside(tmp_path)
        assert check is not None
        assert check.verdict is Verdict.WARN
        assert str(tmp_path / f"journal.db{stamp}") in check.said
        assert "2 journals" in check.said
        assert "journalctl" in check.todo

    @pytest.mark.parametrize(
        ("free", "files", "free_files", "verdict"),
        [
            (4 << 30, 1000, 500, Verdict.OK),
            (4 << 30, 0, 0, Verdict.OK),  # btrfs, which does not count them
            (4 << 30, 1000, 0, Verdict.WARN),
            (100 << 20, 1000, 500, Verdict.WARN),
            (1 << 20, 0, 0, Verdict.WARN),  # it may not be the journal's: the daemon is asked
        ],
    )
    def test_the_room_on_a_disk(
        self, free: int, files: int, free_files: int, verdict: Verdict
    ) -> None:
        blocks = free >> 12
        counts = (4096, 4096, blocks, blocks, blocks, files, free_files, free_files, 0, 255)
        check = doctor._room(os.statvfs_result(counts), Path("/a"))
        assert verdicts(check) == [verdict]
