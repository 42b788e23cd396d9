"""The units as systemd reads them, and what the package says of the settings."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vmagentd import config

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "packaging/systemd"
# What `systemd-analyze security` calls exposure, 0.0 to 10.0.
EXPOSURE, REMOTE_EXPOSURE = 1.2, 1.5


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a program that is there."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing (Debian package: systemd)")
    service = (UNITS / "vmagentd.service").read_text()
    (tmp_path / "vmagentd.service").write_text(service.replace("/usr/bin/vmagentd", "/bin/true"))
    shutil.copy(UNITS / "vmagentd.socket", tmp_path)
    return tmp_path


def exposure(units: Path) -> float:
    command = ["systemd-analyze", "security", "--offline=true", str(units / "vmagentd.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.rpartition("vmagentd.service: ")[2].split()[0])


def test_verify_prints_nothing(units: Path) -> None:
    command = ["systemd-analyze", "verify", "--man=no", "./vmagentd.service", "./vmagentd.socket"]
    done = subprocess.run(command, cwd=units, capture_output=True, text=True, check=False)
    # it ends with 0 on keys that it does not know; only what it prints tells
    assert done.stdout + done.stderr == ""


def test_it_is_exposed_as_little_as_can_be(units: Path) -> None:
    assert exposure(units) <= EXPOSURE


def test_it_is_not_much_more_exposed_with_the_remote_listener(units: Path) -> None:
    drop_in = units / "vmagentd.service.d"
    drop_in.mkdir()
    shutil.copy(UNITS / "remote.conf", drop_in)
    assert exposure(units) <= REMOTE_EXPOSURE


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("documents")
    command = [sys.executable, str(ROOT / "packaging/documents"), str(directory)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return directory


def test_the_packaged_settings_are_the_defaults(documents: Path, tmp_path: Path) -> None:
    """Every key is in there, each line taken in."""
    packaged = (documents / "vmagentd.toml").read_text()
    taken_in, keys, is_example = [], [], False
    for line in packaged.splitlines():
        if line.startswith("#["):
            is_example = line.startswith("#[[")
        elif line.startswith("# ") or " = " not in line:
            continue
        keys.append(line[1:].partition(" ")[0].strip("[]"))
        if not is_example and not line.endswith(" = ..."):
            taken_in.append(line[1:])
    file = tmp_path / "vmagentd.toml"
    file.write_text("\n".join(taken_in))
    assert config.load(file, {}) == config.Config()
    assert set(config.Config.model_fields) <= set(keys)


def test_a_man_page_has_nothing_to_warn_of(documents: Path) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is missing (Debian package: groff-base)")
    for page in documents.glob("*.[158]"):
        command = ["groff", "-man", "-ww", "-z", "-T", "utf8", str(page)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == "", page.name


def test_the_completions_are_scripts(documents: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        if shutil.which(shell) is not None:
            script = documents / f"vmagentctl.{shell}"
            subprocess.run([shell, "-n", script], check=True, timeout=30)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("stop --on-grace-expired f", ["fail", "force"]),
        ("audit --kind j", ["joined"]),
        ("--cert vmagentctl.z", ["vmagentctl.zsh"]),
        ("pki fo", ["folder"]),
        ("stop --gr", ["--grace"]),
    ],
)
def test_bash_offers_what_there_is(documents: Path, typed: str, offered: list[str]) -> None:
    (documents / "folder").mkdir(exist_ok=True)
    words = ["vmagentctl", *typed.split()]
    there = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}"
    asked = '_vmagentctl; echo "${COMPREPLY[@]}"'
    command = ["bash", "-c", f"source ./vmagentctl.bash; {there}; {asked}"]
    done = subprocess.run(
        command, cwd=documents, capture_output=True, text=True, check=True, timeout=30
    )
    assert [word for word in done.stdout.split() if word in offered or "-" in word] == offered


def test_the_manual_tells_what_holds_unless_it_is_said(documents: Path) -> None:
    page = (documents / "vmagentctl.1").read_text().replace("\\-", "-")
    assert "How many at most; 0 shows all. [100]" in page
    assert "What to do when the guest takes longer. [fail]" in page
    assert "--kind operation|joined|refusal" in page
    assert "history [VM]" in page


def test_the_manual_tells_where_the_name_of_a_target_comes_from(documents: Path) -> None:
    page = (documents / "vmagentctl.1").read_text().replace("\\-", "-")
    for file in ("~/.config/vmagentctl/config.toml", "/etc/vmagentd/vmagentctl.toml"):
        assert f"\\fB{file}\\fR" in page
    for name in ("TARGET", "CERT", "KEY", "CA", "SERVER_NAME"):
        assert f"VMAGENTD_{name}" in page
