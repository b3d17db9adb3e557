"""The connection to Redis: functions are loaded on demand, passwords and certificates checked, waits bounded."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from mint_contracts.errors import MapUnavailable
from mint_contracts.functions import bounded, connect, load
from mint_contracts.map_reader import MapReader
from mint_contracts.map_writer import MapWriter
from mint_contracts.records import BaseRecord, MapChange
from mint_contracts.settings import REDIS_CA_FILE, REDIS_PASSWORD, REDIS_URL
from tests.gateway.secrets import Authority
from tests.redis_process import RedisProcess, fill_disk, free_port

BASE = "demo/smollm2"


async def write(redis: Redis) -> int:
    return await MapWriter(redis, epoch=1).apply(BASE, MapChange(base=BaseRecord(BASE)))


async def test_functions_load_themselves_into_a_fresh_redis_and_again_when_lost(
    tmp_path: Path,
) -> None:
    with RedisProcess(tmp_path) as process:
        redis = connect(process.url)
        await write(redis)
        await redis.function_flush()
        await write(redis)
        process.kill()
        process.start()
        with pytest.raises(MapUnavailable):  # the end of the old connection causes one error
            await MapReader(redis).version(BASE)
        assert await MapReader(redis).version(BASE) is None
        assert await write(redis) == 1
        await redis.aclose()


async def test_while_redis_is_away_a_base_that_is_to_be_forgotten_waits_for_it(tmp_path: Path) -> None:
    with RedisProcess(tmp_path) as process:
        redis = connect(process.url)
        await write(redis)
        process.kill()
        with pytest.raises(MapUnavailable):
            await MapWriter(redis, epoch=1).forget(BASE)
        await redis.aclose()


async def test_two_versions_of_the_functions_share_a_redis(redis_client: Redis) -> None:
    await redis_client.function_load(
        "#!lua name=mint_other\nredis.register_function('mint_other_apply', function() end)"
    )
    await write(redis_client)
    names = [library[1] for library in await redis_client.function_list()]
    assert "mint_other" in names
    assert len(names) == len(set(names)) >= 2
    await redis_client.function_delete("mint_other")


async def test_functions_that_redis_has_are_not_written_again(redis_client: Redis) -> None:
    await load(redis_client)
    before = (await redis_client.info("persistence"))["rdb_changes_since_last_save"]
    await load(redis_client)
    assert (await redis_client.info("persistence"))["rdb_changes_since_last_save"] == before


async def test_many_that_find_it_missing_at_once_all_succeed(redis_client: Redis) -> None:
    await redis_client.function_flush()
    assert sorted(await asyncio.gather(*(write(redis_client) for _ in range(10)))) == list(range(1, 11))


async def test_the_password_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RedisProcess(tmp_path, "--requirepass", "s3cret/with?odd#signs") as process:
        monkeypatch.setenv(REDIS_URL, process.url)
        for password in ("", "wrong"):
            monkeypatch.setenv(REDIS_PASSWORD, password)
            refused = connect()
            with pytest.raises(MapUnavailable) as caught:
                await MapReader(refused).bases()
            assert "s3cret" not in str(caught.value)
            assert "wrong" not in str(caught.value)
            await refused.aclose()
        monkeypatch.setenv(REDIS_PASSWORD, "s3cret/with?odd#signs")
        redis = connect()
        await write(redis)
        assert await MapReader(redis).bases() == [BASE]
        await redis.aclose()


@pytest.mark.parametrize("given", ["outdated", ""])
async def test_a_password_that_redis_refuses_is_told_by_name_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv(REDIS_PASSWORD, given)
    message = r"Redis refuses the password \(.*\); restart whoever has an older one"
    with RedisProcess(tmp_path, "--requirepass", "s3cret") as process:
        redis = connect(process.url)
        for attempt in (MapReader(redis).bases, lambda: write(redis), MapReader(redis).changes().__aenter__):
            with pytest.raises(MapUnavailable, match=message) as refused:
                await attempt()
            assert not re.search("s3cret|outdated", str(refused.value))
        await redis.aclose()


async def test_a_redis_whose_disk_is_full_is_unavailable_and_still_read(tmp_path: Path) -> None:
    """It refuses PING like a write, and so the first read over a connection that was idle."""
    files = tmp_path / "files"
    files.mkdir()
    with RedisProcess(files) as process:
        redis = connect(process.url)
        await write(redis)
        await fill_disk(redis, files)

        async def by_pipeline() -> None:
            pipeline = redis.pipeline(transaction=False)
            pipeline.get("a")
            pipeline.sadd("b", "c")
            await bounded(pipeline.execute)

        async def read_after_a_while() -> None:
            for connection in redis.connection_pool._available_connections:
                connection.next_health_check = 0.1
            await MapReader(redis).bases()

        for attempt in (lambda: write(redis), by_pipeline, read_after_a_while):
            with pytest.raises(MapUnavailable, match=r"Redis takes no writes \(.*MISCONF"):
                await attempt()
        assert await MapReader(redis).bases() == [BASE]
        await redis.aclose()


async def test_a_redis_that_is_not_there_is_unavailable() -> None:
    redis = connect(f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(MapUnavailable):
        await MapReader(redis).bases()
    with pytest.raises(MapUnavailable):
        async with MapReader(redis).changes():
            pass
    await redis.aclose()


async def test_a_redis_that_accepts_but_never_answers_is_given_up_in_time() -> None:
    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(ignore, "127.0.0.1", 0)
    async with server:
        redis = connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0")
        with pytest.raises(MapUnavailable):
            await asyncio.wait_for(MapReader(redis).bases(), 60)
        await redis.aclose()


CALLS: dict[str, Callable[[Redis], Awaitable[object]]] = {
    "one that is answered": lambda redis: MapReader(redis).bases(),
    "one that Redis refuses": load,  # since it has these functions
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_task_that_is_cancelled_in_a_redis_call_ends(
    redis_client: Redis, call: Callable[[Redis], Awaitable[object]]
) -> None:
    """redis-py sends through asyncio.wait_for, which before Python 3.12 can swallow the cancellation."""
    await load(redis_client)

    async def follow() -> None:
        while True:
            await call(redis_client)

    for steps in range(60):
        following = asyncio.create_task(follow())
        for _ in range(steps):
            await asyncio.sleep(0)
        following.cancel()
        await asyncio.wait([following], timeout=60)
        assert following.cancelled(), f"went on after a cancellation at step {steps}"


# TLS.


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA, its server certificate for 127.0.0.1, and another CA."""
    folder = tmp_path_factory.mktemp("tls")
    Authority(folder).certificate("server")
    Authority(folder, "other")
    return folder


