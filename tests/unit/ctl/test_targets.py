from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from vmagent.ctl.targets import Daemon, Remote, TlsFiles, parse_target

FILES = TlsFiles(cert=Path("c"), key=Path("k"), ca=Path("a"))

NAMED = """
[targets.host1]
target = "host1.example.com:7443"
cert = "me.pem"
key = "/keys/me.key"
ca = "ca.pem"
server_name = "host1"
[targets.local]
target = "unix:/run/s"
"""


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment with a file of targets."""
    folder = tmp_path / "vmagentctl"
    folder.mkdir()
    (folder / "config.toml").write_text(NAMED)
    return {"XDG_CONFIG_HOME": str(tmp_path)}


@pytest.mark.parametrize(
    ("text", "host", "address"),
    [
        ("h1:7443", "h1", "h1:7443"),
        ("192.0.2.1:1", "192.0.2.1", "192.0.2.1:1"),
        ("[2001:db8::1]:7443", "2001:db8::1", "[2001:db8::1]:7443"),
    ],
)
def test_another_host(text: str, host: str, address: str) -> None:
    at = parse_target(text, FILES, {}).at
    assert isinstance(at, Remote)
    assert (at.host, at.address) == (host, address)


@pytest.mark.parametrize(
    "text",
    [
        *("h1:", ":7443", "h1:0", "h1:65536", "a b:1", "::1:1", "http://h:1", "bücher:1"),
        *("a..b:1", ".a:1", "a" * 64 + ".b:1", "[a..b]:1", "[::1%ü]:1"),
    ],
)
def test_what_names_no_daemon(text: str) -> None:
    with pytest.raises(ValueError, match="names no daemon"):
        parse_target(text, FILES, {})


@pytest.mark.parametrize("text", ["", ".", ".a", "a..b", "bücher", "a" * 64])
def test_what_no_certificate_names(text: str) -> None:
    with pytest.raises(ValueError, match="the server's name"):
        parse_target("h1:7443", replace(FILES, server_name=text), {})


def test_a_name_stands_for_all_that_belongs_to_it(home: dict[str, str]) -> None:
    folder = Path(home["XDG_CONFIG_HOME"]) / "vmagentctl"
    assert parse_target("host1", TlsFiles(), home).at == Remote(
        host="host1.example.com",
        port=7443,
        cert=folder / "me.pem",  # beside the file
        key=Path("/keys/me.key"),
        ca=folder / "ca.pem",
        server_name="host1",
    )
    assert parse_target("local", TlsFiles(), home) == Daemon(Path("/run/s"))


def test_the_command_line_is_over_the_file_and_that_over_the_environment(
    home: dict[str, str],
) -> None:
    home |= {"VMAGENTD_CERT": "/env/c", "VMAGENTD_KEY": "/env/k", "VMAGENTD_CA": "/env/a"}
    at = parse_target("host1", TlsFiles(cert=Path("mine")), home).at
    assert isinstance(at, Remote)
    assert (at.cert, at.key) == (Path("mine"), Path("/keys/me.key"))
    at = parse_target("h2:7443", TlsFiles(), home).at
    assert isinstance(at, Remote)
    assert (at.cert, at.server_name) == (Path("/env/c"), None)


def test_an_unknown_name_is_told_with_those_there_are(home: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"'host2' is no target .*there are: host1, local"):
        parse_target("host2", TlsFiles(), home)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[targets", "not TOML"),
        ("targets = 1", "expected tables"),
        ("[targets]\nh = 1", "expected a table"),
        ("[targets.h]\ntarget = 'a:1'\ncrt = 'x'", "unknown key crt; there are: target, cert"),
        ("[targets.h]\ntarget = 1", "expected a text"),
        ("[targets.h]\ntarget = 'a:1'\ncert = '~no-such-user/c'", "cert: nobody knows whose home"),
        ("[targets.h]\ntarget = 'a:1'\ncert = \"c\\u0000\"", "cert: expected a path"),
        ("[targets.h]", "write unix:/path or host:port"),
    ],
)
def test_a_file_that_says_it_wrong(home: dict[str, str], text: str, why: str) -> None:
    (Path(home["XDG_CONFIG_HOME"]) / "vmagentctl" / "config.toml").write_text(text)
    with pytest.raises(ValueError, match=why) as caught:
        parse_target("h", TlsFiles(), home)
    assert "config.toml" in str(caught.value)
