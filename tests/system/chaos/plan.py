"""What is done, in which order and after which pause: a function of the seed and nothing else.

Nobody looks at a guest before acting on it. A plan has a belief of what the guest should be by
now and chooses what makes sense then; where chaos made it something else, the deed is refused,
and that belongs to the trial too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from types import MappingProxyType
from typing import Final


class Verb(StrEnum):
    """What can be done to a guest."""

    # through libvirt, as virsh would
    DEFINE = "define"
    UNDEFINE = "undefine"
    RENAME = "rename"
    CREATE = "create"
    CREATE_PAUSED = "create paused"
    CREATE_TRANSIENT = "create transient"
    DESTROY = "destroy"
    SHUTDOWN = "shutdown"
    REBOOT = "reboot"
    RESET = "reset"
    SUSPEND = "suspend"
    RESUME = "resume"
    WAKE_UP = "wake up"
    SAVE = "save"
    DROP_SAVED = "drop what was saved"
    # to its process
    KILL_QEMU = "kill QEMU"
    TERMINATE_QEMU = "terminate QEMU"
    FREEZE_QEMU = "freeze QEMU"
    # through the daemon
    START = "Start"
    START_PAUSED = "Start paused"
    START_AFRESH = "Start afresh"
    STOP = "Stop"
    STOP_THEN_FORCE = "Stop, then force"
    FORCE_OFF = "Stop by force"
    REBOOT_GUEST = "Reboot"
    REBOOT_THEN_RESET = "Reboot, then force"
    RESET_GUEST = "Reboot by force"
    PAUSE = "Pause"
    RESUME_GUEST = "Resume"


CLIENTS: Final = frozenset({
    Verb.START,
    Verb.START_PAUSED,
    Verb.START_AFRESH,
    Verb.STOP,
    Verb.STOP_THEN_FORCE,
    Verb.FORCE_OFF,
    Verb.REBOOT_GUEST,
    Verb.REBOOT_THEN_RESET,
    Verb.RESET_GUEST,
    Verb.PAUSE,
    Verb.RESUME_GUEST,
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """Something to be done to a guest."""

    # counts the deeds of its lane
    number: int
    verb: Verb
    # whose
    player: int
    # before it; how fast a lane goes is part of the plan, nothing waits for a fact here
    pause_s: float
    # settles what else is open about it, from 0 to 1
    dice: float
    # of a request to the daemon: how often it is made again if the daemon dies over it
    repeats: int
    # of a request to the daemon: its caller leaves after the first answer
    hangs_up: bool
    # of a request to the daemon: somebody cancels it as soon as it is accepted
    is_cancelled: bool


class _Belief(StrEnum):
    ABSENT = "absent"
    OFF = "off"
    UP = "up"
    PAUSED = "paused"
    SAVED = "saved"


_B, _V = _Belief, Verb

# What may be done to a guest of which that is believed: how often, what, and what it is then.
_CHOICES: Mapping[_Belief, Sequence[tuple[int, Verb, _Belief]]] = MappingProxyType({
    _B.ABSENT: (
        (5, _V.DEFINE, _B.OFF),
        (3, _V.CREATE_TRANSIENT, _B.UP),
        (1, _V.START, _B.ABSENT),
        (1, _V.STOP, _B.ABSENT),
    ),
    _B.OFF: (
        (3, _V.CREATE, _B.UP),
        (1, _V.CREATE_PAUSED, _B.PAUSED),
        (5, _V.START, _B.UP),
        (1, _V.START_PAUSED, _B.PAUSED),
        (1, _V.STOP, _B.OFF),
        (1, _V.FORCE_OFF, _B.OFF),
        (1, _V.REBOOT_GUEST, _B.OFF),
        (1, _V.RESUME_GUEST, _B.OFF),
        (1, _V.DEFINE, _B.OFF),
        (1, _V.RENAME, _B.OFF),
        (2, _V.UNDEFINE, _B.ABSENT),
    ),
    _B.UP: (
        (3, _V.SHUTDOWN, _B.OFF),
        (3, _V.DESTROY, _B.OFF),
        (3, _V.STOP, _B.OFF),
        (3, _V.FORCE_OFF, _B.OFF),
        (2, _V.STOP_THEN_FORCE, _B.OFF),
        (4, _V.SUSPEND, _B.PAUSED),
        (3, _V.PAUSE, _B.PAUSED),
        (2, _V.REBOOT_GUEST, _B.UP),
        (2, _V.REBOOT_THEN_RESET, _B.UP),
        (2, _V.RESET_GUEST, _B.UP),
        (2, _V.SAVE, _B.SAVED),
        (1, _V.RESET, _B.UP),
        (1, _V.REBOOT, _B.UP),
        (2, _V.KILL_QEMU, _B.OFF),
        (1, _V.TERMINATE_QEMU, _B.OFF),
        (1, _V.FREEZE_QEMU, _B.UP),
        (1, _V.UNDEFINE, _B.UP),
        (1, _V.DEFINE, _B.UP),
        (1, _V.START, _B.UP),
        (1, _V.WAKE_UP, _B.UP),
    ),
    _B.PAUSED: (
        (4, _V.RESUME, _B.UP),
        (4, _V.RESUME_GUEST, _B.UP),
        (1, _V.PAUSE, _B.PAUSED),
        (1, _V.RESET_GUEST, _B.PAUSED),
        (1, _V.STOP, _B.PAUSED),
        (1, _V.START, _B.PAUSED),
        (1, _V.FORCE_OFF, _B.OFF),
        (1, _V.DESTROY, _B.OFF),
        (1, _V.SAVE, _B.SAVED),
        (1, _V.KILL_QEMU, _B.OFF),
    ),
    _B.SAVED: (
        (3, _V.START, _B.UP),
        (2, _V.CREATE, _B.UP),
        (1, _V.START_AFRESH, _B.UP),
        (1, _V.DROP_SAVED, _B.OFF),
        (1, _V.UNDEFINE, _B.ABSENT),
    ),
})  # fmt: skip


def stream(seed: int, *of: object) -> Random:
    """Return the random numbers of one part of a run; no part takes from another's."""
    return Random("/".join(map(str, (seed, *of))))


def deeds(random: Random, players: Sequence[int]) -> Iterator[Deed]:
    """Yield what one lane does to its guests, for ever."""
    beliefs = dict.fromkeys(players, _Belief.ABSENT)
    number = 0
    while True:
        number += 1
        player = random.choice(players)
        choices = _CHOICES[beliefs[player]]
        ((_, verb, beliefs[player]),) = random.choices(choices, [odds for odds, *_ in choices])
        yield Deed(
            number=number,
            verb=verb,
            player=player,
            pause_s=random.expovariate(20),
            dice=random.random(),
            repeats=random.choice((0, 1, 3)),
            hangs_up=random.random() < 0.15,
            is_cancelled=random.random() < 0.1,
        )
