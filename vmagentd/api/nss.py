"""Users and groups of this host, as libc's name service tells them.

Python's `pwd` and `grp` tell of a service that fails what they tell of one without such an entry:
KeyError. Asked directly, libc tells the two apart, unless a service after the one that failed
says that there is none. Blocks for as long as whoever answers likes: runs in any thread but the
loop's.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

# Room for what an entry points to: how much is tried first, and at most. All members of a group
# are in it.
_BUFFER_BYTES: Final = 4096
_MOST_BYTES: Final = 64 << 20


class _Passwd(ctypes.Structure):
    """A `struct passwd`."""

    _fields_ = (
        ("pw_name", ctypes.c_char_p),
        ("pw_passwd", ctypes.c_char_p),
        ("pw_uid", ctypes.c_uint32),
        ("pw_gid", ctypes.c_uint32),
        ("pw_gecos", ctypes.c_char_p),
        ("pw_dir", ctypes.c_char_p),
        ("pw_shell", ctypes.c_char_p),
    )


class _Group(ctypes.Structure):
    """A `struct group`."""

    _fields_ = (
        ("gr_name", ctypes.c_char_p),
        ("gr_passwd", ctypes.c_char_p),
        ("gr_gid", ctypes.c_uint32),
        ("gr_mem", ctypes.c_void_p),
    )


def user_name(uid: int) -> str | None:
    """Return the name of a user, None if there is none that can be told to everybody.

    Raises:
        OSError: that is not known.
    """
    ask = ctypes.CDLL(None).getpwuid_r
    return _entry(ask, ctypes.c_uint32(uid), _Passwd(), lambda it: _name(it.pw_name))


def group_id(name: str) -> int | None:
    """Return the number of a group, None if there is none.

    Raises:
        OSError: that is not known.
    """
    try:
        key = name.encode()
    except UnicodeEncodeError:
        return None
    if b"\0" in key:  # libc would read as far as there
        return None
    ask = ctypes.CDLL(None).getgrnam_r
    return _entry(ask, ctypes.c_char_p(key), _Group(), lambda it: int(it.gr_gid))


def _name(raw: bytes) -> str | None:
    """Return a name of the host's, None if it is not UTF-8 or cannot be printed.

    Messages and the journal hold nothing else; and put right, two names could become one.
    """
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        return None
    return name if name.isprintable() else None


def _entry(
    ask: Callable[..., int],
    key: object,
    entry: Any,  # noqa: ANN401 - one of the two above
    read: Callable[[Any], _T],
) -> _T | None:
    """Return what *read* makes of the entry for *key*: it points into memory that ends here."""
    size = _BUFFER_BYTES
    while True:
        buffer, found = ctypes.create_string_buffer(size), ctypes.c_void_p()
        code = ask(key, ctypes.byref(entry), buffer, ctypes.c_size_t(size), ctypes.byref(found))
        if code == errno.ERANGE and size < _MOST_BYTES:
            size *= 4
            continue
        if code:
            raise OSError(code, os.strerror(code))
        return None if found.value is None else read(entry)
