"""Who connected to a Unix socket, as the kernel tells."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_SO_PEERGROUPS: Final = 59
_MAX_GROUPS: Final = 65536
_GETSOCKOPT_BYTES: Final = 1024


def credentials(client: socket.socket) -> tuple[int, int, frozenset[int]]:
    """Return process, user and groups of whoever connected, as they were then."""
    packed = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    pid, uid, gid = struct.unpack("iII", packed)
    return pid, uid, frozenset({gid, *_groups(client)})


def _groups(client: socket.socket) -> Sequence[int]:
    try:
        packed = client.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GETSOCKOPT_BYTES)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
    else:
        return struct.unpack(f"{len(packed) // 4}I", packed)
    # Python's own asks for no more than that, and there may be 65,536 groups.
    groups = (ctypes.c_uint32 * _MAX_GROUPS)()
    size = ctypes.c_uint32(ctypes.sizeof(groups))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.getsockopt(
        client.fileno(), socket.SOL_SOCKET, _SO_PEERGROUPS, groups, ctypes.byref(size)
    ):
        raise OSError(ctypes.get_errno(), "SO_PEERGROUPS")
    return groups[: size.value // 4]
