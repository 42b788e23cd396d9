"""`vmagentd --check-config`: what it finds before a restart would."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.pki import issue
from vmagentd import config
from vmagentd.__main__ import main

if TYPE_CHECKING:
    from pathlib import Path

WRONG_SETTINGS = 78


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """Settings of a daemon that listens on TCP, with good files."""
    ca = issue(None, "the CA", ca=True)
    issue(ca, "server", "localhost").write(tmp_path, "server")
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    file = tmp_path / "vmagentd.toml"
    file.write_text(
        f"""
        [remote]
        listen = "127.0.0.1:7443"
        certificate = "{tmp_path}/server.pem"
        key = "{tmp_path}/server.key"
        client_ca = "{tmp_path}/ca.pem"
        deny_file = "{tmp_path}/denied"
        """
    )
    (tmp_path / "denied").touch()
    return file


def test_good_files_for_tls_are_no_problem(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(settings), "--check-config"]) == 0
    assert capsys.readouterr() == (f"{settings}: no problem found\n", "")


@pytest.mark.parametrize("name", ["server.pem", "server.key", "ca.pem", "denied"])
def test_a_file_for_tls_that_is_not_there_is_one(
    settings: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = settings.parent / name
    missing.unlink()
    assert main(["--config", str(settings), "--check-config"]) == WRONG_SETTINGS
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"vmagentd: {settings}: [remote] {missing} cannot be read: ")
    assert err.count("\n") == 1


def test_a_key_of_another_certificate_is_one(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (settings.parent / "server.key").write_bytes(issue(None, "other").key)
    assert main(["--config", str(settings), "--check-config"]) == WRONG_SETTINGS
    assert "server.key" in capsys.readouterr().err


def test_a_line_that_is_no_good_in_the_list_of_the_denied_is_one(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A daemon would start, and obey the other lines."""
    denied = settings.parent / "denied"
    denied.write_text("1f\nnonsense\n")
    assert main(["--config", str(settings), "--check-config"]) == WRONG_SETTINGS
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"vmagentd: {settings}: [remote] {denied} line 2: 'nonsense' is neither")
    assert err.count("\n") == 1


def test_without_a_file_it_says_that_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    if config.DEFAULT_FILE.exists():
        pytest.skip(f"{config.DEFAULT_FILE} is there")
    assert main(["--check-config"]) == 0
    assert capsys.readouterr().out == f"no {config.DEFAULT_FILE}: the defaults hold\n"
