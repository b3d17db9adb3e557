"""Hashes of records in Redis: many are read a round trip, and each record is decoded by itself.

Another version of MinT may have written a record otherwise. One that cannot be read hinders no other: it is mended,
if whoever reads it knows how, or passed over.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
from redis.asyncio import Redis

from mint_contracts.functions import bounded

PER_CALL = 100  # keys that are read together, so that no answer keeps Redis from others for long

Json = dict[str, Any]
T = TypeVar("T")


async def read_hashes(redis: Redis, names: Sequence[str]) -> list[dict[str, str]]:
    """Each of these hashes, whole. Raises MapUnavailable."""
    found: list[dict[str, str]] = []
    for start in range(0, len(names), PER_CALL):
        pipeline = redis.pipeline(transaction=False)
        for name in names[start : start + PER_CALL]:
            pipeline.hgetall(name)
        found += await bounded(pipeline.execute)
    return found


def decoded(raw: Mapping[str, str], kind: type[T], mend: Callable[[Json], T] | None = None) -> dict[str, T]:
    """Those records of a hash that can be read as they are, or `mend` makes one of.

    It is given what a record says, and raises ValidationError where nothing can be made of that.
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
