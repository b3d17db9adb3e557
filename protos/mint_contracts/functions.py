"""The Redis connection and the function libraries (functions.lua, catalog.lua); every call has a time limit."""

import asyncio
import hashlib
import os
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from importlib import resources
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.client import NEVER_DECODE
from redis.exceptions import (
    AskError,
    AuthenticationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from mint_contracts.errors import MapUnavailable, StaleEpoch
from mint_contracts.settings import REDIS_CA_FILE, REDIS_PASSWORD, REDIS_URL, REDIS_USERNAME

CALL_TIMEOUT_S = 3.0
_DENIED_INSIDE = re.compile("The user executing the script can't|ACL failure in script")  # Redis 7.0; later ones
# With MISCONF, PING is refused, too, which the client sends over a connection that was idle: before a read as well.
# In a pipeline redis-py puts words before it.
_NO_WRITES = re.compile(r"(^|caused error: \(['\"])(MISCONF|NOREPLICAS) ")
RETRY_AFTER_S = 1.0  # a Redis that was restarted is back within seconds

Messages = AbstractAsyncContextManager[Callable[[float], Awaitable[str | None]]]  # see `listening`


class Library(msgspec.Struct, frozen=True):
    """Functions that Redis runs, each as one atomic step; the name contains a digest of their code."""

    name: str
    code: str


def library(file: str) -> Library:
    """Load one of this package's Lua files as a library."""
    source = resources.files("mint_contracts").joinpath(file).read_text()
    name = f"mint_{hashlib.sha256(source.encode()).hexdigest()[:12]}"
    return Library(name, f"#!lua name={name}\n" + source.replace("LIBRARY", name))


MAP = library("functions.lua")
CATALOG = library("catalog.lua")


def connect(url: str | None = None) -> Redis:
    """Make a client from the environment (MINT_REDIS_URL, _USERNAME, _PASSWORD, _CA_FILE).

    Every call has a time limit.
    """
    url = url or os.environ.get(REDIS_URL, "redis://127.0.0.1:6379/0")
    options: dict[str, Any] = {"decode_responses": True, "health_check_interval": 10}
    options |= {"socket_timeout": CALL_TIMEOUT_S, "socket_connect_timeout": CALL_TIMEOUT_S}
    # No command is sent twice; but these errors close the connection, so that the next call finds the new primary.
    options |= {"retry": Retry(NoBackoff(), 0), "retry_on_error": [ReadOnlyError]}
    if username := os.environ.get(REDIS_USERNAME):
        options["username"] = username
    if password := os.environ.get(REDIS_PASSWORD):
        options["password"] = password
    if url.startswith("rediss://"):
        options["ssl_cert_reqs"] = ssl.CERT_REQUIRED
        if ca_file := os.environ.get(REDIS_CA_FILE):
            options["ssl_ca_certs"] = ca_file
    client: Redis = Redis.from_url(url, **options)
    return client


async def load(redis: Redis, *libraries: Library) -> None:
    """Load these libraries, or else all, where Redis lacks them: one of the same name has the same code.

    Raises MapUnavailable, also if Redis has no memory left for them.
    """
    for each in libraries or (MAP, CATALOG):
        try:
            await bounded(partial(redis.function_load, each.code))
        except OutOfMemoryError as error:
            message = "Redis's memory is full: it takes no functions of this version of MinT; raise its maxmemory"
            raise MapUnavailable("placement map", message) from error
        except ResponseError as error:
            if "already exists" not in str(error):
                raise


async def call(redis: Redis, function: str, names: Sequence[str], args: Sequence[str]) -> Any:
    """Call a function of the map's library.

    Raises StaleEpoch if a newer writer has taken over, MapUnavailable if the map is not what a change was made for.
    """
    try:
        return await run(redis, MAP, function, names, args)
    except ResponseError as error:
        text = str(error)
        if text.startswith(("STALEEPOCH", "STALEINCARNATION")):
            raise StaleEpoch(names[0], f"a newer writer has taken over ({text})") from None
        if text.startswith("MAPCHANGED"):
            message = f"is not as it was read, as where Redis has lost it since ({text}); reading it anew"
            raise MapUnavailable("placement map", message, retry_after_s=RETRY_AFTER_S) from None
        raise


async def run(
    redis: Redis,
    functions: Library,
    function: str,
    names: Sequence[str],
    args: Sequence[str | bytes],
    *,
    raw: bool = False,
) -> Any:
    """Run FCALL; load the library first if this Redis does not have it (a new one, or one that lost its data).

    With `raw` the answer is bytes, even if the connection decodes responses.
    """
    command = ("FCALL", f"{functions.name}_{function}", len(names), *names, *args)
    options = {NEVER_DECODE: True} if raw else {}

    def send() -> Awaitable[Any]:
        sent: Awaitable[Any] = redis.execute_command(*command, **options)  # type: ignore[no-untyped-call]
        return sent

    try:
        return await bounded(send)
    except ResponseError as error:
        if "Function not found" not in str(error):
            raise
    try:
        await load(redis, functions)
    except MapUnavailable as error:
        if not isinstance(error.__cause__, NoPermissionError):
            raise
        message = (
            "Redis lacks functions that only the operator's user may load; it does so when it connects; retrying"
        )
        raise MapUnavailable("placement map", message, retry_after_s=RETRY_AFTER_S) from error
    return await bounded(send)


async def bounded(send: Callable[[], Awaitable[Any]]) -> Any:
    """Await one Redis command.

    Raises MapUnavailable if Redis does not answer in time, refuses the password or writes (a demoted primary, a full
    disk), denies its user the command, or has only some of the keys (a node of a Redis Cluster).
    """
    task = asyncio.current_task()
    cancelled = task.cancelling() if task else 0
    answer: Any = None
    failure: Exception | None = None
    try:
        answer = await send()
    except (RedisError, OSError, TimeoutError) as error:
        failure = error
    # redis-py uses asyncio.wait_for, which before Python 3.12 loses a cancellation that arrives as it finishes.
    if task and task.cancelling() > cancelled:
        raise asyncio.CancelledError
    if isinstance(failure, ResponseError) and not _unavailable(failure):
        raise failure
    if failure is not None:
        raise MapUnavailable("placement map", _message(failure), retry_after_s=RETRY_AFTER_S) from failure
    return answer


@asynccontextmanager
async def listening(redis: Redis, channel: str) -> AsyncIterator[Callable[[float], Awaitable[str | None]]]:
    """Yield `wait(timeout_s)`, which returns one message of the channel or None; with a "*" in it, of all that match.

    Raises MapUnavailable, as does `wait` when the connection is lost.
    """
    pubsub = redis.pubsub(ignore_subscribe_messages=True)
    subscribe = pubsub.psubscribe if "*" in channel else pubsub.subscribe
    try:
        await bounded(lambda: subscribe(channel))

        async def wait(timeout_s: float) -> str | None:
            message = await bounded(lambda: pubsub.get_message(timeout=timeout_s))
            return None if message is None else str(message["data"])

        yield wait
    finally:
        await pubsub.aclose()  # type: ignore[no-untyped-call]


def _unavailable(failure: ResponseError) -> bool:
    """Whether this answer refuses whoever asks, or asks here, and not the command itself."""
    return isinstance(failure, (ReadOnlyError, AskError)) or _takes_no_writes(failure) or _denies(failure)


def _takes_no_writes(failure: Exception) -> bool:
    """Whether Redis refuses every write for now: its disk is full, or it lacks replicas that it requires."""
    return _NO_WRITES.search(str(failure)) is not None


def _denies(failure: Exception) -> bool:
    """Whether Redis does not permit its user a command, a key or a channel; inside a function it says so in words."""
    return isinstance(failure, NoPermissionError) or bool(_DENIED_INSIDE.match(str(failure)))


def _message(failure: Exception) -> str:
    if isinstance(failure, ReadOnlyError):
        return f"Redis is a replica, as after a failover ({failure}); connecting anew"
    if isinstance(failure, AskError):  # or MovedError, which is one
        where = f"Redis is a node of a Redis Cluster, which leads on to {failure.host}:{failure.port}"
        return f"{where}; MinT keeps all in one Redis: give it one without cluster mode"
    if isinstance(failure, AuthenticationError):  # processes read it only at start; Redis's text does not repeat it
        return f"Redis refuses the password ({failure}); restart whoever has an older one"
    if _takes_no_writes(failure):
        return f"Redis takes no writes ({failure}); retrying"
    if _denies(failure):
        return f"Redis denies this to its user ({failure}); docs/platform.md has the ACL rules that MinT needs"
    return f"Redis did not answer ({failure}); retrying"


def text(record: object) -> str:
    """Return a record as JSON."""
    return msgspec.json.encode(record).decode()
