"""A daemon that answers as a test tells it to: a peer that speaks the real protocol."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import grpc.aio
from google.protobuf import any_pb2
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from vmagent.v1.host_pb2 import Host, Link
from vmagent.v1.operation_pb2 import (
    Operation,
    OperationOutcome,
    OperationPhase,
    OperationStep,
    OperationVerb,
)
from vmagent.v1.transition_pb2 import Cursor, Transition, TransitionKind
from vmagent.v1.vm_agent_service_pb2 import (
    GetHostResponse,
    GetOperationRequest,
    GetOperationResponse,
    StopResponse,
)
from vmagent.v1.vm_agent_service_pb2_grpc import (
    VmAgentServiceServicer,
    add_VmAgentServiceServicer_to_server,
)
from vmagent.v1.vm_pb2 import Initiator, InitiatorKind, Source, Vm, VmReason, VmState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    Context = grpc.aio.ServicerContext[Any, Any]

JOURNAL = "0b5f6d52-7b4e-4f0e-9d6c-3f6f4f0f9a11"
UP = Link(libvirt_connected=True)


class _Daemon(VmAgentServiceServicer):
    def __init__(self, methods: dict[str, Callable[..., Any]]) -> None:
        vars(self).update(methods)


def server_of(methods: dict[str, Callable[..., Any]]) -> grpc.aio.Server:
    """Return a server of these methods, which is not started; others are not implemented."""
    server = grpc.aio.server()
    daemon = _Daemon(methods)  # type: ignore[abstract]  # the rest is UNIMPLEMENTED by its base
    add_VmAgentServiceServicer_to_server(daemon, server)
    return server


@asynccontextmanager
async def serving(path: Path, **methods: Callable[..., Any]) -> AsyncIterator[grpc.aio.Server]:
    """Serve the methods that are given."""
    server = server_of(methods)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield server
    finally:
        await server.stop(None)


@contextmanager
def listening(target: Path) -> Iterator[socket.socket]:
    """A socket as systemd holds one: whoever connects waits until somebody takes it over."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(target))
        listener.listen()
        yield listener


async def refuse(
    context: Context, code: grpc.StatusCode, reason: str, sentence: str, **facts: str
) -> NoReturn:
    """End a call as the daemon does."""
    packed = any_pb2.Any()
    packed.Pack(ErrorInfo(reason=reason, domain="vmagentd", metadata=facts))
    status = Status(code=code.value[0], message=sentence, details=[packed])
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError


async def get_host(_request: object, _context: Context) -> GetHostResponse:
    return GetHostResponse(host=Host(name="h1", journal_id=JOURNAL, link=UP))


async def get_operation(request: GetOperationRequest, _context: Context) -> GetOperationResponse:
    return GetOperationResponse(operation=operation(request.operation_id.removeprefix("op-of-")))


def vm(
    name: str = "web1",
    state: VmState.ValueType = VmState.VM_STATE_RUNNING,
    reason: VmReason.ValueType = VmReason.VM_REASON_BOOTED,
    **more: Any,  # noqa: ANN401  # any field of the message
) -> Vm:
    made = Vm(uuid=f"uuid-of-{name}", name=name, state=state, reason=reason, persistent=True)
    made.initiator.CopyFrom(
        Initiator(kind=InitiatorKind.INITIATOR_KIND_CLIENT, actor="root", operation_id="op-1")
    )
    made.state_time.FromJsonString("2026-01-31T12:00:00Z")
    made.MergeFrom(Vm(**more))
    return made


def transition(revision: int, **more: Any) -> Transition:  # noqa: ANN401  # any field
    made = Transition(
        revision=revision,
        kind=TransitionKind.TRANSITION_KIND_STATE,
        vm=vm(),
        previous_state=VmState.VM_STATE_STOPPED,
        source=Source.SOURCE_EVENT,
    )
    made.time.FromJsonString("2026-01-31T12:00:00.123Z")
    made.MergeFrom(Transition(**more))
    return made


def cursor(revision: int, journal_id: str = JOURNAL) -> Cursor:
    return Cursor(journal_id=journal_id, revision=revision)


def operation(
    name: str,
    *phases: OperationPhase.ValueType,
    verb: OperationVerb.ValueType = OperationVerb.OPERATION_VERB_STOP,
    **more: Any,  # noqa: ANN401  # any field of the message
) -> Operation:
    """Return an operation that went through these phases."""
    made = Operation(operation_id=f"op-of-{name}", vm_name=name, verb=verb)
    for phase in phases:
        made.phase = phase
        made.steps.append(OperationStep(phase=phase, attempt=1))
        if phase == OperationPhase.OPERATION_PHASE_SUCCEEDED:
            made.outcome = OperationOutcome.OPERATION_OUTCOME_DONE
    made.MergeFrom(Operation(**more))
    return made


def stop_responses(name: str, *phases: OperationPhase.ValueType) -> list[StopResponse]:
    """Return the messages of a stop that goes through these phases."""
    return [
        StopResponse(operation=operation(name, *phases[: n + 1]), vm=vm(name), link=UP)
        for n in range(len(phases))
    ]
