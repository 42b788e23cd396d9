"""Requests for operations: what is to be done to a VM."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from vmagentd.api import convert
from vmagentd.api.requests.fields import SECOND, Reference, choice, reference, request_id, span
from vmagentd.model import (
    OnGraceExpired,
    Parameters,
    PauseParameters,
    RebootMode,
    RebootParameters,
    ResumeParameters,
    StartParameters,
    StopMode,
    StopParameters,
)

if TYPE_CHECKING:
    from vmagent.v1 import vm_agent_service_pb2 as pb

    _Request: TypeAlias = (
        pb.StartRequest | pb.StopRequest | pb.RebootRequest | pb.PauseRequest | pb.ResumeRequest
    )

P = TypeVar("P", bound=Parameters)
P_co = TypeVar("P_co", bound=Parameters, covariant=True)

_START_TIMEOUT = timedelta(seconds=120)
_TIMEOUT = _GRACE_PERIOD = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked(Generic[P_co]):
    """What a client asks to have done to a VM."""

    vm: Reference
    request_id: str | None
    parameters: P_co


def start(request: pb.StartRequest) -> Asked[StartParameters]:
    """Parse what to start."""
    return _asked(
        request,
        StartParameters(
            paused=request.paused,
            discard_saved_state=request.discard_saved_state,
            force=request.force,
            timeout=_timeout(request, _START_TIMEOUT),
        ),
    )


def stop(request: pb.StopRequest) -> Asked[StopParameters]:
    """Parse what to stop."""
    mode = choice("mode", request.mode, convert.STOP_MODE, StopMode.GRACEFUL)
    expired, choices = request.on_grace_expired, convert.STOP_ON_GRACE_EXPIRED
    return _asked(
        request,
        StopParameters(
            mode=mode,
            grace_period=_grace_period(request, ignored=mode is StopMode.FORCE),
            on_grace_expired=choice("on_grace_expired", expired, choices, OnGraceExpired.FAIL),
        ),
    )


def reboot(request: pb.RebootRequest) -> Asked[RebootParameters]:
    """Parse what to reboot."""
    mode = choice("mode", request.mode, convert.REBOOT_MODE, RebootMode.GRACEFUL)
    expired, choices = request.on_grace_expired, convert.REBOOT_ON_GRACE_EXPIRED
    return _asked(
        request,
        RebootParameters(
            mode=mode,
            grace_period=_grace_period(request, ignored=mode is RebootMode.FORCE),
            on_grace_expired=choice("on_grace_expired", expired, choices, OnGraceExpired.FAIL),
        ),
    )


def pause(request: pb.PauseRequest) -> Asked[PauseParameters]:
    """Parse what to pause."""
    return _asked(request, PauseParameters(timeout=_timeout(request, _TIMEOUT)))


def resume(request: pb.ResumeRequest) -> Asked[ResumeParameters]:
    """Parse what to resume."""
    return _asked(request, ResumeParameters(timeout=_timeout(request, _TIMEOUT)))


def _asked(request: _Request, parameters: P) -> Asked[P]:
    return Asked(
        vm=reference("vm", request.vm),
        request_id=request_id(request.request_id),
        parameters=parameters,
    )


def _timeout(
    request: pb.StartRequest | pb.PauseRequest | pb.ResumeRequest, default: timedelta
) -> timedelta:
    timeout = request.timeout if request.HasField("timeout") else None
    return span("timeout", timeout, default, shortest=SECOND)


def _grace_period(request: pb.StopRequest | pb.RebootRequest, *, ignored: bool) -> timedelta:
    # The contract: ignored by FORCE. So it is not even looked at, and a repeat with another
    # one is still the same request.
    asked = not ignored and request.HasField("grace_period")
    grace_period = request.grace_period if asked else None
    return span("grace_period", grace_period, _GRACE_PERIOD, shortest=SECOND)
