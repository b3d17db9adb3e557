"""Requests in flight: a key never has more than it leaves free for others, whichever door its requests come by."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from mint_contracts.byte_budget import ByteBudget
from mint_contracts.errors import CapacityExceeded, MintError, Overloaded, Unauthenticated
from mint_gateway import answering
from mint_gateway.client import Client, question
from mint_gateway.inflight import InFlight
from mint_gateway.security.door_security import DoorSecurity
from mint_gateway.security.keys import sharer
from tests.gateway.http_requests import TEXT, post
from tests.gateway.scene import BASE, LIMIT_S, LIMITS, Scene
from tests.gateway.scripted import ScriptedEngine
from tests.gateway.secrets import mount
from tests.waiting import until

KEYS = {"greedy": b"key-of-greedy", "modest": b"key-of-modest"}
MOST, LONG = 8, 1 << 20


@pytest.fixture
async def engine(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ScriptedEngine]:
    """An engine behind a small gateway that needs keys; it answers only at the end."""
    monkeypatch.setattr(answering, "MOST_BYTES", 4 * LONG)
    await scene.base()
    engine = await scene.engine("e-0")
    engine.hold_before = asyncio.Event()
    security = DoorSecurity.by(None, mount(tmp_path / "keys", KEYS))
    await scene.begin(engine, limits=msgspec.structs.replace(LIMITS, requests=MOST), security=security)
    yield engine
    engine.hold_before.set()


async def asked(scene: Scene, key: bytes, door: str, prompt: str = "Ahoy") -> None:
    """Send a request by one of the doors. Raises Overloaded if it is refused for now."""
    if door == "http":
        status, body, headers = await post(
            scene, TEXT, {"model": BASE, "prompt": prompt}, Authorization=f"Bearer {key.decode()}"
        )
        if status == 429:
            raise Overloaded("", body["error"]["message"], retry_after_s=float(headers["Retry-After"]))
        assert status == 200
    else:
        async with Client(scene.target, patience_s=0.0, key=key.decode()) as client:
            await client.answer(question(prompt, base_model=BASE, raw=True), timeout_s=LIMIT_S)


@pytest.mark.parametrize("door", ["http", "grpc"])
async def test_a_key_with_many_long_requests_leaves_as_many_to_others(
    scene: Scene, engine: ScriptedEngine, door: str
) -> None:
    tasks = [asyncio.create_task(asked(scene, KEYS["greedy"], each)) for each in ("http", "grpc") * (MOST // 2)]
    await until(lambda: sum(task.done() for task in tasks) == MOST // 2)
    for each in tasks:
        if each.done():
            assert isinstance(refusal := each.exception(), Overloaded)
            assert "4 requests with your key are in flight, and 4 more are left for other keys" in str(refusal)
            assert refusal.retry_after_s == 1.0
    await until(lambda: len(engine.seen) == MOST // 2)
    other = asyncio.create_task(asked(scene, KEYS["modest"], door))
    await until(lambda: len(engine.seen) > MOST // 2)
    assert engine.hold_before is not None
    engine.hold_before.set()
    await asyncio.wait_for(other, LIMIT_S)
    await asyncio.gather(*(each for each in tasks if not each.done()))
    await asked(scene, KEYS["greedy"], door)  # what has ended does not count


@pytest.mark.parametrize("door", ["http", "grpc"])
async def test_a_key_with_long_prompts_leaves_as_much_memory_to_others(
    scene: Scene, engine: ScriptedEngine, door: str
) -> None:
    running = [asyncio.create_task(asked(scene, KEYS["greedy"], each, "a" * LONG)) for each in ("http", "grpc")]
    await until(lambda: len(engine.seen) == 2)
    with pytest.raises(
        Overloaded, match="with your key take 1 MiB of such memory, and 2 MiB more are left for other"
    ):
        await asked(scene, KEYS["greedy"], door, "a" * LONG)
    running.append(asyncio.create_task(asked(scene, KEYS["modest"], door, "a" * LONG)))
    await until(lambda: len(engine.seen) == 3)
    assert engine.hold_before is not None
    engine.hold_before.set()
    await asyncio.wait_for(asyncio.gather(*running), LIMIT_S)


def test_without_keys_one_client_may_have_all() -> None:
    requests = InFlight(2)
    with requests.admit(), requests.admit():
        assert requests.total == 2
        with pytest.raises(Overloaded, match="2 requests are in flight, its limit"), requests.admit():
            pass
    assert requests.total == 0


def test_the_first_key_has_half_and_each_later_one_half_of_what_is_left() -> None:
    requests, had = InFlight(16), dict[str, int]()
    with_all = []
    for client in ("a", "b", "c"):
        token = sharer.set(client)
        while True:
            admitting = requests.admit()
            try:
                admitting.__enter__()
            except Overloaded:
                break
            with_all.append(admitting)
            had[client] = had.get(client, 0) + 1
        sharer.reset(token)
    assert had == {"a": 8, "b": 4, "c": 2}


def test_a_key_has_as_much_memory_as_it_leaves_free() -> None:
    budget = ByteBudget(8 << 20, "gateway", "is full")
    with budget.share(0, "a") as first, budget.share(0, "a") as second, budget.share(0, "b") as other:
        first.fill(4 << 20)
        with pytest.raises(Overloaded, match="with your key take 4 MiB of such memory, and 4 MiB more are left"):
            second.fill(1 << 20)
        other.fill(2 << 20)
        with pytest.raises(Overloaded, match="gateway: is full; retry later"):
            second.fill(3 << 20)
        first.fill(0)
        second.fill(3 << 20)
    assert budget.taken == 0


def test_what_is_taken_at_once_leaves_as_much_free_too() -> None:
    budget = ByteBudget(8 << 20, "gateway", "is full")
    with budget.share(0, "a") as first, budget.share(0, "b") as other, budget.share(0, "c") as another:
        other.fill(2 << 20)
        with pytest.raises(Overloaded, match="with your key take 0 MiB of such memory, and 6 MiB more are left"):
            first.fill(4 << 20)
        first.fill(3 << 20)
        another.fill(1 << 20)


def test_a_request_that_a_key_never_has_memory_for_is_refused_for_good() -> None:
    budget = ByteBudget(8 << 20, "gateway", "is full")
    with budget.share(0, "a") as share, budget.share(0) as nameless:
        with pytest.raises(CapacityExceeded, match="takes 5 MiB of memory, and a key has 4 MiB at most; send or ask"):
            share.fill(5 << 20)
        share.fill(4 << 20)
        share.fill(0)
        nameless.fill(8 << 20)


async def test_the_only_key_may_have_all(scene: Scene, engine: ScriptedEngine, tmp_path: Path) -> None:
    mount(tmp_path / "keys", {"greedy": KEYS["greedy"]})

    async def is_only() -> bool:
        async with Client(scene.target, patience_s=0.0, key=KEYS["modest"].decode()) as client:
            try:
                await client.explain("nobody")
            except MintError as error:
                return isinstance(error, Unauthenticated)
        return False

    await until(is_only)
    running = [asyncio.create_task(asked(scene, KEYS["greedy"], each)) for each in ("http", "grpc") * (MOST // 2)]
    await until(lambda: len(engine.seen) == MOST)
    assert engine.hold_before is not None
    engine.hold_before.set()
    await asyncio.wait_for(asyncio.gather(*running), LIMIT_S)
