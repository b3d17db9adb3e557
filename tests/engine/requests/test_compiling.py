"""Compiling schemas and grammars: few at a time, adapters in turn, and with a bounded queue."""

import asyncio
import threading
from pathlib import Path

import pytest

from mint_contracts.errors import Overloaded
from mint_contracts.sampling_pb2 import GenerateRequest, SamplingParams
from mint_engine.requests import compiling
from mint_engine.requests.compiling import AT_ONCE, Compiling
from mint_engine.requests.grammar import Shape
from tests.engine.running import running
from tests.engine.steps import refusal
from tests.waiting import until


class Works:
    """Compilations that each last until the test lets one go on."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.let = threading.Semaphore(0)

    def __call__(self, name: str) -> str:
        self.begun.append(name)
        assert self.let.acquire(timeout=60)
        return name


async def test_adapters_take_turns_whoever_has_how_many() -> None:
    shapes, works = Compiling("engine"), Works()
    names = [*(f"hot {n}" for n in range(20)), "cold", "mild"]
    tasks = [asyncio.create_task(shapes.run(name.split()[0], works, name)) for name in names]
    await until(lambda: len(works.begun) == AT_ONCE)
    assert set(works.begun) == {"hot 0", "cold"}
    works.let.release()
    await until(lambda: len(works.begun) > AT_ONCE)
    assert works.begun[AT_ONCE] == "mild", "whichever of the two ended"
    works.let.release(len(names) - 1)
    assert await asyncio.gather(*tasks) == names


async def test_a_clients_shapes_for_many_adapters_take_one_turn_together(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter need not exist for its shape to be compiled: one key could keep both threads busy for minutes."""
    async with running(base) as engine:
        services = engine.server._services
        assert services.parts is not None
        works = Works()

        def compile_late(shape: Shape, _: object) -> None:
            works(shape.text)

        monkeypatch.setattr(services.parts.grammars, "compile", compile_late)

        def asked(client: str, adapter: str = "") -> GenerateRequest:
            shaped = SamplingParams(max_tokens=1, regex=client)
            return GenerateRequest(text="dog", adapter=adapter, client=client, sampling=shaped)

        hot = [asyncio.create_task(refusal(engine, asked("hot", f"no/such-{n}"))) for n in range(5)]
        await until(lambda: works.begun)
        cold = asyncio.create_task(refusal(engine, asked("cold", "no/such")))
        await until(lambda: len(works.begun) == AT_ONCE)
        assert sorted(works.begun) == ["cold", "hot"]
        works.let.release(6)
        await asyncio.gather(*hot, cold)


async def test_requests_beyond_the_queue_are_told_to_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "MOST", 5)
    shapes, works = Compiling("engine"), Works()
    waiting = [asyncio.create_task(shapes.run("hot", works, "hot")) for _ in range(4)]
    await until(lambda: works.begun)
    with pytest.raises(Overloaded, match="engine: has 4 schemas and grammars to compile; retry later") as caught:
        await shapes.run("hot", works, "hot")
    assert caught.value.retry_after_s
    cold = asyncio.create_task(shapes.run("cold", works, "cold"))
    await until(lambda: "cold" in works.begun)
    with pytest.raises(Overloaded):
        await shapes.run("mild", works, "mild")
    works.let.release(5)
    await asyncio.gather(cold, *waiting)
    works.let.release()
    assert await shapes.run("mild", works, "mild") == "mild", "there is room again"


async def test_a_client_that_leaves_during_compilation_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that has started runs to its end; its adapter has no other meanwhile."""
    monkeypatch.setattr(compiling, "MOST", 5)
    shapes, works = Compiling("engine"), Works()
    gone = [asyncio.create_task(shapes.run("a", works, f"gone {n}")) for n in range(4)]
    await until(lambda: works.begun)
    for each in gone:
        each.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    next_ = [asyncio.create_task(shapes.run("a", works, f"next {n}")) for n in range(2)]
    other = asyncio.create_task(shapes.run("b", works, "other"))
    await until(lambda: len(works.begun) == 2)
    assert set(works.begun) == {"gone 0", "other"}
    works.let.release(4)
    assert await asyncio.gather(*next_, other) == ["next 0", "next 1", "other"]


async def test_a_request_that_leaves_before_a_thread_is_free_is_never_compiled() -> None:
    shapes, works = Compiling("engine"), Works()
    held = [asyncio.create_task(shapes.run(name, works, name)) for name in "abc"]
    await until(lambda: len(works.begun) == AT_ONCE)
    held[2].cancel()
    await asyncio.gather(held[2], return_exceptions=True)
    next_ = asyncio.create_task(shapes.run("c", works, "next"))
    works.let.release(3)
    assert list(await asyncio.gather(held[0], held[1], next_)) == ["a", "b", "next"]
    assert "c" not in works.begun
