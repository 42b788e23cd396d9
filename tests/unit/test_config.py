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
    assert all(line.startswith(f"{file}:") for line in str(caught.value).splitlines())
    assert all(problem.text in str(caught.value) for problem in caught.value.problems)
    return tuple(problem.text for problem in caught.value.problems)


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
    ("key", "value", "why"),
    [
        ("survey_interval", "61m", "must be from 100ms to 1h"),
        ("drain_timeout", "999ms", "must be from 1s to 60s"),
        ("remote.max_connection_age", "8d", "must be from 1s to 7d"),
        ("audit.age_max", "59m", "must be from 1h to 3650d"),
    ],
)
def test_how_long_a_duration_may_be_is_told_as_it_is_written(
    file: Path, key: str, value: str, why: str
) -> None:
    assert problems(file, f'{key} = "{value}"') == (f"{key}: {why}",)


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


NO_HOSTS = ("", ".", "a..b", ".a", "x" * 64, "ä", "a b", "[..]", "[.1]", "[::1%a..b]", "::1")


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("127.0.0.1", 1),
        ("[::1]", 65535),
        ("[::]", 9464),
        ("[fe80::1%eth0.7]", 9464),
        ("[::ffff:192.0.2.1]", 9464),
        ("host1.example.org", 9464),
        ("example.org.", 9464),
    ],
)
def test_an_address(file: Path, host: str, port: int) -> None:
    text = f'metrics.listen = "{host}:{port}"'
    assert loaded(file, text).metrics.listen == f"{host}:{port}"


@pytest.mark.parametrize("table", ["metrics", "remote"])
def test_how_to_write_an_address_of_ip_6_is_told(file: Path, table: str) -> None:
    (problem,) = problems(file, f'{table}.listen = "::1:9464"')
    assert '"[::1]:' in problem


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("libvirt_uri", '""'),
        ("libvirt_uri", "5"),
        ("socket", "5"),
        ("socket", '""'),
        ("socket", r'"/run/a\u0000b"'),
        ("remote.deny_file", r'"/etc/\u0000"'),
        ("metrics.listen", r'"unix:/run/\u0000"'),
        *(
            (f"{table}.listen", f'"{host}:9464"')
            for table in ("metrics", "remote")
            for host in NO_HOSTS
        ),
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
    [acces]
    """
    named = {problem.partition(":")[0] for problem in problems(file, text)}
    assert named == {
        "libvirt_url",
        "survey_interval",
        "socket_mode",
        "stop.pres_interval",
        "stop.force_timeout",
        "acces",
    }


LINES = (
    """\
# comment

libvirt_url = "test:///default"
drain_timeout = [
    5,
]  # in three lines
[stop]

pres_interval = "5s"
force_timeout = """
    + '"""'
    + """
never"""
    + '"""'
    + """
[nowhere]
[retention]
age_max = "1s"
"""
)


def test_every_bad_key_is_told_with_its_line(file: Path) -> None:
    file.write_text(LINES)
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    found = {p.text.partition(":")[0]: p.line for p in caught.value.problems}
    assert found == {
        "libvirt_url": 3,
        "drain_timeout": 4,
        "stop.pres_interval": 9,
        "stop.force_timeout": 10,
        "nowhere": 12,
        "retention.age_max": 14,
    }
    assert f"{file}:9: stop.pres_interval: unknown key; did you mean press_interval?" in str(
        caught.value
    )


ARRAYS = """\
[[access.grants]]
role = "viewer"
users = [
    "a", "b]",  # ]
    "c",
]
vmz = ["*"]

[[access.grants]]
role = "operator"
rolle = "operator"
subjects = ['''
x''', 5]
[access.grants.nested]
x = 1
[[access.grants]]
vms = [{ a = [
  1], b = 2}]
[stop]
press_interval.x = 5
"""


def test_lines_in_arrays_of_tables(file: Path) -> None:
    file.write_text(ARRAYS)
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    found = {p.text.partition(":")[0]: p.line for p in caught.value.problems}
    assert found == {
        "access.grants.0.vmz": 7,
        "access.grants.1.rolle": 11,
        "access.grants.1.subjects.1": 12,
        "access.grants.1.nested": 14,
        "access.grants.2.role": 16,
        "access.grants.2.vms.0": 17,
        "stop.press_interval": 20,
    }


def test_a_large_file_is_told_its_lines_too(file: Path) -> None:
    """Each line is read once: not all that is before it as well."""
    grants = "".join(
        f'[[access.grants]]\nrole = "viewer"\nsubjects = ["s{number}"]\nrolle = "x"\n'
        for number in range(1000)
    )
    listed = "".join(f'"{number:064x}",\n' for number in range(2000))
    file.write_text(f"{grants}[remote]\ndeny_fingerprints = [\n{listed}]\nlistn = 1\n")
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    lines = [problem.line for problem in caught.value.problems]
    assert lines == [*range(4, 4001, 4), 6004]


@pytest.mark.parametrize("between", [',  # "ann"\n', ",  # [1]\n", "\n, "])
def test_a_long_list_is_told_its_lines_too(file: Path, between: str) -> None:
    """Each of its lines may be the last, so it seems: they are not all tried."""
    listed = between.join(f'"{number}"' for number in range(20_000))
    text = f"[remote]\ndeny_serials = [\n{listed}\n]  # all\nlistn = 1\n[stop]\nx = 1\n"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    lines = {p.text.partition(":")[0]: p.line for p in caught.value.problems}
    assert (lines["remote.listn"], lines["stop.x"]) == (20_004, 20_006)


def test_certificates_are_denied_by_what_the_key_says(file: Path) -> None:
    serial, sha_1, sha_256 = "1b" * 20, "ab" * 20, "ab" * 32
    file.write_text(
        f'[remote]\ndeny_serials = ["1f", "{serial}", "{sha_1}"]\n'
        f'deny_fingerprints = ["{sha_256}", "SHA1 Fingerprint={serial}", "1f"]\n'
    )
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    assert [problem.text.partition(":")[0] for problem in caught.value.problems] == [
        "remote.deny_serials.2",
        "remote.deny_fingerprints.1",
        "remote.deny_fingerprints.2",
    ]


def test_no_wrong_line_is_told(file: Path) -> None:
    """Of a long list that ends in the line of its last element the end is not found."""
    listed = "".join(f'"{number}",  # "ann"\n' for number in range(100))
    file.write_text(f'[remote]\ndeny_serials = [\n{listed}"x"]\nlistn = [\n]\n[stop]\nx = 1\n')
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    lines = {p.text.partition(":")[0]: p.line for p in caught.value.problems}
    assert (lines["remote.listn"], lines["stop.x"]) == (1, None)


def test_text_that_is_not_toml_is_told_with_its_line(file: Path) -> None:
    file.write_text("# one\n[stop\n")
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    assert [problem.line for problem in caught.value.problems] == [2]


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
    (problem,) = problems(file, "", log_level="loud")
    assert problem.startswith("log_level: ")
    assert "--log-level" in problem


class TestTheFile:
    def test_one_that_was_named_must_be_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no such file"):
            load(tmp_path / "missing.toml", {})

    def test_one_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="Is a directory"):
            load(tmp_path, {})

    @pytest.mark.parametrize(
        "text",
        ["socket", "socket = ", "[stop", "a = 1\na = 2", "a = " + "[" * 5000, f"a = {'1' * 5000}"],
        ids=lambda text: text[:9],
    )
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
