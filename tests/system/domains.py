"""The tests' guests as libvirt domains: their XML, their making and their removal."""

import contextlib
import html
import signal
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from pathlib import Path
from uuid import UUID, uuid4

import libvirt

from tests.system.deadline import until
from tests.system.guests import Behaviour, Roms
from tests.system.guests.linux import Kernel
from tests.system.libvirtd import PrivateLibvirtd

_WITH_ALL_IT_HAS = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)


class Then(StrEnum):
    """What libvirt does when a guest has powered off, reset or crashed."""

    DESTROY = "destroy"
    RESTART = "restart"
    PRESERVE = "preserve"  # not for on_poweroff, QEMU's driver refuses it
    COREDUMP_DESTROY = "coredump-destroy"  # only for on_crash
    COREDUMP_RESTART = "coredump-restart"  # only for on_crash


@dataclass(frozen=True, slots=True)
class Linux:
    """A Linux guest, and what its init is told (`guests/linux-init.sh`)."""

    kernel: Kernel
    words: str = ""


@dataclass(frozen=True, slots=True)
class Spec:
    """A guest to be: what runs in it, and how libvirt is to treat it."""

    behaviour: Behaviour = Behaviour.ACPI
    delay_s: float = 0.0
    _: KW_ONLY
    on_poweroff: Then = Then.DESTROY
    on_reboot: Then = Then.RESTART
    on_crash: Then = Then.DESTROY
    acpi: bool = True
    panic_device: bool = True
    agent: bool = False  # a channel for a guest agent; only a Linux guest has one to answer
    memory_mib: int = 1
    rom: Path | None = None  # instead of the behaviour's; a file that is missing fails the start
    linux: Linux | None = None  # instead of a ROM
    disk: Path | None = None  # a qcow2 image, which no guest here looks at
    name: str = field(default_factory=lambda: f"guest-{uuid4().hex[:8]}")
    uuid: UUID = field(default_factory=uuid4)


def domain_xml(spec: Spec, roms: Roms) -> str:
    """Return the domain XML of a guest, its ROM assembled."""
    boot, cpu = _linux(spec.linux) if spec.linux else _rom(spec, roms)
    agent = "<target type='virtio' name='org.qemu.guest_agent.0'/>"
    disk = f"<driver name='qemu' type='qcow2'/><source file='{spec.disk}'/><target dev='hda'/>"
    return f"""
<domain type='qemu'>
  <name>{html.escape(spec.name)}</name>
  <uuid>{spec.uuid}</uuid>
  <memory unit='MiB'>{spec.memory_mib}</memory>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    {boot}
  </os>
  {cpu}
  <features>{"<acpi/>" if spec.acpi else ""}</features>
  <on_poweroff>{spec.on_poweroff}</on_poweroff>
  <on_reboot>{spec.on_reboot}</on_reboot>
  <on_crash>{spec.on_crash}</on_crash>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    {"<panic model='isa'/>" if spec.panic_device else ""}
    {f"<disk type='file' device='disk'>{disk}</disk>" if spec.disk else ""}
    {f"<channel type='unix'>{agent}</channel>" if spec.agent else ""}
  </devices>
</domain>"""


def _rom(spec: Spec, roms: Roms) -> tuple[str, str]:
    rom = spec.rom or roms.rom(spec.behaviour, spec.delay_s)
    return (
        f"<loader readonly='yes' type='rom'>{rom}</loader>",
        "<cpu mode='custom' match='exact' check='none'><model>486</model></cpu>",
    )


def _linux(linux: Linux) -> tuple[str, str]:
    files = f"<kernel>{linux.kernel.vmlinuz}</kernel><initrd>{linux.kernel.initramfs}</initrd>"
    words = f"console=ttyS0 quiet tsc=reliable {linux.words}"
    return f"{files}<cmdline>{html.escape(words)}</cmdline>", ""


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest that was made; it may be gone by now."""

    spec: Spec
    libvirtd: PrivateLibvirtd

    @property
    def name(self) -> str:
        """Its name when it was made."""
        return self.spec.name

    @property
    def uuid(self) -> str:
        return str(self.spec.uuid)

    @property
    def domain(self) -> libvirt.virDomain:
        """The domain, looked up anew: valid until libvirtd ends."""
        return self.libvirtd.connection.lookupByUUIDString(self.uuid)

    @property
    def state(self) -> tuple[int, int] | None:
        """State and reason; None for a guest that libvirt does not know (any more)."""
        try:
            state, reason = self.domain.state()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise
        return state, reason

    def until_state(self, state: int | None, *, within_s: float = 30.0) -> None:
        """Wait until libvirt says that the guest is in a state; None: does not know it."""

        def reached() -> bool:
            seen = self.state
            return state is None if seen is None else seen[0] == state

        until(reached, f"{self.name} in state {state}", within_s=within_s)

    def signal(self, signal_: signal.Signals) -> None:
        """Send a signal to the guest's QEMU."""
        self.libvirtd.signal_qemu(self.name, signal_)


class Guests:
    """Makes guests on one libvirtd, and removes them."""

    def __init__(self, libvirtd: PrivateLibvirtd, roms: Roms) -> None:
        self._libvirtd = libvirtd
        self._roms = roms
        self._made: list[Guest] = []

    def __call__(
        self, spec: Spec | None = None, *, persistent: bool = True, running: bool = True
    ) -> Guest:
        """Make a guest: persistent or transient, running or (if persistent) shut off."""
        spec = spec or Spec()
        xml = domain_xml(spec, self._roms)
        guest = Guest(spec, self._libvirtd)
        self._made.append(guest)
        if persistent:
            domain = self._libvirtd.connection.defineXML(xml)
            if running:
                domain.create()
        elif running:
            self._libvirtd.connection.createXML(xml)
        else:
            raise ValueError("a transient guest that does not run does not exist")
        return guest

    def remove_all(self) -> None:
        """Remove what is left of the guests, in whatever state they are."""
        while self._made:
            _remove(self._made.pop())


def _remove(guest: Guest) -> None:
    # Not by name: it may have been renamed. And QEMU first: libvirt waits 15 s for one that hangs.
    with _unless(libvirt.VIR_ERR_NO_DOMAIN):
        domain = guest.domain
        with contextlib.suppress(ProcessLookupError):
            guest.libvirtd.signal_qemu(domain.name(), signal.SIGKILL)
        with _unless(libvirt.VIR_ERR_OPERATION_INVALID):  # not running
            domain.destroy()
        if domain.isPersistent():
            domain.undefineFlags(_WITH_ALL_IT_HAS)


@contextlib.contextmanager
def _unless(code: int) -> Iterator[None]:
    """Let one error of libvirt pass."""
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() != code:
            raise
