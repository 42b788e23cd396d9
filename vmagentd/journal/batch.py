"""Facts, and what a run of them makes of the journal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from vmagentd.lifecycle.trails import NO_TRAIL, GivenUp, Trail
from vmagentd.model import (
    Event,
    HostBooted,
    HostGoingDown,
    JoinedRequest,
    Link,
    LinkLost,
    Operation,
    Query,
    Refusal,
    Revision,
    Survey,
    Transition,
    Vm,
    VmUuid,
)

if TYPE_CHECKING:
    from vmagentd.model import OperationId

Fact: TypeAlias = (
    Event
    | LinkLost
    | Survey
    | Query
    | Operation
    | JoinedRequest
    | Refusal
    | HostBooted
    | HostGoingDown
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the next fact on a VM is judged by, beside the VM itself."""

    # the one under way
    operation: Operation | None = None
    # what was heard of its hypervisor process, if it is active
    trail: Trail = NO_TRAIL
    # what libvirt was asked for by earlier ones may come yet, in whichever process
    given_up: tuple[GivenUp, ...] = ()
    # its definition was removed while somebody listened
    undefined: bool = False
    # number of its last event: a query that began before it knows less
    last_event: int = 0
    # in which time without a break of the link `trail` and `undefined` were learned
    era: int = 0


NO_CONTEXT: Final = Context()


@dataclass(slots=True, kw_only=True)
class Batch:
    """What some facts make of the journal; nothing of it holds before it is committed."""

    head: Revision
    link: Link
    # counts the links that were lost: what was heard before the last loss proves nothing now
    era: int
    # the youngest link that was lost: a survey that went through it ends no blindness
    lost_link: int
    # whether QEMU's own events are heard, and were since a survey
    heard: bool
    # the host's boot; None before it was told
    boot_id: str | None
    host_going_down: bool
    transitions: list[Transition] = field(default_factory=list)
    # VMs that a transition or a query touched, as they are after it
    vms: dict[VmUuid, Vm] = field(default_factory=dict)
    operations: dict[OperationId, Operation] = field(default_factory=dict)
    joined: list[JoinedRequest] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    # VMs that libvirt is to be asked about
    doubts: set[VmUuid] = field(default_factory=set)
    contexts: dict[VmUuid, Context] = field(default_factory=dict)
    # Number of the last query on a VM that was believed: one that began before it may know less.
    # Not part of its context, which is only copied to change: a survey queries every VM.
    queried: dict[VmUuid, int] = field(default_factory=dict)
    # every link in between: a blind time that begins and ends in here has been all the same
    links: list[Link] = field(default_factory=list)
