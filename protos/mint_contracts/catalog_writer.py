"""Writing the catalog in Redis: what is in its manifests, and nothing else. Any gateway may, in any order."""

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from mint_contracts import keys
from mint_contracts.awaiting import together
from mint_contracts.catalog_calls import call
from mint_contracts.catalog_reader import EVERYTHING
from mint_contracts.entries import Row
from mint_contracts.errors import CapacityExceeded
from mint_contracts.functions import bounded
from mint_contracts.packed_entries import batch

ROWS_PER_CALL = 512  # Redis does nothing else for some five milliseconds
CALLS_AT_ONCE = 2  # of a writer: Redis has the next at hand when it has done one, and others wait for no more
NAMES_PER_NEWS = 64
LEAVES_PER_CALL = 1000  # deleted in about two milliseconds


class CatalogWriter:
    """Brings entries into Redis. The state with the largest sequence is a name's newest, whatever comes first.

    Where Redis's memory is full, names can be retired and nothing else: the rest raises CapacityExceeded.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._gate = asyncio.Semaphore(CALLS_AT_ONCE)

    async def sequences(self, base: str, count: int, *, retiring: bool = False) -> int:
        """The first of `count` sequences that nobody else is given: microseconds since 1970, by Redis's clock.

        `retiring`: for names that are retired, all of them. Raises MapUnavailable, also while the catalog is not
        complete.
        """
        return int(await self._call("retiring" if retiring else "sequences", base, [str(count)]))

    async def begin(self, base: str, manifests: str) -> str:
        """Begin a copy of the manifests at that URI; returns the token by which it is filled and completed.

        The catalog is not complete from here on. What Redis holds is deleted first.
        """
        await bounded(lambda: self._redis.delete(keys.catalog(base, "parts")))  # each is noted anew when it is in
        copy = secrets.token_hex(8)
        args = [keys.catalog_leaf(base, ""), manifests, copy, str(LEAVES_PER_CALL)]
        while not await self._call("begin", base, args):
            pass
        return copy

    async def apply(self, base: str, rows: Sequence[Row], part: str, *, horizon: int = 0, copy: str = "") -> None:
        """Bring in the entries of a manifest part, and note then that it is in.

        Names that were retired before the sequence `horizon` may be forgotten. With `copy` it is for that copy alone:
        raises MapUnavailable where Redis has another, or has lost it.
        """
        await self._send("apply", base, rows, horizon, copy)
        first = min((sequence for sequence, _ in rows), default=0)
        with suppress(OutOfMemoryError):  # a part that is not noted is brought in once more
            await bounded(lambda: self._redis.zadd(keys.catalog(base, "parts"), {part: first}))

    async def retire(self, base: str, rows: Sequence[Row]) -> None:
        """Bring in retired names, those that are here alone, which needs no memory.

        The part is not noted: it is brought in later, and with it the names that were not here.
        """
        await self._send("retire", base, rows, 0, "")

    async def complete(self, base: str, copy: str, sequence: int) -> None:
        """The copy is now all that the manifests hold, whose largest sequence this is.

        Raises MapUnavailable where Redis has another, or has lost it.
        """
        await self._call("complete", base, [copy, str(sequence)])

    async def _send(self, function: str, base: str, rows: Sequence[Row], horizon: int, copy: str) -> None:
        """Rows in pieces, some at once."""
        ordered = sorted(rows, key=lambda row: row[1].name)  # neighbours share a leaf
        pieces = [ordered[at : at + ROWS_PER_CALL] for at in range(0, len(ordered), ROWS_PER_CALL)]

        async def send(piece: Sequence[Row]) -> None:
            async with self._gate:
                await self._send_piece(function, base, piece, horizon, copy)

        await together(send(piece) for piece in pieces)

    async def _send_piece(self, function: str, base: str, rows: Sequence[Row], horizon: int, copy: str) -> None:
        names = [entry.name for _, entry in rows]
        changed = " ".join(names) if len(names) <= NAMES_PER_NEWS else EVERYTHING
        where, news = keys.catalog_leaf(base, ""), keys.catalog(base, "news")
        await self._call(function, base, [where, batch(rows), str(horizon), news, changed, copy])

    async def _call(self, function: str, base: str, args: Sequence[str | bytes]) -> Any:
        try:
            return await call(self._redis, function, base, args)
        except OutOfMemoryError:
            message = "Redis's memory is full; retire adapters, or raise its maxmemory (redis.maxMemory of the chart)"
            raise CapacityExceeded(f"catalog of {base}", message) from None
