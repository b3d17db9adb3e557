"""Writing the catalog in Redis: what is in its manifests, and nothing else. Any gateway may, in any order."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from mint_contracts import keys
from mint_contracts.catalog_calls import call
from mint_contracts.catalog_reader import EVERYTHING
from mint_contracts.entries import Row
from mint_contracts.errors import CapacityExceeded
from mint_contracts.functions import bounded
from mint_contracts.packed_entries import batch

ROWS_PER_CALL = 512  # Redis does nothing else for some five milliseconds
CALLS_AT_ONCE = 2  # of a writer: Redis has the next at hand when it has done one, and others wait for no more
NAMES_TOLD = 64


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

    async def apply(self, base: str, rows: Sequence[Row], part: str, *, horizon: int = 0) -> None:
        """Bring in the entries of a manifest part, and note then that it is in.

        Names that were retired before the sequence `horizon` may be forgotten.
        """
        await self._send("apply", base, rows, horizon)
        first = min((sequence for sequence, _ in rows), default=0)
        with suppress(OutOfMemoryError):  # a part that is not noted is brought in once more
            await bounded(lambda: self._redis.zadd(keys.catalog(base, "parts"), {part: first}))

    async def retire(self, base: str, rows: Sequence[Row]) -> None:
        """Bring in retired names, those that are here alone, which needs no memory.

        The part is not noted: it is brought in later, and with it the names that were not here.
        """
        await self._send("retire", base, rows, 0)

    async def complete(self, base: str, sequence: int) -> None:
        """What is in Redis is now all that the manifests hold, whose largest sequence this is."""
        await self._call("complete", base, [str(sequence)])

    async def _send(self, function: str, base: str, rows: Sequence[Row], horizon: int) -> None:
        """Rows in pieces, some at once."""
        ordered = sorted(rows, key=lambda row: row[1].name)  # neighbours share a leaf
        pieces = [ordered[at : at + ROWS_PER_CALL] for at in range(0, len(ordered), ROWS_PER_CALL)]

        async def send(piece: Sequence[Row]) -> None:
            async with self._gate:
                await self._send_piece(function, base, piece, horizon)

        try:
            async with asyncio.TaskGroup() as tasks:
                for piece in pieces:
                    tasks.create_task(send(piece))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed

    async def _send_piece(self, function: str, base: str, rows: Sequence[Row], horizon: int) -> None:
        names = [entry.name for _, entry in rows]
        told = " ".join(names) if len(names) <= NAMES_TOLD else EVERYTHING
        where, news = keys.catalog_leaf(base, ""), keys.catalog(base, "news")
        await self._call(function, base, [where, batch(rows), str(horizon), news, told])

    async def _call(self, function: str, base: str, args: Sequence[str | bytes]) -> Any:
        try:
            return await call(self._redis, function, base, args)
        except OutOfMemoryError:
            said = "Redis's memory is full; retire adapters, or raise its maxmemory (redis.maxMemory of the chart)"
            raise CapacityExceeded(f"catalog of {base}", said) from None
