"""What others than the daemon do to guests: through libvirt, and to their processes."""

import contextlib
import signal
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import libvirt

from tests.system.chaos.plan import Deed, Verb
from tests.system.chaos.players import Player
from tests.system.libvirtd import PrivateLibvirtd

WITH_ALL_IT_HAS: Final = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)
# The longest time for which a guest's process is stopped: longer than a monitor command takes.
_LONGEST_FREEZE_S: Final = 0.5

# A `virDomain`; libvirt has no types.
_Domain = Any


def _rename(domain: _Domain, player: Player) -> None:
    old, new = player.names
    domain.rename(new if domain.name() == old else old)


_DEEDS: Mapping[Verb, Callable[[_Domain, Player], object]] = MappingProxyType({
    Verb.UNDEFINE: lambda domain, _: domain.undefineFlags(WITH_ALL_IT_HAS),
    Verb.RENAME: _rename,
    Verb.CREATE: lambda domain, _: domain.create(),
    Verb.CREATE_PAUSED: lambda domain, _: domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED),
    Verb.DESTROY: lambda domain, _: domain.destroy(),
    Verb.SHUTDOWN: lambda domain, _: domain.shutdown(),
    Verb.REBOOT: lambda domain, _: domain.reboot(),
    Verb.RESET: lambda domain, _: domain.reset(),
    Verb.SUSPEND: lambda domain, _: domain.suspend(),
    Verb.RESUME: lambda domain, _: domain.resume(),
    Verb.WAKE_UP: lambda domain, _: domain.pMWakeup(),
    Verb.SAVE: lambda domain, _: domain.managedSave(),
    Verb.DROP_SAVED: lambda domain, _: domain.managedSaveRemove(),
})  # fmt: skip


class Virsh:
    """One other client of libvirt; comes back when libvirtd does. For one thread."""

    def __init__(self, libvirtd: PrivateLibvirtd) -> None:
        self._libvirtd = libvirtd
        self._connection: Any = None

    def do(self, deed: Deed, player: Player) -> str:
        """Do it; return "done" or libvirt's reason why not."""
        try:
            self._do(deed, player)
        except libvirt.libvirtError as error:
            if self._connection is not None and not self._connection.isAlive():
                self.close()
            return f"{error.get_error_code()}: {error.get_error_message()}"
        except ProcessLookupError as error:
            return str(error)
        return "done"

    def connection(self) -> Any:  # noqa: ANN401 - libvirt has no types
        """Return the link, opened again if it was lost."""
        if self._connection is None:
            self._connection = libvirt.open(self._libvirtd.uri)
        return self._connection

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                connection.close()

    def _do(self, deed: Deed, player: Player) -> None:
        match deed.verb:
            case Verb.DEFINE:
                self.connection().defineXML(player.definition(deed.dice))
            case Verb.CREATE_TRANSIENT:
                self.connection().createXML(player.definition(deed.dice))
            case Verb.KILL_QEMU:
                self._signal(player, signal.SIGKILL)
            case Verb.TERMINATE_QEMU:
                self._signal(player, signal.SIGTERM)
            case Verb.FREEZE_QEMU:
                self._signal(player, signal.SIGSTOP)
                time.sleep(deed.dice * _LONGEST_FREEZE_S)  # the deed itself
                self._signal(player, signal.SIGCONT)
            case verb:
                domain = self.connection().lookupByUUIDString(player.uuid)
                _DEEDS[verb](domain, player)

    def _signal(self, player: Player, signal_: signal.Signals) -> None:
        # its process bears the name it had when it was started
        for name in player.names:
            # ValueError: the file that is to tell its pid is there and not written yet
            with contextlib.suppress(ProcessLookupError, ValueError):
                self._libvirtd.signal_qemu(name, signal_)
                return
        raise ProcessLookupError("no process")
