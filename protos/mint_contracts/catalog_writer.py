"""Writing the catalog's copy in Redis from its manifests. Any gateway may write, in any order."""

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from mint_contracts import keys
from mint_contracts.awaiting import gather_or_cancel
from mint_contracts.catalog_calls import call
from mint_contracts.catalog_reader import EVERYTHING
from mint_contracts.entries import Row
from mint_contracts.errors import CapacityExceeded
from mint_contracts.functions import bounded
from mint_contracts.packed_entries import batch

ROWS_PER_CALL = 512  # one call keeps Redis busy for about five milliseconds
CALLS_AT_ONCE = 2  # per writer: Redis has the next one ready when it finishes one, and others wait for at most two
NAMES_PER_NEWS = 64
LEAVES_PER_CALL = 1000  # Redis deletes them in about two milliseconds


class CatalogWriter:
    """Brings entries into Redis. The state with the largest sequence is a name's newest, in whatever order they come.

    If Redis's memory is full, names can only be retired: other calls raise CapacityExceeded.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._gate = asyncio.Semaphore(CALLS_AT_ONCE)

    async def sequences(self, base: str, count: int, *, retiring: bool = False, manifests: str = "") -> int:
        """Reserve `count` unique sequences and return the first: microseconds since 1970, by Redis's clock.

        `retiring`: all of them are for names being retired. `manifests`: the URI of those that they are for.
        Raises MapUnavailable, also while the catalog is incomplete or if it has other manifests.
        """
        return int(await self._call("retiring" if retiring else "sequences", base, [str(count), manifests]))

    async def begin(self, base: str, manifests: str) -> str:
        """Begin a copy of the manifests at that URI; return the token that is needed to fill and complete it.

        The catalog is incomplete from here on. What Redis holds of it is deleted first.
        """
        await bounded(lambda: self._redis.delete(keys.catalog(base, "parts")))  # each is noted again once it is in
        copy = secrets.token_hex(8)
        args = [keys.catalog_leaves(base), manifests, copy, str(LEAVES_PER_CALL)]
        while not await self._call("begin", base, args):
            pass
        return copy

    async def apply(
        self, base: str, rows: Sequence[Row], part: str, *, horizon: int = 0, copy: str = "", manifests: str = ""
    ) -> None:
        """Bring in the entries of a manifest part, then note that the part is in.

        Names that were retired before the sequence `horizon` may be forgotten. With `copy`, write only to that copy:
        raises MapUnavailable if Redis has another one or has lost it. `manifests` is as in `retire`.
        """
        await self._send("apply", base, rows, horizon, copy, manifests)
        first = min((sequence for sequence, _ in rows), default=0)
        with suppress(OutOfMemoryError):  # a part that is not noted is brought in again
            await bounded(lambda: self._redis.zadd(keys.catalog(base, "parts"), {part: first}))

    async def retire(self, base: str, rows: Sequence[Row], *, manifests: str = "") -> None:
        """Retire those of the names that Redis has, which needs no memory.

        The part is not noted: it is brought in later, together with the names that Redis does not have. `manifests`:
        their URI, if the caller has just written the part. Raises MapUnavailable if that took so long that a merge
        may have missed it, while the catalog is incomplete, or if it has other manifests now.
        """
        await self._send("retire", base, rows, 0, "", manifests)

    async def complete(self, base: str, copy: str, sequence: int, settled: int = 0) -> None:
        """Mark the copy complete: it holds all of the manifests, whose largest sequence is `sequence`.

        From now on writers' parts with sequences up to `settled` are refused. Raises MapUnavailable if Redis has
        another copy or has lost it.
        """
        await self._call(
            "complete", base, [copy, str(sequence), keys.catalog(base, "news"), EVERYTHING, str(settled)]
        )

    async def _send(
        self, function: str, base: str, rows: Sequence[Row], horizon: int, copy: str, manifests: str
    ) -> None:
        """Send rows in pieces, at most CALLS_AT_ONCE at a time."""
        where, news = keys.catalog_leaves(base), keys.catalog(base, "news")
        first = min((sequence for sequence, _ in rows), default=0) if manifests else 0
        ordered = sorted(rows, key=lambda row: row[1].name)  # neighbours share a leaf
        pieces = [ordered[at : at + ROWS_PER_CALL] for at in range(0, len(ordered), ROWS_PER_CALL)]

        async def send(piece: Sequence[Row]) -> None:
            names = [entry.name for _, entry in piece]
            changed = " ".join(names) if len(names) <= NAMES_PER_NEWS else EVERYTHING
            given = (str(horizon), news, changed, copy, str(first), manifests)
            async with self._gate:
                await self._call(function, base, [where, batch(piece), *given])

        await gather_or_cancel(send(piece) for piece in pieces)

    async def _call(self, function: str, base: str, args: Sequence[str | bytes]) -> Any:
        try:
            return await call(self._redis, function, base, args)
        except OutOfMemoryError:
            message = "Redis's memory is full; retire adapters, or raise its maxmemory (redis.maxMemory of the chart)"
            raise CapacityExceeded(f"catalog of {base}", message) from None
