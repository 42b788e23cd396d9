"""What is on a page, and its token: where the list goes on, as nobody is tempted to compute it."""

from __future__ import annotations

import base64
import binascii
import copy
from hashlib import blake2b
from hmac import compare_digest
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
_VERSION = b"\x02"
_DIGEST_BYTES = 16
_MAX_TOKEN = 1024
# How many rows are looked through for one page of a caller who may see few of them: at most,
# and at a time. A read costs as much as a hundred rows.
MAX_READ: Final = 20_000
STEP: Final = 500

_Row = TypeVar("_Row")
_Place = TypeVar("_Place")


class Pages:
    """The pages of one list: all requests with the same filter, whatever their page size.

    A token is the key of the page's last element, encrypted, behind a digest of that and of the
    filter: one that is damaged, made by somebody else, or used with another filter, is refused.
    It tells its bearer nothing: the last element that was looked at may be one he does not see.
    """

    def __init__(
        self,
        request: ListVmsRequest
        | ListTransitionsRequest
        | ListOperationsRequest
        | ListAuditRecordsRequest,
        secret: bytes,
    ) -> None:
        """Take the filter from *request*; tokens are good where the *secret* is the same."""
        which = copy.deepcopy(request)
        which.ClearField("page_size")
        which.ClearField("page_token")
        name = f"{which.DESCRIPTOR.full_name}\0".encode()
        self._filter = name + which.SerializeToString(deterministic=True)
        self._secret = secret

    def token(self, key: str) -> str:
        """Return the token of the page after the element with that *key*."""
        raw = key.encode()
        digest = self._digest(raw)
        return base64.urlsafe_b64encode(_VERSION + digest + self._crypt(raw, digest)).decode()

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
            digest = raw[1 : 1 + _DIGEST_BYTES]
            key = self._crypt(raw[1 + _DIGEST_BYTES :], digest)
            if raw[:1] != _VERSION or not compare_digest(digest, self._digest(key)):
                raise problem
            return key.decode()
        except (binascii.Error, ValueError):
            raise problem from None

    def _digest(self, key: bytes) -> bytes:
        text = self._filter + key
        return blake2b(
            text, digest_size=_DIGEST_BYTES, key=self._secret, person=b"page digest"
        ).digest()

    def _crypt(self, text: bytes, digest: bytes) -> bytes:
        """Return *text* encrypted if it is clear, else clear.

        Keyed hashes of the digest and a counter, laid over it: the digest depends on all that a
        token is made of, so no two keys get the same ones. (RFC 5297's way, with a hash that
        Python has; AES would bring all of `cryptography` into a daemon without TLS.)
        """
        blocks = (
            blake2b(digest + bytes([number]), key=self._secret, person=b"page stream").digest()
            for number in range(len(text) // blake2b.MAX_DIGEST_SIZE + 1)
        )
        return bytes(one ^ other for one, other in zip(text, b"".join(blocks), strict=False))


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
