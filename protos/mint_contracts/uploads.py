"""Uploads are given up soon after the last byte that was taken, not when the slowest would be through.

A store that takes a connection, or some of a body, and then nothing more would else be waited for as long as a link
of 1 Mbit/s may take for all of it: of 100 MB fourteen minutes.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

from aiohttp import ClientSession, UploadTracker

from mint_contracts.paces import allowed_s, moving_s

_LOOKS = 60  # at how much was taken, while a server may be silent


class _Upload:
    """What the request under way has sent, if that is known yet."""

    tracker: UploadTracker | None = None

    @property
    def sent(self) -> int:
        return self.tracker.bytes_written if self.tracker is not None else 0


_upload: ContextVar[_Upload] = ContextVar("upload")


class Tracked:
    """A session whose requests tell `bounded`, which they are made in, how much of them was taken."""

    def __init__(self, session: ClientSession) -> None:
        self._session = session

    def request(self, *args: Any, **options: Any) -> Any:
        """As the session's own."""
        tracker = _upload.get().tracker = UploadTracker()
        return self._session.request(*args, upload_tracker=tracker, **options)


@asynccontextmanager
async def bounded(sent: int, asked: int) -> AsyncIterator[None]:
    """Around a request of a `Tracked` session that sends and asks for so many bytes, with its retries.

    Raises TimeoutError once its bytes are taken more slowly than the slowest link takes them, be it from its middle
    on. With all retries it may take no longer than that link would.
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
    """Moves the bound as bytes are taken: never farther than a server may be silent, and never behind the latest."""
    loop, seen, when = asyncio.get_running_loop(), 0, bound.when() or 0.0
    while not bound.expired():
        await asyncio.sleep(patience_s / _LOOKS)
        sent = upload.sent
        if sent > seen and not bound.expired():
            when = min(when + moving_s(sent - seen), loop.time() + patience_s, latest)
            bound.reschedule(when)
        seen = sent  # less than before, when it is sent again
