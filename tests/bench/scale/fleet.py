"""Simulated engines: python -m tests.bench.scale.fleet BASE FIRST COUNT (of MINT_REDIS_URL).

Each runs the engine's own agent over the real placement map; only the loads are simulated, with the time and bytes
below. Commands come on stdin, one per line: "kill NAME" makes an engine fall silent like a killed process.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Iterable

import structlog
from redis.asyncio import Redis

from mint_contracts.awaiting import end_tasks
from mint_contracts.functions import connect
from mint_contracts.records import Assignment, EngineRecord, Held, Tier
from mint_engine.agent import Agent, Body
from tests.engine_views import engine_record

# A rank-8 adapter of SmolLM2-135M: 4.9 MB, loaded from its packed file in about 5 ms, several at once up to 1.4 GB/s
# (as measured by this repository's load benchmark).
ADAPTER_BYTES = 4_900_000
ADAPTER_RANK = 8
LOAD_S = 0.005
TOLD_EVERY_S = 0.25
SLOTS = 72


class SimulatedEngine:
    """One engine, which holds its assigned adapters after the time that loading takes."""

    def __init__(self, base: str, name: str) -> None:
        self.name = name
        self._redis: Redis = connect()  # each engine has its own connection
        self._held: dict[str, Held] = {}
        self._wanted: dict[str, Assignment] = {}
        self._work = asyncio.Event()
        self._incarnation = time.time_ns()
        self.agent = Agent(self._redis, base, name, Body(self._describe, lambda: dict(self._held), self._want))

    async def run(self) -> None:
        """Run until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.agent.run())
                tasks.create_task(self._load())
        finally:
            await self._redis.aclose()

    def _describe(self, map_version: int, sequence: int) -> EngineRecord:
        seen = {"incarnation": self._incarnation, "map_version": map_version, "sequence": sequence}
        return engine_record(self.name, slots_used=len(self._held), slots_total=SLOTS, **seen)

    def _want(self, assignments: Iterable[Assignment]) -> None:
        self._wanted = {each.adapter: each for each in assignments}
        for name in [name for name in self._held if name not in self._wanted]:
            del self._held[name]
        self._work.set()

    async def _load(self) -> None:
        """Load missing adapters one after another; report them in groups, as the engine's own agent coalesces."""
        while True:
            await self._work.wait()
            self._work.clear()
            missing = [name for name in self._wanted if name not in self._held]
            for start in range(0, len(missing), int(TOLD_EVERY_S / LOAD_S)):
                group = missing[start : start + int(TOLD_EVERY_S / LOAD_S)]
                await asyncio.sleep(len(group) * LOAD_S)
                for name in group:
                    if want := self._wanted.get(name):
                        self._held[name] = _held(want)
                self.agent.changed()
            if not missing:
                self.agent.changed()


def _held(want: Assignment) -> Held:
    revision = f"sha256:{hash(want.adapter) & (1 << 256) - 1:064x}"
    return Held(want.adapter, want.source, Tier.DEVICE, revision=revision, rank=ADAPTER_RANK, bytes=ADAPTER_BYTES)


async def main(base: str, first: int, count: int) -> None:
    """Run the engines until stdin ends; execute the commands on it."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    engines = [SimulatedEngine(base, f"{base.partition('/')[2]}-{first + index}") for index in range(count)]
    running = {}
    for engine in engines:
        running[engine.name] = asyncio.create_task(engine.run())
        if len(running) % 50 == 0:
            await asyncio.sleep(0.05)
    while line := await asyncio.to_thread(sys.stdin.readline):
        verb, _, name = line.strip().partition(" ")
        if verb == "kill" and name in running:
            running[name].cancel()
    await end_tasks(running.values())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
