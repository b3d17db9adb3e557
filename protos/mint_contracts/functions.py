"""The placement map's Redis connection and its function library (functions.lua): every call bounded in time."""

import asyncio
import hashlib
import os
import ssl
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from mint_contracts.errors import MapUnavailable, StaleEpoch
from mint_contracts.settings import REDIS_CA_FILE, REDIS_PASSWORD, REDIS_URL

CALL_TIMEOUT_S = 3.0

_SOURCE = resources.files("mint_contracts").joinpath("functions.lua").read_text()
_LIBRARY = f"mint_{hashlib.sha256(_SOURCE.encode()).hexdigest()[:12]}"
_CODE = f"#!lua name={_LIBRARY}\n" + _SOURCE.replace("LIBRARY", _LIBRARY)


def connect(url: str | None = None) -> Redis:
    """A client from the environment (MINT_REDIS_URL, _PASSWORD, _CA_FILE); every call is bounded in time."""
    url = url or os.environ.get(REDIS_URL, "redis://127.0.0.1:6379/0")
    options: dict[str, Any] = {"decode_responses": True, "health_check_interval": 10}
    options |= {"socket_timeout": CALL_TIMEOUT_S, "socket_connect_timeout": CALL_TIMEOUT_S}
    if password := os.environ.get(REDIS_PASSWORD):
        options["password"] = password
    if url.startswith("rediss://"):
        options["ssl_cert_reqs"] = ssl.CERT_REQUIRED
        if ca_file := os.environ.get(REDIS_CA_FILE):
            options["ssl_ca_certs"] = ca_file
    client: Redis = Redis.from_url(url, **options)
    return client


async def call(redis: Redis, function: str, names: Sequence[str], args: Sequence[str]) -> Any:
    """FCALL, loading the library first if this Redis has not seen it (a fresh one, or one that lost its data)."""
    name = f"{_LIBRARY}_{function}"
    try:
        return await bounded(lambda: redis.fcall(name, len(names), *names, *args))
    except ResponseError as error:
        text = str(error)
        if text.startswith(("STALEEPOCH", "STALEINCARNATION")):
            raise StaleEpoch(names[0], f"a newer writer has taken over ({text})") from None
        if "Function not found" not in text:
            raise
    await bounded(lambda: redis.function_load(_CODE, replace=True))
    return await bounded(lambda: redis.fcall(name, len(names), *names, *args))


async def bounded(send: Callable[[], Awaitable[Any]]) -> Any:
    """Await one Redis command; raises MapUnavailable when Redis does not answer in time."""
    task = asyncio.current_task()
    cancelled = task.cancelling() if task else 0
    answer, failure = None, None
    try:
        answer = await send()
    except ResponseError:
        raise
    except (RedisError, OSError, TimeoutError) as error:
        failure = error
    # redis-py sends through asyncio.wait_for, which before Python 3.12 loses a cancellation that comes as it ends.
    if task and task.cancelling() > cancelled:
        raise asyncio.CancelledError
    if failure is not None:
        raise MapUnavailable("placement map", f"Redis did not answer ({failure}); retrying") from failure
    return answer


def text(record: object) -> str:
    """A record as JSON."""
    return msgspec.json.encode(record).decode()
