"""The settings: what a file may say, and what is said of one that says it wrong."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from vmagentd import config
from vmagentd.config import Config, load
from vmagentd.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vmagentd.toml"


def loaded(file: Path, text: str, **overrides: object) -> Config:
    file.write_text(text)
    return load(file, overrides)


def problems(file: Path, text: str, **overrides: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        loaded(file, text, **overrides)
    assert str(caught.value).startswith(f"{file}: ")
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


def test_an_empty_file_means_the_defaults(file: Path) -> None:
    assert loaded(file, "") == Config()


def test_every_key_can_be_set(file: Path) -> None:
    settings = loaded(
        file,
        """
        libvirt_uri = "test:///default"
        socket = "/tmp/s"
        socket_mode = "0660"
        state_dir = "/tmp/state"
        log_level = "debug"
        survey_interval = "2m"
        drain_timeout = "5s"
        [stop]
        press_interval = "1s500ms"
        force_timeout = "90s"
        """,
    )
    expected = {
        "libvirt_uri": "test:///default",
        "socket": Path("/tmp/s"),
        "socket_mode": 0o660,
        "state_dir": Path("/tmp/state"),
        "log_level": "debug",
        "survey_interval": timedelta(minutes=2),
        "drain_timeout": timedelta(seconds=5),
        "stop": config.StopSettings(
            press_interval=timedelta(seconds=1.5), force_timeout=timedelta(seconds=90)
        ),
    }
    assert expected.items() <= dict(settings).items()
    defaults = dict(Config())
    assert all(defaults[key] != value for key, value in expected.items())  # not by chance


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("100ms", 0.1),
        ("5s", 5),
        ("1m30s", 90),
        ("1.5m", 90),
        ("1h", 3600),
        ("0.5s", 0.5),
        ("1m1s1ms", 61.001),
        ("0d10m", 600),
    ],
)
def test_a_duration(file: Path, text: str, seconds: float) -> None:
    settings = loaded(file, f'survey_interval = "{text}"')
    assert settings.survey_interval == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "value",
    [
        *('""', '"5"', '"s"', '"-5s"', '"5 s"', '"5s "', '"5sec"', '"1e3s"', '"5S"', '".5s"'),
        *("5", "5.0", "true", '["5s"]', "{ s = 5 }", "2026-01-01"),
        *('"99ms"', '"0s"', '"61m"', '"2d"', f'"{"9" * 20}d"', f'"{"9" * 400}s"'),
    ],
)
def test_what_is_no_duration(file: Path, value: str) -> None:
    (problem,) = problems(file, f"survey_interval = {value}")
    assert problem.startswith("survey_interval: ")


@pytest.mark.parametrize(
    ("text", "mode"), [("0600", 0o600), ("660", 0o660), ("0777", 0o777), ("000", 0)]
)
def test_a_mode(file: Path, text: str, mode: int) -> None:
    assert loaded(file, f'socket_mode = "{text}"').socket_mode == mode


@pytest.mark.parametrize(
    "value", ['"0o660"', '"rw-rw----"', '"888"', '"1777"', '""', '"66"', "660", "0o660", "true"]
)
def test_what_is_no_mode(file: Path, value: str) -> None:
    (problem,) = problems(file, f"socket_mode = {value}")
    assert problem.startswith("socket_mode: expected a file mode")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("libvirt_uri", '""'),
        ("libvirt_uri", "5"),
        ("socket", "5"),
        ("state_dir", "[]"),
        ("log_level", '"loud"'),
        ("log_level", "1"),
        ("drain_timeout", '"999ms"'),
        ("drain_timeout", '"61s"'),
        ("stop", "5"),
        ("stop.press_interval", "5"),
        ("stop.force_timeout", '"61m"'),
    ],
)
def test_a_wrong_value_is_told_with_its_key(file: Path, key: str, value: str) -> None:
    (problem,) = problems(file, f"{key} = {value}")
    assert problem.startswith(f"{key}: ")


def test_every_bad_key_is_named(file: Path) -> None:
    text = """
    libvirt_url = "test:///default"
    survey_interval = 5
    socket_mode = "rwx"
    [stop]
    pres_interval = "5s"
    force_timeout = "never"
    [access]
    """
    named = {problem.partition(":")[0] for problem in problems(file, text)}
    assert named == {
        "libvirt_url",
        "survey_interval",
        "socket_mode",
        "stop.pres_interval",
        "stop.force_timeout",
        "access",
    }


def test_the_command_line_is_over_the_file(file: Path) -> None:
    settings = loaded(
        file,
        'libvirt_uri = "qemu:///session"\nlog_level = "debug"\nsurvey_interval = "1s"',
        libvirt_uri="test:///default",
        log_level="error",
    )
    assert (settings.libvirt_uri, settings.log_level) == ("test:///default", "error")
    assert settings.survey_interval == timedelta(seconds=1)


def test_the_command_line_is_checked_too(file: Path) -> None:
    assert problems(file, "", log_level="loud")[0].startswith("log_level: ")


class TestTheFile:
    def test_one_that_was_named_must_be_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no such file"):
            load(tmp_path / "missing.toml", {})

    def test_one_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="Is a directory"):
            load(tmp_path, {})

    @pytest.mark.parametrize("text", ["socket", "socket = ", "[stop", "a = 1\na = 2"])
    def test_one_that_is_not_toml(self, file: Path, text: str) -> None:
        (problem,) = problems(file, text)
        assert problem.startswith("not TOML: ")

    def test_one_that_is_not_text(self, file: Path) -> None:
        file.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError, match="not TOML"):
            load(file, {})


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().log_level = "debug"
