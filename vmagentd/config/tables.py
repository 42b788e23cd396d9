"""The tables of the settings, with their defaults and limits."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from vmagentd.config.values import Address, Age, Duration, FileMode, FilePath, Place, Size, within
from vmagentd.model import (
    Denied,
    Grant,
    NetworkSettings,
    Role,
    Rule,
    TlsFiles,
    TlsSettings,
    parse_fingerprint,
    parse_serial,
)
from vmagentd.operations.means import Times
from vmagentd.operations.starts import HostLimits

if TYPE_CHECKING:
    from collections.abc import Callable


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StopSettings(_Table):
    """`[stop]`: how VMs are stopped."""

    # time between two presses of the power button while the guest does not react
    press_interval: Duration = timedelta(seconds=5)
    # how long a VM that is forced off may take before that counts as failed
    force_timeout: Duration = timedelta(seconds=60)

    @property
    def times(self) -> Times:
        """The same as the daemon goes by it."""
        return Times(press_interval=self.press_interval, force_timeout=self.force_timeout)


class RetentionSettings(_Table):
    """`[retention]`: how much history the journal keeps."""

    # transitions: as many as are within both; the newest of each VM that is present always stays
    transitions_max: Annotated[int, Field(ge=1000, le=100_000_000)] = 1_000_000
    # and how long
    age_max: Age = timedelta(days=90)
    # operations, and with them the request ids that they answer, this long after their end
    operations_age: Age = timedelta(days=7)


class MetricsSettings(_Table):
    """`[metrics]`: figures for Prometheus."""

    # HOST:PORT or unix:PATH; whoever can connect may read. Unset: nothing is measured or served
    listen: Place | None = None


class AuditSettings(_Table):
    """`[audit]`: how long is told who did what. It cannot be switched off."""

    age_max: Age = timedelta(days=365)
    # of each kind: operations, requests that joined one, refusals
    records_max: Annotated[int, Field(ge=1000, le=10_000_000)] = 200_000


class GrantSettings(_Table):
    """`[[access.grants]]`: whoever is one of these has the role, for these VMs."""

    role: Literal["viewer", "operator", "admin"]
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    # what certificates name: URIs, or `dns:NAME`; or globs of these
    subjects: tuple[str, ...] = ()
    # names of VMs; none: all
    vms: tuple[Annotated[str, Field(min_length=1)], ...] = ()

    @model_validator(mode="after")
    def _names_somebody(self) -> Self:
        if not (self.users or self.groups or self.subjects):
            message = "names nobody: give users, groups or subjects"
            raise ValueError(message)
        return self


class AccessSettings(_Table):
    """`[access]`: who has which role. root is admin, and so is whom the daemon runs as."""

    # a group that does not exist has no members
    admin_groups: tuple[str, ...] = ("vmagentd-admin",)
    operator_groups: tuple[str, ...] = ("vmagentd-operator",)
    viewer_groups: tuple[str, ...] = ("vmagentd-viewer",)
    grants: tuple[GrantSettings, ...] = ()

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The same as the daemon goes by it."""
        groups = {
            Role.ADMIN: self.admin_groups,
            Role.OPERATOR: self.operator_groups,
            Role.VIEWER: self.viewer_groups,
        }
        return (
            *(
                Rule(grant=Grant(role=role), groups=frozenset(names))
                for role, names in groups.items()
            ),
            *(
                Rule(
                    grant=Grant(role=Role(each.role.upper()), vm_globs=each.vms),
                    users=frozenset(each.users),
                    groups=frozenset(each.groups),
                    subjects=frozenset(each.subjects),
                )
                for each in self.grants
            ),
        )


class LimitSettings(_Table):
    """`[limits]`: what one caller may have; far above what a control plane needs."""

    # of one user of this host, and of all of them
    user_connections: Annotated[int, Field(ge=1, le=65536)] = 256
    connections: Annotated[int, Field(ge=1, le=65536)] = 1024
    # calls of one caller: in the long run, twice as many at once
    calls_per_second: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    # watches and operations that one caller follows at a time
    streams: Annotated[int, Field(ge=1, le=1_000_000)] = 2048
    # other calls of one caller under way
    calls_at_once: Annotated[int, Field(ge=1, le=1_000_000)] = 2048
    # longest time for a call that is no stream
    call_timeout: Duration = timedelta(seconds=60)
    # longest time that a watcher may leave unread what it was sent; who does so for twice as long,
    # or takes nothing of an answer, is disconnected
    stall_timeout: Duration = timedelta(seconds=30)


