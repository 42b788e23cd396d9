"""Tiny guests: up in milliseconds, no disk, no kernel, no guest operating system.

Each is a 64 KiB firmware ROM, assembled from `guest.S` when a test asks for it. It needs QEMU's
machine "pc" with a 486 (see `tests.system.domains`) and the assembler and linker of binutils.
"""

import subprocess
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

SOURCE = Path(__file__).with_name("guest.S")
TICKS_PER_SECOND = 100
LONGEST_DELAY_S = 600.0  # the guest counts ticks in 16 bits


class Behaviour(StrEnum):
    """What a guest does. The delay is given when its ROM is assembled."""

    ACPI = "acpi"  # powers off at the power button
    SLOW = "slow"  # powers off, the delay after the power button
    DEAF = "deaf"  # ignores the power button
    SECOND_PRESS = "second-press"  # ignores the first press, powers off at the second
    # The rest act once, the delay after boot; before, and if they live on, they obey the button.
    POWEROFF = "poweroff"
    RESET = "reset"
    PANIC = "panic"  # tells the pvpanic device (if the domain has one), then hangs
    SLEEP = "sleep"  # ACPI S3, suspend to RAM
    FAULT = "fault"  # triple fault: the machine resets


_ACTS = {
    Behaviour.POWEROFF: 1,
    Behaviour.RESET: 2,
    Behaviour.PANIC: 3,
    Behaviour.SLEEP: 4,
    Behaviour.FAULT: 5,
}
_PRESSES = {Behaviour.DEAF: 0, Behaviour.SECOND_PRESS: 2}


@dataclass(frozen=True, slots=True)
class Roms:
    """ROMs assembled into one directory, each once."""

    directory: Path

    def rom(self, behaviour: Behaviour, delay_s: float = 0.0) -> Path:
        """Return the ROM of a guest; its delay has a resolution of 10 ms.

        Raises:
            ValueError: the behaviour knows no delay, or the delay is out of range.
        """
        acts = _ACTS.get(behaviour, 0)
        if not 0 <= delay_s <= LONGEST_DELAY_S:
            raise ValueError(f"a guest counts from 0 to {LONGEST_DELAY_S:.0f} s, not {delay_s} s")
        if delay_s and not acts and behaviour is not Behaviour.SLOW:
            raise ValueError(f"a guest that is {behaviour} has nothing to delay")
        ticks = round(delay_s * TICKS_PER_SECOND)
        rom = self.directory / f"{behaviour}-{ticks}.rom"
        if not rom.exists():
            symbols = {
                "PRESSES": _PRESSES.get(behaviour, 1),
                "GRACE": ticks if behaviour is Behaviour.SLOW else 0,
                "ACT": acts,
                "ACT_AFTER": ticks if acts else 0,
            }
            _assemble(symbols, rom)
        return rom


def _assemble(symbols: dict[str, int], rom: Path) -> None:
    defined = [word for name, n in symbols.items() for word in ("--defsym", f"{name}={n}")]
    compiled = rom.with_suffix(".o")
    link = ["ld", "-m", "elf_i386", "-Ttext=0", "--oformat=binary"]
    subprocess.run(["as", "--32", *defined, "-o", compiled, SOURCE], check=True, timeout=30)
    subprocess.run([*link, "-o", rom, compiled], check=True, timeout=30)
    compiled.unlink()
    rom.chmod(0o644)
