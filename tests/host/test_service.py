"""The service: systemd starts, stops, restarts, reloads and watches it."""

import re

import pytest

from tests.host.host import Host
from tests.host.installed import (
    WITHIN_S,
    define,
    journal,
    show,
    until_serving,
    until_state,
    vm,
    watching,
)
from tests.system.deadline import until
from tests.system.guests import Behaviour

pytestmark = pytest.mark.timeout(1800)  # the first one builds the package and the tree


def test_systemd_finds_nothing_to_say(host: Host) -> None:
    said = host.run("systemd-analyze verify --man=no vmagentd.service vmagentd.socket")
    assert said == ""


def test_its_status_tells_the_truth(host: Host) -> None:
    assert "Active: active (running)" in host.run("systemctl status vmagentd")
    host.run("virsh start web1")
    until(
        lambda: re.search(r"\b1 running", show(host, "StatusText")),
        "the status line tells of web1",
        within_s=WITHIN_S,
    )


def test_it_has_no_privileges(host: Host) -> None:
    status = host.run(f"cat /proc/{show(host, 'MainPID')}/status")
    assert re.search(r"CapEff:\s+0+$", status, re.MULTILINE)
    assert re.search(r"NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert re.search(r"Seccomp:\s+2$", status, re.MULTILINE)
    assert host.run(f"ps -o user= -p {show(host, 'MainPID')}") == "vmagentd"
    # it may use libvirt without being in libvirt's group
    assert "libvirt" not in host.run("id vmagentd")


def test_what_virsh_does_is_seen_and_what_we_do_is_done(host: Host) -> None:
    with watching(host) as watch:
        host.run("virsh start web1")
        watch.until_state("web1", "RUNNING")
        host.run("vmagentctl stop web1")
        assert host.run("virsh domstate web1").strip() == "shut off"
        watch.until_state("web1", "STOPPED")
        watch.check()


def test_it_ends_when_it_is_told_to_and_says_so(host: Host) -> None:
    host.run("systemctl stop vmagentd.socket vmagentd.service")
    assert show(host, "Result") == "success"
    code, said = host.try_run("vmagentctl list")
    assert code == 4
    assert "systemctl start vmagentd" in said


def test_a_client_starts_it_where_it_was_stopped(host: Host) -> None:
    """The socket stays: who stops the service alone has it back with the next client."""
    host.run("systemctl stop vmagentd.service", timeout_s=60)
    assert show(host, "ActiveState") == "inactive"
    assert "web1" in host.run("vmagentctl list")


def test_a_reload_reads_the_settings_and_ends_nothing(host: Host) -> None:
    pid = show(host, "MainPID")
    with watching(host) as watch:
        host.run("printf 'log_level = \"debug\"\\n' >>/etc/vmagentd/vmagentd.toml")
        host.run("systemctl reload vmagentd")
        host.run("virsh start web1")
        watch.until_state("web1", "RUNNING")
        watch.check()
    assert show(host, "MainPID") == pid
    assert show(host, "ActiveState") == "active"
    host.run("sed -i /^log_level/d /etc/vmagentd/vmagentd.toml && systemctl reload vmagentd")


def test_killed_it_is_back_and_goes_on(host: Host) -> None:
    pid = show(host, "MainPID")
    with watching(host) as watch:
        host.run("systemctl kill --signal=KILL vmagentd")
        host.run("virsh start web1")
        watch.until_state("web1", "RUNNING")
        watch.check()
    assert until_serving(host, but_not=pid) != pid


def test_killed_again_and_again_it_is_not_given_up(host: Host) -> None:
    for _ in range(7):
        pid = until_serving(host)
        host.run("systemctl kill --signal=KILL vmagentd")
        until_serving(host, but_not=pid)
    assert host.run("vmagentctl list")


def test_a_stop_goes_on_in_the_next_daemon(host: Host) -> None:
    define(host, "slow", Behaviour.SECOND_PRESS)
    host.run("virsh start slow")
    until_state(host, "slow", "RUNNING")
    # the second press, five seconds after the first, is the next daemon's
    with host.running("vmagentctl stop slow") as stop:
        until(
            lambda: vm(host, "slow").get("activeOperationId"), "it is accepted", within_s=WITHIN_S
        )
        host.run("systemctl kill --signal=KILL vmagentd")
        until_state(host, "slow", "STOPPED")
        # it followed what it asked for into that one
        assert stop.wait(WITHIN_S) == 0
    host.run("virsh undefine slow")


def test_one_that_hangs_is_started_again(host: Host) -> None:
    """The watchdog; its time is shortened, or the test would take half a minute."""
    drop_in = "/run/systemd/system/vmagentd.service.d"
    host.run(f"mkdir -p {drop_in} && printf '[Service]\\nWatchdogSec=2s\\n' >{drop_in}/w.conf")
    host.run("systemctl daemon-reload && systemctl restart vmagentd")
    try:
        pid = until_serving(host)
        host.run(f"kill -STOP {pid}")
        until_serving(host, but_not=pid)
        assert "atchdog" in host.run("journalctl --no-pager --unit=vmagentd --output=cat")
        assert "web1" in host.run("vmagentctl list")
    finally:
        host.run(f"rm -r {drop_in} && systemctl daemon-reload && systemctl restart vmagentd")


def test_libvirtd_restarts_and_nothing_is_lost(host: Host) -> None:
    host.run("virsh start web1")
    with watching(host) as watch:
        host.run("systemctl restart libvirtd")
        host.run("virsh suspend web1")  # not destroy: libvirtd is still taking it over
        watch.until_state("web1", "PAUSED")
        watch.check()


def test_a_wrong_setting_is_told_and_mended(host: Host) -> None:
    config = "/etc/vmagentd/vmagentd.toml"
    host.run(f"cp {config} /root/good.toml && echo 'stop.press_intervall = \"1s\"' >>{config}")
    try:
        assert host.try_run("systemctl restart vmagentd")[0] != 0
        assert "press_intervall" in journal(host)
        assert host.try_run("vmagentd --check-config")[0] == 78
    finally:
        host.run(f"cp /root/good.toml {config}")
    until_serving(host)  # without anybody's doing: it was tried again all the time
