"""Calls as their callers see them: what was streamed, and how it ended."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias, cast

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status
from vmagent.v1 import operation_pb2
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.operation_pb2 import Operation
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub
from vmagent.v1.vm_pb2 import Vm

Request: TypeAlias = (
    pb.StartRequest | pb.StopRequest | pb.RebootRequest | pb.PauseRequest | pb.ResumeRequest
)
Response: TypeAlias = (
    pb.StartResponse | pb.StopResponse | pb.RebootResponse | pb.PauseResponse | pb.ResumeResponse
)
Steps: TypeAlias = (
    Iterator[pb.StartResponse]
    | Iterator[pb.StopResponse]
    | Iterator[pb.RebootResponse]
    | Iterator[pb.PauseResponse]
    | Iterator[pb.ResumeResponse]
)

GRACEFUL = operation_pb2.STOP_MODE_GRACEFUL
FORCE = operation_pb2.STOP_MODE_FORCE
THEN_FORCE = operation_pb2.STOP_ON_GRACE_EXPIRED_FORCE


@dataclass(frozen=True, slots=True)
class Refusal:
    """A status that is not OK."""

    code: str  # "NOT_FOUND"
    reason: str  # "VM_NOT_FOUND"
    message: str
    facts: dict[str, str]


@dataclass(slots=True)
class Outcome:
    """An operation that is over for its caller."""

    refusal: Refusal | None = None
    responses: list[Response] = field(default_factory=list)

    @property
    def operation(self) -> Operation:
        """The operation as the last response told it."""
        return self.responses[-1].operation

    @property
    def vm(self) -> Vm:
        """The VM as the last response told it."""
        return self.responses[-1].vm

    @property
    def phases(self) -> list[str]:
        """The phases that the operation went through, in order."""
        return phases(self.operation)

    @property
    def result(self) -> str:
        """`DONE`, `ALREADY_DONE`, or the reason of the refusal."""
        if self.refusal is not None:
            return self.refusal.reason
        outcome = operation_pb2.OperationOutcome.Name(self.operation.outcome)
        return outcome.removeprefix("OPERATION_OUTCOME_")


def start(stub: VmAgentServiceStub, vm: str, **more: object) -> Steps:
    """Begin to start a VM."""
    return stub.Start(pb.StartRequest(vm=vm, **more))  # type: ignore[arg-type]  # any field


def stop(
    stub: VmAgentServiceStub, vm: str, *, grace_s: float | None = None, **more: object
) -> Steps:
    """Begin to stop a VM."""
    request = pb.StopRequest(vm=vm, **more)  # type: ignore[arg-type]  # any field
    if grace_s is not None:
        request.grace_period.CopyFrom(duration(grace_s))
    return stub.Stop(request)


def reboot(stub: VmAgentServiceStub, vm: str, *, grace_s: float = 60.0, **more: object) -> Steps:
    """Begin to reboot a VM's guest."""
    request = pb.RebootRequest(vm=vm, **more)  # type: ignore[arg-type]  # any field
    request.grace_period.CopyFrom(duration(grace_s))
    return stub.Reboot(request)


def pause(stub: VmAgentServiceStub, vm: str, **more: object) -> Steps:
    """Begin to pause a VM."""
    return stub.Pause(pb.PauseRequest(vm=vm, **more))  # type: ignore[arg-type]  # any field


def resume(stub: VmAgentServiceStub, vm: str, **more: object) -> Steps:
    """Begin to resume a VM."""
    return stub.Resume(pb.ResumeRequest(vm=vm, **more))  # type: ignore[arg-type]  # any field


def duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=round(seconds % 1 * 1e9))


def finished(steps: Iterator[Response], outcome: Outcome | None = None) -> Outcome:
    """Read a call to its end; *outcome* has what was read of it before."""
    outcome = outcome or Outcome()
    try:
        outcome.responses.extend(steps)
    except grpc.RpcError as error:
        outcome.refusal = refusal(error)
    return outcome


def read_until(steps: Iterator[Response], phase: str) -> Outcome:
    """Read a call until it tells of a phase."""
    outcome = Outcome()
    for response in steps:
        outcome.responses.append(response)
        if phases(response.operation)[-1] == phase:
            return outcome
    raise AssertionError(f"never {phase}: {outcome.phases}")


def phases(operation: Operation) -> list[str]:
    """Return the names of the phases an operation went through."""
    names = [operation_pb2.OperationPhase.Name(step.phase) for step in operation.steps]
    return [name.removeprefix("OPERATION_PHASE_") for name in names]


def refusal(error: grpc.RpcError) -> Refusal:
    """Return what a failed call was told."""
    call = cast("grpc.Call", error)  # it is both; the types do not say so
    code, message = call.code().name, call.details() or ""
    status = rpc_status.from_call(call)
    for detail in status.details if status else ():
        info = ErrorInfo()
        if detail.Unpack(info):
            return Refusal(code, info.reason, message, dict(info.metadata))
    return Refusal(code, "", message, {})
