"""Calls of catalog.lua's functions."""

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from mint_contracts import keys
from mint_contracts.errors import AdapterNotFound, MapUnavailable
from mint_contracts.functions import CATALOG, run

INCOMPLETE_RETRY_S = 1.0

_PARTS = ("", "directory", "roots", "roots:numbers", "labels", "labels:numbers")


async def call(redis: Redis, function: str, base: str, args: Sequence[str | bytes]) -> Any:
    """Call one function and return its answer as bytes.

    Raises MapUnavailable if Redis does not answer or does not hold the complete catalog, or if entries come too late.
    """
    names = [*[keys.catalog(base, part) for part in _PARTS], keys.epoch(base), keys.base_record(base)]
    try:
        return await run(redis, CATALOG, function, names, args, raw=True)
    except ResponseError as error:
        if "CATALOGSETTLED" in str(error):
            message = "writing the entries took minutes, so a merge may have missed them; send them again"
            raise MapUnavailable(f"catalog of {base}", message, retry_after_s=INCOMPLETE_RETRY_S) from None
        if "CATALOGINCOMPLETE" not in str(error):
            raise
    raise incomplete(base)


def incomplete(base: str) -> MapUnavailable:
    """Return the error for a catalog that Redis does not hold completely yet."""
    message = "is being read from its manifests; retry and, if this lasts, see the gateways' log"
    return MapUnavailable(f"catalog of {base}", message, retry_after_s=INCOMPLETE_RETRY_S)


def retired(asked: str, base: str, instead: str) -> AdapterNotFound:
    """Return the error for a retired name; `instead` is the alternative to registering it again."""
    message = f"was retired from the catalog of {base}; register it again, or {instead}"
    return AdapterNotFound(f"adapter {asked!r}", message)
