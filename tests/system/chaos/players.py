"""The guests of a run: who they are, and what they do by themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final
from uuid import UUID

from tests.system.domains import Spec, Then, domain_xml
from tests.system.guests import Behaviour, Roms

# Those that act without being told, once they run; before a rest they are paused.
RESTLESS: Final = frozenset({
    Behaviour.SLOW,
    Behaviour.POWEROFF,
    Behaviour.RESET,
    Behaviour.PANIC,
    Behaviour.SLEEP,
    Behaviour.FAULT,
})  # fmt: skip

_CAST: Final = (
    Spec(Behaviour.ACPI),
    Spec(Behaviour.ACPI),
    Spec(Behaviour.ACPI),
    Spec(Behaviour.SLOW, 0.4),
    Spec(Behaviour.DEAF),
    Spec(Behaviour.SECOND_PRESS),
    Spec(Behaviour.POWEROFF, 0.8),
    Spec(Behaviour.RESET, 0.3),
    Spec(Behaviour.PANIC, 0.6),
    Spec(Behaviour.PANIC, 0.5, on_crash=Then.PRESERVE),
    Spec(Behaviour.PANIC, 0.4, on_crash=Then.RESTART),
    Spec(Behaviour.SLEEP, 0.5),
    Spec(Behaviour.FAULT, 0.7),
    Spec(Behaviour.RESET, 0.6, on_reboot=Then.DESTROY),
)


@dataclass(frozen=True, slots=True)
class Player:
    """One guest of the run, whether libvirt knows it at the time or not."""

    behaviour: Behaviour
    uuid: str
    # it bears one of these, the first when it is defined
    names: tuple[str, str]
    # its definitions: two sizes, one for each way a die may fall
    definitions: tuple[str, str]

    def definition(self, dice: float) -> str:
        return self.definitions[dice < 0.3]


def cast(random: Random, roms: Roms) -> Sequence[Player]:
    """Return all guests of a run."""
    players = []
    for number, model in enumerate(_CAST):
        uuid = UUID(int=random.getrandbits(128), version=4)
        name = f"{number}-{model.behaviour}"
        specs = (
            Spec(
                model.behaviour,
                model.delay_s,
                on_reboot=model.on_reboot,
                on_crash=model.on_crash,
                memory_mib=mib,
                name=name,
                uuid=uuid,
            )
            for mib in (1, 2)
        )
        small, large = (domain_xml(spec, roms) for spec in specs)
        players.append(
            Player(model.behaviour, str(uuid), (name, f"{name}-renamed"), (small, large))
        )
    return players
