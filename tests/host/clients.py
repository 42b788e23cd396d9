"""A client that asks again and again, and retries what is UNAVAILABLE."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

import grpc
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub

if TYPE_CHECKING:
    from tests.host.host import Host

_CALL_TIMEOUT_S = 30.0
_RETRY_S = 0.05


class Client:
    """Asks for all VMs from entry to exit, in a thread of its own, from outside the host."""

    def __init__(self, host: Host) -> None:
        self._target = f"unix:{host.path('/run/vmagentd/vmagentd.sock')}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="client", daemon=True)
        self.calls = 0
        self.retries = 0
        self.longest_s = 0.0  # of a call with its retries
        self.failures: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(_CALL_TIMEOUT_S)

    def _ask(self) -> None:
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 100),
        ]
        with grpc.insecure_channel(self._target, options=options) as channel:
            stub = VmAgentServiceStub(channel)
            while not self._over.is_set():
                began = time.monotonic()
                self._ask_once(stub)
                self.calls += 1
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                self._over.wait(0.01)

    def _ask_once(self, stub: VmAgentServiceStub) -> None:
        while True:
            try:
                stub.ListVms(pb.ListVmsRequest(), timeout=_CALL_TIMEOUT_S)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    self.failures.append(f"{error.code()}: {error.details()}")
                    return
                self.retries += 1
                self._over.wait(_RETRY_S)
                if self._over.is_set():
                    return
            else:
                return
