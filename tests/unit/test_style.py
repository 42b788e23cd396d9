"""The house style, as far as a machine can tell: every linter is a test.

`make fix` repairs what can be repaired without thinking, `make protos` the stubs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUBS = ROOT / "clients/python/vmagent/v1"
PRODUCT = [ROOT / "vmagentd", ROOT / "clients/python/vmagent"]
MAX_LINES = 350

CONTRACTS = [
    contract["id"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
]

# A cold cache on a small machine: mypy then reads all of grpc, protobuf and pydantic.
pytestmark = pytest.mark.timeout(300)


def tool(name: str) -> str:
    """Return the path of *name*, from .venv if it is there; without it skip, or fail in CI."""
    beside = Path(sys.executable).with_name(name)
    path = str(beside) if beside.exists() else shutil.which(name)
    if path is None and os.environ.get("CI"):
        pytest.fail(f"{name} is missing, and CI checks everything")
    if path is None:
        pytest.skip(f"{name} is missing; make setup installs it")
    return path


def check(name: str, *arguments: str) -> None:
    """Run *name* at the root; what it has to say is the failure."""
    done = subprocess.run(
        [tool(name), *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(done.stdout.strip() or f"{name} ended with {done.returncode}", pytrace=False)


def stubs_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*_pb2*.py*")}


def test_ruff_finds_nothing() -> None:
    check("ruff", "check", "--quiet", ".")


def test_ruff_would_format_nothing() -> None:
    check("ruff", "format", "--diff", "--quiet", ".")


def test_mypy_finds_nothing() -> None:
    check("mypy", "--no-error-summary")


@pytest.mark.parametrize("contract", CONTRACTS)
def test_imports_keep_the_contract(contract: str) -> None:
    check("lint-imports", "--no-logo", "--contract", contract)


def test_no_module_is_too_long() -> None:
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for package in PRODUCT
        for path in package.rglob("*.py")
        if not path.is_relative_to(STUBS)
    }
    too_long = {path: count for path, count in lines.items() if count > MAX_LINES}
    assert not too_long, f"a module is one idea, at most {MAX_LINES} lines"


def test_buf_finds_nothing() -> None:
    check("buf", "lint")


def test_buf_would_format_nothing() -> None:
    check("buf", "format", "--diff", "--exit-code")


def test_protos_break_no_released_client() -> None:
    released = subprocess.run(
        [tool("git"), "tag", "--list", "v*", "--sort=-version:refname", "--merged"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    if not released:
        pytest.skip("nothing is released yet, so no client can break")
    check("buf", "breaking", "--against", f".git#tag={released[0]}")


def test_stubs_are_what_the_protos_say(tmp_path: Path) -> None:
    check("bash", "scripts/protos", str(tmp_path))
    fresh, committed = stubs_in(tmp_path / "vmagent/v1"), stubs_in(STUBS)
    assert fresh.keys() == committed.keys(), "run make protos"
    stale = [name for name in sorted(fresh) if fresh[name] != committed[name]]
    assert not stale, "run make protos"
