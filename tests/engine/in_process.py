"""A complete engine except for its server: residency, slots and step thread over one base, in this process."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mint_contracts.source import Source
from mint_engine.adapters.check import Fit
from mint_engine.build import build
from mint_engine.requests.events import Done, Event, Failed, Tokens
from mint_engine.requests.parameters import Sampling
from mint_engine.residency.disk import DiskTier
from mint_engine.residency.host import HostTier
from mint_engine.residency.limits import ResidencyLimits
from mint_engine.residency.loading import Loader
from mint_engine.residency.residency import Residency
from mint_engine.residency.slots import Slots
from mint_engine.scheduling.integrity import find_imbalance
from mint_engine.scheduling.request import Request
from mint_engine.scheduling.scheduler import Limits
from mint_engine.scheduling.stepper import Stepper
from tests.engine.running import settings_for

ANSWER_S = 60.0  # only failing tests wait this long


@dataclass(frozen=True)
class Told:
    """One greedy completion, and the revision it began with."""

    tokens: tuple[int, ...]
    scores: tuple[float, ...]
    revision: str


@dataclass(frozen=True)
class Engine:
    """The engine's parts, and a way to send it requests."""

    slots: Slots
    loader: Loader
    residency: Residency
    stepper: Stepper

    async def ask(
        self,
        adapter: str,
        prompt: tuple[int, ...],
        count: int,
        heard: Callable[[int], None] = lambda _: None,
        source: Source | None = None,
    ) -> Told:
        """Generate `count` tokens after the prompt; `heard` gets the number of tokens so far after each event."""
        tokens: list[int] = []
        scores: list[float] = []
        failed: list[Failed] = []
        async with self.residency.hold(adapter, source) as held:
            ended = asyncio.Event()

            def sink(event: Event) -> None:
                if isinstance(event, Tokens):
                    tokens.extend(event.token_ids)
                    scores.extend(score.logprob for score in event.scores)
                    heard(len(tokens))
                elif isinstance(event, Done | Failed):
                    failed.extend([event] if isinstance(event, Failed) else [])
                    ended.set()

            sampling = Sampling(max_tokens=count, seed=0, logprobs=0, ignore_eos=True)
            request = Request(prompt, sampling, adapter, held.revision, held.slot, arrival=held.arrival)
            self.stepper.submit(request, sink)
            async with asyncio.timeout(ANSWER_S):
                await ended.wait()
        assert not failed, failed[0].error
        return Told(tuple(tokens), tuple(scores), held.revision)


@asynccontextmanager
async def engine_of(
    base: Path, folder: Path, *, slots: int, max_rank: int, store: Source | None, host: int, disk: int,
    device: str = "cpu", **limits: Any,
) -> AsyncIterator[Engine]:  # fmt: skip
    """Start an engine; at the end, stop it and check that its books balance."""
    settings = settings_for(base, device=device, device_slots=slots, max_rank=max_rank)
    _, memory, generation = build(settings, base, Limits())
    loop = asyncio.get_running_loop()

    def post(deliver: Callable[[], None]) -> None:
        loop.call_soon_threadsafe(deliver)

    stepper = Stepper(generation, post)
    loader = Loader(DiskTier(folder / "disk", disk), Fit(memory.modules, max_rank), memory.dtype)
    tier = HostTier(host, pinned=memory.device.type == "cuda")
    residency = Residency(memory, loader, tier, store=store, limits=ResidencyLimits(**limits))
    residency.in_flight = stepper.tenants
    residency.follows = lambda: stepper.follows_arrivals
    residency.start()
    stepper.start()
    try:
        yield Engine(memory, loader, residency, stepper)
    finally:
        await residency.close()
        assert stepper.stop(20)
    residency.check()
    assert not generation.scheduler.busy
    assert find_imbalance(generation.scheduler) == ""
    assert generation.scheduler.prefix.available == generation.scheduler.pages.total
