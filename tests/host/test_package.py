"""The package: installing, upgrading, rebooting, removing, purging."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.component.journal.facts import restore_version_1, rows
from tests.host.clients import Client
from tests.host.host import Host
from tests.host.installed import (
    define,
    install,
    show,
    until_serving,
    until_state,
    vm,
    watching,
)

pytestmark = pytest.mark.timeout(1800)

# 2 s is the goal, on a machine that has nothing else to do.
LONGEST_WAIT_S = 30.0


def test_lintian_finds_no_errors(package: Path) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("lintian is missing; scripts/setup host installs it")
    command = ["lintian", "--fail-on", "error", "--allow-root", str(package)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout


def test_installing_it_is_all_there_is_to_do(bare_host: Host, package: Path) -> None:
    host = bare_host
    install(host, package)
    assert "Active: active (running)" in host.run("systemctl status vmagentd")
    assert "0 VMs" in show(host, "StatusText")
    assert host.run("systemctl is-enabled vmagentd.service vmagentd.socket") == "enabled\nenabled"
    assert "0 loaded units" in host.run("systemctl --failed")

    host.run("useradd --create-home someone")
    define(host, "web1")
    code, said = host.try_run("vmagentctl list", user="someone")
    assert code != 0
    assert "ROLE_DENIED" in said
    host.run("adduser someone vmagentd-viewer")
    assert "web1" in host.run("vmagentctl list", user="someone")
    assert host.try_run("vmagentctl start web1", user="someone")[0] != 0
    host.run("adduser someone vmagentd-operator")
    host.run("vmagentctl start web1", user="someone")
    assert host.run("virsh domstate web1").strip() == "running"
    # the polkit rule is for the daemon's user alone
    assert host.try_run("virsh --connect qemu:///system start web1", user="someone")[0] != 0


def test_an_upgrade_loses_nothing(bare_host: Host, previous: Path, package: Path) -> None:
    host = bare_host
    install(host, previous)
    define(host, "web1")
    host.run("echo 'survey_interval = \"59s\"' >>/etc/vmagentd/vmagentd.toml")
    before, pid = _told(host, "host"), show(host, "MainPID")
    with watching(host) as watch, Client(host) as client:
        host.run("virsh start web1")
        watch.until_state("web1", "RUNNING")
        install(host, package)
        assert until_serving(host) != pid
        host.run("virsh destroy web1")
        watch.until_state("web1", "STOPPED")
        watch.check()
    assert client.calls > 0
    assert client.failures == []
    assert client.longest_s <= LONGEST_WAIT_S
    after = _told(host, "host")
    assert _journal_id(after) == _journal_id(before)
    assert "59s" in host.run("cat /etc/vmagentd/vmagentd.toml")


def test_an_upgrade_takes_over_the_journal_of_the_first_version(
    bare_host: Host, previous: Path, package: Path, tmp_path: Path
) -> None:
    host = bare_host
    install(host, previous)
    define(host, "web1")
    # its history is of January 2026
    ages = 'retention.age_max = "3650d"\nretention.operations_age = "3650d"'
    host.run(f"echo '{ages}' >>/etc/vmagentd/vmagentd.toml")
    state_dir = tmp_path / "state"
    restore_version_1(state_dir)
    ((journal_id,),) = rows(state_dir, "SELECT value FROM meta WHERE key = 'journal_id'")
    history = rows(state_dir, "SELECT revision, vm, state FROM transition ORDER BY revision")
    asked = rows(state_dir, "SELECT id FROM operation ORDER BY accept_time DESC")
    host.run("systemctl stop vmagentd.socket vmagentd.service && rm -r /var/lib/vmagentd")
    shutil.copytree(state_dir, host.path("/var/lib/vmagentd"))
    host.run("chown --recursive vmagentd: /var/lib/vmagentd")

    install(host, package)
    until_serving(host)
    assert _journal_id(_told(host, "host")) == journal_id
    kept = _told(host, "history --oldest-first --limit 0")["transitions"]
    assert [
        (int(t["revision"]), t["vm"]["uuid"], t["vm"]["state"].removeprefix("VM_STATE_"))
        for t in kept[: len(history)]
    ] == history
    assert [(o["operationId"],) for o in _told(host, "operations")["operations"]] == asked
    with watching(host, resume_from=f"{journal_id}:{len(history)}") as watch:
        host.run("virsh start web1")
        watch.until_state("web1", "RUNNING")
        watch.check()
        assert int(watch.transitions[0]["revision"]) == len(history) + 1


def test_an_upgrade_succeeds_though_the_service_does_not_start(
    bare_host: Host, previous: Path, package: Path
) -> None:
    """A key that the new version refuses must not leave dpkg half-configured."""
    host = bare_host
    install(host, previous)
    host.run("echo 'no_such_key = 1' >>/etc/vmagentd/vmagentd.toml")
    said = install(host, package)
    assert "vmagentd did not start" in said
    assert "journalctl -u vmagentd" in said
    assert (
        host.run("dpkg-query --show --showformat='${Status}' vmagentd") == "install ok installed"
    )
    assert host.run("dpkg --audit") == ""
    # once it is mended it starts by itself
    host.run("sed -i /no_such_key/d /etc/vmagentd/vmagentd.toml")
    until_serving(host)


def test_the_host_reboots(bare_host: Host, package: Path) -> None:
    host = bare_host
    install(host, package)
    host.run("printf 'ON_SHUTDOWN=shutdown\\nSHUTDOWN_TIMEOUT=30\\n' >/etc/default/libvirt-guests")
    host.run("systemctl start libvirt-guests")
    define(host, "web1")
    host.run("virsh start web1")
    until_state(host, "web1", "RUNNING")
    incarnation = vm(host, "web1")["incarnation"]
    host.reboot()
    until_serving(host)
    stopped = until_state(host, "web1", "STOPPED")
    assert stopped["initiator"]["kind"] == "INITIATOR_KIND_HOST_SHUTDOWN", stopped
    # seen as it happened, not found out afterwards
    assert not stopped.get("late")
    assert vm(host, "web1")["incarnation"] == incarnation


def test_removing_keeps_the_journal_and_purging_deletes_it(bare_host: Host, package: Path) -> None:
    host = bare_host
    install(host, package)
    before = _journal_id(_told(host, "host"))
    host.run("apt-get remove --quiet --yes vmagentd")
    assert host.path("/var/lib/vmagentd").is_dir()
    assert host.try_run("systemctl is-active vmagentd.service vmagentd.socket")[0] != 0
    install(host, package)
    assert _journal_id(_told(host, "host")) == before
    host.run("apt-get purge --quiet --yes vmagentd")
    for place in ("/var/lib/vmagentd", "/etc/vmagentd", "/run/vmagentd", "/usr/lib/vmagentd"):
        assert not host.path(place).exists(), place
    assert "0 loaded units" in host.run("systemctl --failed")


def _told(host: Host, command: str) -> dict[str, Any]:
    """Return what a command of vmagentctl answers."""
    answer: dict[str, Any] = json.loads(host.run(f"vmagentctl --output json {command}"))
    return answer


def _journal_id(host_answer: dict[str, object]) -> object:
    told = host_answer.get("host", host_answer)
    assert isinstance(told, dict)
    return told["journalId"] if "journalId" in told else told["journal_id"]
