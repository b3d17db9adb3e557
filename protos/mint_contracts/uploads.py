"""Time limits on uploads that end soon after the server took its last byte, not when the slowest upload would.

Otherwise a store that accepts a connection, or a part of a body, and then nothing more would be waited for as long as
a 1 Mbit/s link may take for the complete body: fourteen minutes for 100 MB.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

from aiohttp import ClientSession, UploadTracker

from mint_contracts.time_limits import allowed_s, moving_s

_LOOKS = 60  # progress checks within the time that a server may be silent


class _Upload:
    """How much of its body the current request has sent, if known yet."""

    tracker: UploadTracker | None = None

    @property
    def sent(self) -> int:
        return self.tracker.bytes_written if self.tracker is not None else 0


_upload: ContextVar[_Upload] = ContextVar("upload")


class Tracked:
    """A session whose requests report their upload progress to the `bounded` block around them."""

    def __init__(self, session: ClientSession) -> None:
        self._session = session

    def request(self, *args: Any, **options: Any) -> Any:
        """Make a request as the session does, with its upload tracked."""
        tracker = _upload.get().tracker = UploadTracker()
        return self._session.request(*args, upload_tracker=tracker, **options)


@asynccontextmanager
async def bounded(sent: int, asked: int) -> AsyncIterator[None]:
    """Limit a request of a `Tracked` session that sends `sent` bytes and asks for `asked`, its retries included.

    Raises TimeoutError once the server takes bytes more slowly than the slowest supported link, even if only from the
    middle of the body on. All retries together may take no longer than that link would.
    """
    loop, upload = asyncio.get_running_loop(), _Upload()
    latest = loop.time() + allowed_s(sent + asked)
    before = _upload.set(upload)
    try:
        async with asyncio.timeout(allowed_s(asked)) as bound:
            watching = asyncio.create_task(_watch(upload, bound, allowed_s(asked), latest))
            try:
                yield
            finally:
                watching.cancel()
    finally:
        _upload.reset(before)


async def _watch(upload: _Upload, bound: asyncio.Timeout, patience_s: float, latest: float) -> None:
    """Extend the deadline as bytes are taken: never by more than a server may be silent, and never past `latest`."""
    loop, seen, when = asyncio.get_running_loop(), 0, bound.when() or 0.0
    while not bound.expired():
        await asyncio.sleep(patience_s / _LOOKS)
        sent = upload.sent
        if sent > seen and not bound.expired():
            when = min(when + moving_s(sent - seen), loop.time() + patience_s, latest)
            bound.reschedule(when)
        seen = sent  # smaller than before if the body is sent again
