"""Writes down every domain event of a libvirtd: `record.py URI`, one line of JSON per event.

A program of its own, for libvirt has one event loop per process. It ends with its standard input.
"""

import json
import sys
import threading
import time
from collections.abc import Callable

import libvirt

_LIFECYCLE = [
    *("DEFINED", "UNDEFINED", "STARTED", "SUSPENDED", "RESUMED", "STOPPED", "SHUTDOWN"),
    *("PMSUSPENDED", "CRASHED"),
]
_OTHERS = [
    *("REBOOT", "CONTROL_ERROR", "WATCHDOG", "PMSUSPEND", "PMWAKEUP", "AGENT_LIFECYCLE"),
    *("IO_ERROR", "JOB_COMPLETED"),
]
_CLOSED = ["ERROR", "EOF", "KEEPALIVE", "CLIENT"]


def main(uri: str) -> None:
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, daemon=True, name="libvirt-events").start()
    connection = libvirt.open(uri)
    connection.registerCloseCallback(_on_close, None)
    connection.domainEventRegisterAny(
        None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, _on_lifecycle, None
    )
    for name in _OTHERS:
        event_id = getattr(libvirt, f"VIR_DOMAIN_EVENT_ID_{name}")
        connection.domainEventRegisterAny(None, event_id, _on_other(name), None)
    _write("RECORDING", None)
    sys.stdin.read()


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def _on_lifecycle(
    _connection: libvirt.virConnect, domain: libvirt.virDomain, event: int, detail: int, _: object
) -> None:
    kind = _LIFECYCLE[event]
    prefix = f"VIR_DOMAIN_EVENT_{kind}_"
    details = {getattr(libvirt, name): name for name in dir(libvirt) if name.startswith(prefix)}
    _write(f"{kind}/{details[detail].removeprefix(prefix)}", domain)


def _on_other(name: str) -> Callable[..., None]:
    def on_event(_connection: libvirt.virConnect, domain: libvirt.virDomain, *_: object) -> None:
        _write(name, domain)

    return on_event


def _on_close(_connection: libvirt.virConnect, reason: int, _: object) -> None:
    _write(f"CLOSED/{_CLOSED[reason]}", None)


def _write(what: str, domain: libvirt.virDomain | None) -> None:
    event = {
        "what": what,
        "uuid": domain.UUIDString() if domain else "",
        "name": domain.name() if domain else "",
        "id": domain.ID() if domain else -1,
        "monotonic_s": time.monotonic(),
    }
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
