"""How soon a callback is back in libvirt while the journal writes.

    python -m tests.bench.callback

The daemon runs in this process, with its writer committing all the time; another process suspends
and resumes four guests as fast as libvirt goes. Each callback is timed from libvirt's call to its
return.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import libvirt

from tests.bench.bed import bed, told
from tests.system.domains import Spec
from vmagentd import config, daemon

SECONDS = 20
GUESTS = 4

_TOGGLE = """
import sys, time, libvirt
link = libvirt.open(sys.argv[1])
vms = [link.lookupByName(name) for name in sys.argv[3:]]
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    for vm in vms:
        vm.suspend()
        vm.resume()
"""


def main() -> None:
    """Measure, and print the figures."""
    sys.setswitchinterval(0.0005)  # as vmagentd does
    took: list[float] = []
    _time_callbacks(took)
    with bed() as here:
        here.daemon.stop()
        guests = [here.guests(Spec(name=f"guest{n}")) for n in range(GUESTS)]
        arguments = [here.libvirtd.uri, str(SECONDS), *(guest.name for guest in guests)]
        settings = config.Config(
            libvirt_uri=here.libvirtd.uri,
            socket=here.daemon.socket,
            state_dir=here.daemon.state_dir,
            log_level="warning",
        )
        asyncio.run(_run(settings, arguments))
    ordered = sorted(took)
    print(told("callback", took))
    print(f"p99.9 {1000 * ordered[round(0.999 * (len(ordered) - 1))]:.3f} ms")
    print(f"{len(took) / SECONDS:.0f} callbacks a second")


async def _run(settings: config.Config, arguments: list[str]) -> None:
    running = asyncio.create_task(daemon.run(settings, lambda: settings))
    toggling = await asyncio.create_subprocess_exec(sys.executable, "-c", _TOGGLE, *arguments)
    await toggling.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def _time_callbacks(took: list[float]) -> None:
    """Have libvirt's binding call each callback through a clock."""
    register = libvirt.virConnect.domainEventRegisterAny

    def registered(link: Any, domain: Any, number: int, callback: Any, opaque: Any) -> int:  # noqa: ANN401
        def timed(*said: Any) -> None:  # noqa: ANN401
            began = time.perf_counter()
            callback(*said)
            took.append(time.perf_counter() - began)

        return int(register(link, domain, number, timed, opaque))

    libvirt.virConnect.domainEventRegisterAny = registered


if __name__ == "__main__":
    main()
