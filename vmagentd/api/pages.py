"""What is on a page, and its token: where the list goes on, as nobody is tempted to compute it."""

from __future__ import annotations

import base64
import binascii
import copy
import hashlib
from typing import TYPE_CHECKING, Final, TypeVar

from vmagentd.errors import InvalidField

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from vmagent.v1.vm_agent_service_pb2 import (
        ListAuditRecordsRequest,
        ListOperationsRequest,
        ListTransitionsRequest,
        ListVmsRequest,
    )

# the first byte of a token: one made by another version of this format is refused, not misread
_VERSION = b"\x01"
_DIGEST_BYTES = 8
_MAX_TOKEN = 1024
# How many rows are looked through for one page of a caller who may see few of them: at most,
# and at a time. A read costs as much as a hundred rows.
MAX_READ: Final = 20_000
STEP: Final = 500

_Row = TypeVar("_Row")
_Place = TypeVar("_Place")


class Pages:
    """The pages of one list: all requests with the same filter, whatever their page size.

    A token is the key of the page's last element and a digest of that and of the filter, so a
    token that is damaged, or used with another filter, is refused. It is no secret: a client
    that forges one only chooses where its own list goes on.
    """

    def __init__(
        self,
        request: ListVmsRequest
        | ListTransitionsRequest
        | ListOperationsRequest
        | ListAuditRecordsRequest,
        scope: str = "",
    ) -> None:
        """Take the filter from *request*; *scope* is what else a token is bound to."""
        which = copy.deepcopy(request)
        which.ClearField("page_size")
        which.ClearField("page_token")
        text = f"{which.DESCRIPTOR.full_name}\0{scope}\0".encode()
        self._filter = text + which.SerializeToString(deterministic=True)

    def token(self, key: str) -> str:
        """Return the token of the page after the element with that *key*."""
        raw = key.encode()
        return base64.urlsafe_b64encode(_VERSION + self._digest(raw) + raw).decode()

    def after(self, token: str) -> str | None:
        """Return the key in *token*, None for the first page.

        Raises:
            InvalidField: it is no token, or one of another list or filter.
        """
        if not token:
            return None
        problem = InvalidField(
            "page_token", "is not the token of a page before with the same filter"
        )
        if len(token) > _MAX_TOKEN:
            raise problem
        try:
            raw = base64.b64decode(token, altchars=b"-_", validate=True)
            digest, key = raw[1 : 1 + _DIGEST_BYTES], raw[1 + _DIGEST_BYTES :]
            if raw[:1] != _VERSION or digest != self._digest(key):
                raise problem
            return key.decode()
        except (binascii.Error, ValueError):
            raise problem from None

    def _digest(self, key: bytes) -> bytes:
        return hashlib.blake2b(self._filter + key, digest_size=_DIGEST_BYTES).digest()


async def page_of(
    read: Callable[[int, _Place | None], Awaitable[Sequence[_Row]]],
    size: int,
    *,
    after: _Place | None,
    passes: Callable[[_Row], bool],
    place: Callable[[_Row], _Place],
) -> tuple[tuple[_Row, ...], _Place | None]:
    """Return a page of rows that pass, and the place to go on from, None if nothing follows.

    No more rows are read than about MAX_READ; the page may be shorter then.

    Args:
        read: returns as many rows from behind a place as there are, up to a limit.
        size: how many rows.
        after: the place to begin behind.
        passes: whether a row is for the caller.
        place: where a row is.
    """
    page: list[_Row] = []
    count = 0
    # One more than asked for tells whether another page follows.
    limit = size + 1
    while True:
        rows = await read(limit, after)
        for row in filter(passes, rows):
            if len(page) == size:
                return tuple(page), place(page[-1])
            page.append(row)
        if len(rows) < limit:
            return tuple(page), None
        after = place(rows[-1])
        count += len(rows)
        if count >= MAX_READ:
            return tuple(page), after
        limit = max(limit, STEP)
