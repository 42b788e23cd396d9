"""Serves the figures by HTTP, on a TCP port or a Unix socket.

As little HTTP as Prometheus needs: one GET on a connection, then it is closed. Runs on the loop;
the text is made in a thread `metrics`, for with many labels that takes milliseconds.
"""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmagentd import sockets
from vmagentd.errors import MetricsUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    # the Accept header → content type, and what writes the body
    Encoding = Callable[[str], tuple[str, Callable[[], bytes]]]

log = logging.getLogger(__name__)

# More than asyncio accepts at a time (100): who asks at once is heard before so many newer ones
# can take his place.
_MAX_READERS: Final = 128
_PATIENCE_S: Final = 5.0
# Between two readings. Who asks in between waits for the next; were he answered at once, with what
# is there, he would only ask more often.
_PAUSE_S: Final = 0.5
_MAX_REQUEST_BYTES: Final = 8 * 1024


@asynccontextmanager
async def served(
    listen: str, *, look: Callable[[], None], encoding: Encoding
) -> AsyncIterator[None]:
    """Serve at *listen* while the body lasts.

    Args:
        listen: `HOST:PORT`, or `unix:PATH`.
        look: is called on the loop before each reading.
        encoding: returns the content type, and what writes the figures; that is called in a
            thread.

    Raises:
        MetricsUnavailable: the place is taken, or not ours to take.
    """
    path = Path(listen.removeprefix("unix:")) if listen.startswith("unix:") else None
    with ThreadPoolExecutor(1, thread_name_prefix="metrics") as pool:
        reader = _Reader(look, encoding, pool)
        try:
            if path is not None and (why := sockets.why_not_at(path)):
                raise MetricsUnavailable(listen, why)
            server = await _bound(listen, path, reader)
            ours = None if path is None else sockets.identity(path)
        except OSError as error:
            raise MetricsUnavailable(listen, error.strerror or str(error)) from error
        try:
            log.info("metrics are served at %s", listen)
            yield
        finally:
            server.close()
            reader.close()
            if path is not None:
                with suppress(OSError):
                    sockets.remove(path, ours)


async def _bound(listen: str, path: Path | None, reader: _Reader) -> asyncio.Server:
    if path is not None:
        server = await asyncio.start_unix_server(reader, path, limit=_MAX_REQUEST_BYTES)
        # figures are no secret, and nothing can be changed through it; its directory decides
        os.chmod(path, 0o666)  # noqa: S103, PTH101 - just made, and local
        return server
    host, _, port = listen.rpartition(":")
    return await asyncio.start_server(
        reader, host.strip("[]"), int(port), limit=_MAX_REQUEST_BYTES
    )


class _Reader:
    """Answers those who read."""

    def __init__(
        self, look: Callable[[], None], encoding: Encoding, pool: ThreadPoolExecutor
    ) -> None:
        self._look = look
        self._encoding = encoding
        self._pool = pool
        # of the last reading: when it began, and its texts by their content types
        self._begun = -_PAUSE_S
        self._texts: dict[str, asyncio.Future[bytes]] = {}
        # oldest first; whether we wait for them, not they for us
        self._open: dict[asyncio.StreamWriter, bool] = {}

    def close(self) -> None:
        """Hang up."""
        for writer in self._open:
            writer.transport.abort()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection."""
        self._open[writer] = True
        if len(self._open) > _MAX_READERS:
            # the oldest that is silent; the new one only if all others are being answered
            self._hang_up(next(each for each, silent in self._open.items() if silent))
        try:
            # who says or takes nothing for so long gives its place up
            async with asyncio.timeout(_PATIENCE_S):
                request = await reader.readuntil(b"\r\n\r\n")
                if writer not in self._open:  # hung up on meanwhile
                    return
                self._open[writer] = False
                writer.write(await self._answer(request))
                self._open[writer] = True
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        except Exception as error:  # noqa: BLE001 - here control leaves our code
            # One line: asyncio would write a traceback, for each of as many as like to come.
            log.error("the figures cannot be told: %.200r", error)  # noqa: TRY400
        finally:
            self._hang_up(writer)

    def _hang_up(self, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()
        self._open.pop(writer, None)

    async def _answer(self, request: bytes) -> bytes:
        first, *lines = request.decode("latin-1").split("\r\n")
        method, _, rest = first.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method != "GET":
            return _response("405 Method Not Allowed", "text/plain", b"GET /metrics\n")
        if path not in {"/metrics", "/"}:
            return _response("404 Not Found", "text/plain", b"GET /metrics\n")
        headers = (line.partition(":") for line in lines)
        accepted = next((v.strip() for k, _, v in headers if k.lower() == "accept"), "")
        content_type, write = self._encoding(accepted)
        return _response("200 OK", content_type, await self._read(content_type, write))

    async def _read(self, content_type: str, write: Callable[[], bytes]) -> bytes:
        """Return what the figures are from now on: all who ask before a reading share it."""
        loop = asyncio.get_running_loop()
        begin = max(self._begun + _PAUSE_S, loop.time())
        await asyncio.sleep(begin - loop.time())
        if self._begun < begin:
            self._begun, self._texts = max(begin, loop.time()), {}
            self._look()
        if content_type not in self._texts:
            self._texts[content_type] = loop.run_in_executor(self._pool, write)
        return await asyncio.shield(self._texts[content_type])


def _response(status: str, content_type: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
