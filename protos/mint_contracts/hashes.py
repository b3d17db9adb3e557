"""Hashes of records in Redis: one round trip reads many hashes, and each record is decoded by itself.

Another version of MinT may have written a record in another form. One unreadable record does not affect the others:
it is repaired if the reader knows how, or skipped.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from mint_contracts.functions import bounded

PER_CALL = 100  # keys read together, so that no answer blocks Redis for long

Json = dict[str, Any]
T = TypeVar("T")


async def read_hashes(redis: Redis, names: Sequence[str]) -> list[dict[str, str]]:
    """Read these hashes completely. Raises MapUnavailable."""
    return await read_each(redis, names, lambda line, name: line.hgetall(name))


async def read_each(redis: Redis, names: Sequence[str], ask: Callable[[Pipeline, str], object]) -> list[Any]:
    """Return the answer to what `ask` asks about each name, PER_CALL in a round trip. Raises MapUnavailable."""
    found: list[Any] = []
    for start in range(0, len(names), PER_CALL):
        line = redis.pipeline(transaction=False)
        for name in names[start : start + PER_CALL]:
            ask(line, name)
        found += await bounded(line.execute)
    return found


def decoded(raw: Mapping[str, str], kind: type[T], mend: Callable[[Json], T] | None = None) -> dict[str, T]:
    """Return a hash's records: those that decode, and those that `mend` can repair.

    `mend` gets a record's decoded JSON, and raises ValidationError if it cannot repair it.
    """
    found: dict[str, T] = {}
    for name, text in raw.items():
        with suppress(msgspec.DecodeError):
            found[name] = _record(text, kind, mend)
    return found


def _record(text: str, kind: type[T], mend: Callable[[Json], T] | None) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError:
        if mend is None:
            raise
        return mend(msgspec.json.decode(text, type=Json))
