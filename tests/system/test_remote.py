"""From another host: a network namespace with vmagentctl in it, and a wire to the daemon."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.access_pb2 import AuditKind

from tests.pki import DAY, Pair, issue
from tests.system.daemon import Daemon
from tests.system.deadline import until

SUBJECT = "spiffe://example.org/ops"
# Addresses that are kept for documentation, so nobody's.
HERE, THERE = "198.51.100.1", "198.51.100.2"
PORT = 7443


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class OtherHost:
    """Where vmagentctl is run, and the daemon that it is to reach."""

    namespace: str
    folder: Path
    ca: Pair
    daemon: Daemon

    def vmagentctl(self, client: Pair | None, *arguments: str) -> Done:
        """Run it there with this certificate."""
        done = subprocess.run(
            self.command(client, *arguments),
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def command(self, client: Pair | None, *arguments: str) -> list[str]:
        """Return the command that runs it there."""
        files: list[str] = []
        if client is not None:
            certificate, key = client.write(self.folder, "me")
            files = ["--cert", str(certificate), "--key", str(key)]
        command = ["ip", "netns", "exec", self.namespace, sys.executable, "-m", "vmagent.ctl"]
        command += ["--target", f"{HERE}:{PORT}", "--ca", str(self.folder / "ca.pem"), *files]
        return [*command, *arguments]

    def client(self, **when: timedelta) -> Pair:
        return issue(self.ca, "ops", SUBJECT, **when)  # type: ignore[arg-type]


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no other host can be made here: ip {' '.join(arguments)}: {done.stderr}")


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[OtherHost]:
    if os.geteuid() != 0:
        pytest.skip("only root makes network namespaces")
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed")
    name = f"vmagentd{os.getpid()}"
    wire, end = f"va{os.getpid()}", f"vb{os.getpid()}"
    with ExitStack() as stack:
        ip("netns", "add", name)
        stack.callback(subprocess.run, ["ip", "netns", "delete", name], check=True)
        ip("link", "add", wire, "type", "veth", "peer", "name", end, "netns", name)
        ip("address", "add", f"{HERE}/30", "dev", wire)
        ip("link", "set", wire, "up")
        ip("-n", name, "address", "add", f"{THERE}/30", "dev", end)
        ip("-n", name, "link", "set", end, "up")
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vmagentd-")))
        # what the README has a stranger do
        subprocess.run(
            [sys.executable, "-m", "vmagent.ctl", "pki", str(folder / "pki"), "--server", HERE],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        ca = (folder / "pki" / "ca.pem").read_bytes()
        (folder / "ca.pem").write_bytes(ca)
        (folder / "denied").touch()
        key = load_pem_private_key((folder / "pki" / "ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        settings = f"""
            [remote]
            listen = "{HERE}:{PORT}"
            certificate = "{folder}/pki/server.pem"
            key = "{folder}/pki/server.key"
            client_ca = "{folder}/ca.pem"
            deny_file = "{folder}/denied"
            [[access.grants]]
            role = "operator"
            subjects = ["{SUBJECT}"]
        """
        daemon = Daemon("test:///default", folder, settings=settings)
        pair = Pair(x509.load_pem_x509_certificate(ca), key)
        yield OtherHost(name, folder, pair, stack.enter_context(daemon))


def test_a_good_certificate_is_let_in(elsewhere: OtherHost) -> None:
    me = elsewhere.client()
    listed = elsewhere.vmagentctl(me, "list")
    assert (listed.code, listed.err) == (0, "")
    assert "test" in listed.out
    known = elsewhere.vmagentctl(me, "whoami")
    assert SUBJECT in known.out
    assert me.fingerprint in known.out
    assert elsewhere.vmagentctl(me, "stop", "test").code == 0
    assert elsewhere.vmagentctl(me, "start", "test").code == 0


def test_one_of_another_ca_is_told_so(elsewhere: OtherHost) -> None:
    other = issue(None, "another CA", ca=True)
    done = elsewhere.vmagentctl(issue(other, "ops", SUBJECT), "list")
    assert done.code == 4
    assert "it does not accept your certificate: it was issued by 'CN=another CA'" in done.err
    assert done.err.count("\n") == 1


def test_one_that_has_ended_is_told_so(elsewhere: OtherHost) -> None:
    done = elsewhere.vmagentctl(elsewhere.client(begin=-2 * DAY, end=-DAY), "list")
    assert done.code == 4
    assert "it does not accept your certificate: it ended at" in done.err


def test_a_denied_one_is_told_so_and_written_down(elsewhere: OtherHost) -> None:
    denied = elsewhere.client()
    assert elsewhere.vmagentctl(denied, "list").code == 0
    (elsewhere.folder / "denied").write_text(denied.fingerprint)
    try:
        until(
            lambda: "is denied on this host" in elsewhere.vmagentctl(denied, "list").err,
            "the certificate is denied",
        )
        done = elsewhere.vmagentctl(denied, "list")
        assert done.code == 1
        assert done.err.endswith(" [CALLER_UNKNOWN]\n")
        assert elsewhere.vmagentctl(elsewhere.client(), "list").code == 0
    finally:
        (elsewhere.folder / "denied").write_text("")

    def written() -> bool:
        request = pb.ListAuditRecordsRequest(kinds=[AuditKind.AUDIT_KIND_REFUSAL])
        records = elsewhere.daemon.stub.ListAuditRecords(request, timeout=10).records
        return any(denied.fingerprint in r.message and r.peer.startswith(THERE) for r in records)

    until(written, "an audit record names the certificate and where it came from")


def test_a_watch_ends_and_tells_why(elsewhere: OtherHost) -> None:
    denied = elsewhere.client()
    command = elsewhere.command(denied, "watch", "--output", "jsonl")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watch:
        try:
            assert watch.stdout is not None
            assert watch.stdout.readline()
            (elsewhere.folder / "denied").write_text(denied.serial)
            _, told = watch.communicate(timeout=40)
        finally:
            watch.kill()
            (elsewhere.folder / "denied").write_text("")
    assert watch.returncode == 1
    assert "is denied on this host" in told
    assert told.count("\n") == 1


def test_without_one_there_is_no_way(elsewhere: OtherHost) -> None:
    done = elsewhere.vmagentctl(None, "list")
    assert done.code == 2
    assert "with a certificate of your own; write --cert, --key before" in done.err


def test_a_port_where_nobody_listens_is_told(elsewhere: OtherHost) -> None:
    me = elsewhere.client()
    done = elsewhere.vmagentctl(me, "list", "--target", f"{HERE}:{PORT + 1}")
    assert done.code == 4
    assert "nobody listens there" in done.err


def test_a_host_of_another_name_is_not_believed(elsewhere: OtherHost) -> None:
    done = elsewhere.vmagentctl(elsewhere.client(), "--server-name", "elsewhere", "list")
    assert done.code == 4
    assert "its certificate is not accepted" in done.err