class HostLimitSettings(_Table):
    """`[host_limits]`: what all VMs of the host may use together; 0 is no limit."""

    # starts that libvirt is busy with at once; others wait for their turn
    starts_at_once: Annotated[int, Field(ge=0, le=1000)] = 8
    running_vms: Annotated[int, Field(ge=0, le=100_000)] = 0
    vcpus: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    # like "512GiB"
    memory: Size = 0

    @property
    def limits(self) -> HostLimits:
        """The same as the daemon goes by it."""
        return HostLimits(
            starts_at_once=self.starts_at_once,
            running_vms=self.running_vms,
            vcpus=self.vcpus,
            memory_bytes=self.memory,
        )


def _denied(parse: Callable[[str], object]) -> BeforeValidator:
    def check(value: object) -> object:
        if isinstance(value, str):
            parse(value)
        return value

    return BeforeValidator(check)


class RemoteSettings(_Table):
    """`[remote]`: the TCP port for other hosts, with TLS. Off unless `listen` is set."""

    # like "0.0.0.0:7443", which is all addresses, IPv6 too; unset: nobody comes from elsewhere
    listen: Address | None = None
    # in PEM: the daemon's own, with what is between it and its CA, and its key
    certificate: FilePath | None = None
    key: FilePath | None = None
    # in PEM: whoever issues the certificates of clients
    client_ca: FilePath | None = None
    # client certificates that are not accepted: in hexadecimal digits, as openssl prints them
    deny_serials: tuple[Annotated[str, _denied(parse_serial)], ...] = ()
    # of SHA-256: `openssl x509 -noout -fingerprint -sha256 -in FILE`
    deny_fingerprints: tuple[Annotated[str, _denied(parse_fingerprint)], ...] = ()
    # a file with more of both, one a line, which is followed. Replace it by renaming another one:
    # one that is written over is empty for a moment, and nobody is denied then
    deny_file: FilePath | None = None
    # a connection ends then, and its client connects again
    max_connection_age: Annotated[timedelta, within("1s", "7d")] = timedelta(hours=1)

    @model_validator(mode="after")
    def _never_without_tls(self) -> Self:
        needed = ("certificate", "key", "client_ca")
        missing = [name for name in needed if getattr(self, name) is None]
        if self.listen is not None and missing:
            message = f"listen needs {', '.join(missing)} too: there is no TCP without TLS"
            raise ValueError(message)
        return self

    @property
    def files(self) -> TlsFiles | None:
        """What is shown there; None: not all of it is set."""
        own, key, cas = self.certificate, self.key, self.client_ca
        if own is None or key is None or cas is None:
            return None
        return TlsFiles(certificate=own, key=key, client_ca=cas)

    @property
    def denied(self) -> Denied:
        """Who is denied, whatever is in `deny_file`."""
        serials = map(parse_serial, self.deny_serials)
        return Denied(frozenset((*serials, *map(parse_fingerprint, self.deny_fingerprints))))

    @property
    def network(self) -> NetworkSettings | None:
        """The same as the daemon goes by it; None: it is off."""
        files = self.files
        if self.listen is None or files is None:
            return None
        return NetworkSettings(
            listen=self.listen,
            max_connection_age=self.max_connection_age,
            tls=TlsSettings(files=files, denied=self.denied, deny_file=self.deny_file),
        )


class Config(_Table):
    """All settings; the names are the keys of the file."""

    # the libvirt that is followed
    libvirt_uri: Annotated[str, Field(min_length=1)] = "qemu:///system"
    # where clients connect; whoever can is known by the kernel, so all may try. Where systemd
    # listens, as with the package, its socket is used: ListenStream= and SocketMode= in a drop-in
    # (`systemctl edit vmagentd.socket`), and these two do nothing
    socket: FilePath = Path("/run/vmagentd/vmagentd.sock")
    socket_mode: FileMode = 0o666
    # the journal's directory: the daemon's own. The package's service may write to another one
    # with ReadWritePaths= in a drop-in only (`systemctl edit vmagentd.service`)
    state_dir: FilePath = Path("/var/lib/vmagentd")
    # least severity that is logged: debug, info, warning or error
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    # longest time between two surveys of all VMs
    survey_interval: Duration = timedelta(minutes=1)
    # longest wait for calls under way when the daemon ends; an answer that is ready has a second
    # to be taken
    drain_timeout: Annotated[timedelta, within("1s", "60s")] = timedelta(seconds=2)
    stop: StopSettings = StopSettings()
    host_limits: HostLimitSettings = HostLimitSettings()
    retention: RetentionSettings = RetentionSettings()
    audit: AuditSettings = AuditSettings()
    metrics: MetricsSettings = MetricsSettings()
    access: AccessSettings = AccessSettings()
    limits: LimitSettings = LimitSettings()
    remote: RemoteSettings = RemoteSettings()