@pytest.fixture
def tls_port(tmp_path: Path, certificates: Path) -> Iterator[int]:
    """The port of a Redis that only accepts TLS."""
    port = free_port()
    options = ("--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no")
    files = ("--tls-cert-file", "server.crt", "--tls-key-file", "server.key", "--tls-ca-cert-file", "ca.crt")
    paths = [str(certificates / part) if "." in part else part for part in files]
    with RedisProcess(tmp_path, *options, *paths, port=port):
        yield port


async def test_a_tls_url_works_with_the_authority_that_the_environment_names(
    tls_port: int, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REDIS_CA_FILE, str(certificates / "ca.crt"))
    redis = connect(f"rediss://127.0.0.1:{tls_port}/0")
    await write(redis)
    assert await MapReader(redis).version(BASE) == 1
    await redis.aclose()


async def test_a_server_whose_certificate_is_not_trusted_is_refused(
    tls_port: int, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for authority in ("other.crt", ""):
        monkeypatch.setenv(REDIS_CA_FILE, str(certificates / authority) if authority else "")
        redis = connect(f"rediss://127.0.0.1:{tls_port}/0")
        with pytest.raises(MapUnavailable, match=r"(?i)certificate"):
            await MapReader(redis).bases()
        await redis.aclose()


async def test_a_certificate_for_another_name_is_refused(
    tls_port: int, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REDIS_CA_FILE, str(certificates / "ca.crt"))
    redis = connect(f"rediss://localhost:{tls_port}/0")
    with pytest.raises(MapUnavailable, match=r"(?i)certificate"):
        await MapReader(redis).bases()
    await redis.aclose()


async def test_a_plain_url_does_not_get_through_to_a_tls_port(tls_port: int) -> None:
    redis = connect(f"redis://127.0.0.1:{tls_port}/0")
    with pytest.raises(MapUnavailable):
        await MapReader(redis).bases()
    await redis.aclose()
