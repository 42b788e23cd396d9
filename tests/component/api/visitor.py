"""A client that is another user: a process of its own, which gives root up before it connects.

    python visitor.py SOCKET UID GID GROUPS CALL…

GROUPS are numbers with commas between. Each CALL makes one line of JSON: its status code, its
reason, its message, and what was answered. `follow` reads on until it is killed, `connect` only
tries the socket, and `hand:FD` passes a connection on through the socket of that number.
"""

from __future__ import annotations

import array
import json
import os
import socket
import sys
from typing import Any, cast

import grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from vmagent.v1 import vm_agent_service_pb2 as pb
from vmagent.v1.vm_agent_service_pb2_grpc import VmAgentServiceStub


def made(channel: grpc.Channel, name: str, argument: str) -> Any:  # noqa: ANN401 - what goes out as JSON
    """Make one call, and return what was answered."""
    stub = VmAgentServiceStub(channel)
    match name:
        case "whoami":
            return json_format.MessageToDict(stub.WhoAmI(pb.WhoAmIRequest()).caller)
        case "list":
            return [vm.name for vm in stub.ListVms(pb.ListVmsRequest()).vms]
        case "get":
            return stub.GetVm(pb.GetVmRequest(vm=argument)).vm.name
        case "stop":
            return len(list(stub.Stop(pb.StopRequest(vm=argument))))
        case "health":
            stub_of_health: Any = health_pb2_grpc.HealthStub(channel)
            return stub_of_health.Check(health_pb2.HealthCheckRequest()).status
        case "follow":
            for response in stub.WatchStatus(pb.WatchStatusRequest()):
                if response.HasField("heartbeat"):
                    say("OK", "", "", "following")
        case _:
            raise ValueError(name)
    return None


def say(*line: object) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201 - this is how it answers


def refused(error: grpc.RpcError) -> None:
    status = rpc_status.from_call(cast("grpc.Call", error))
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status else ():
        detail.Unpack(info)
    say(error.code().name, info.reason, error.details(), None)


def main() -> None:
    path, uid, gid, groups, *calls = sys.argv[1:]
    os.setgroups([int(group) for group in groups.split(",") if group])
    os.setgid(int(gid))
    os.setuid(int(uid))
    if calls[0].startswith("hand:"):
        through = socket.socket(fileno=int(calls[0].removeprefix("hand:")))
        with socket.socket(socket.AF_UNIX) as made_here, through:
            made_here.connect(path)
            fds = array.array("i", [made_here.fileno()])
            through.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        return
    if calls == ["connect"]:
        with socket.socket(socket.AF_UNIX) as tried:
            try:
                tried.connect(path)
            except OSError as error:
                say("", "", type(error).__name__, None)
            else:
                say("OK", "", "", None)
        return
    with grpc.insecure_channel(f"unix:{path}") as channel:
        for call in calls:
            name, _, argument = call.partition(":")
            try:
                say("OK", "", "", made(channel, name, argument))
            except grpc.RpcError as error:
                refused(error)


if __name__ == "__main__":
    main()
