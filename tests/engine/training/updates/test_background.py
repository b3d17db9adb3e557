"""The step thread runs background work, both while idle and between the steps of requests."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mint_contracts.errors import Overloaded
from mint_engine.build import build
from mint_engine.requests.events import Done, Event
from mint_engine.requests.parameters import Sampling
from mint_engine.scheduling.request import Party, Request
from mint_engine.scheduling.scheduler import Limits
from mint_engine.scheduling.stepper import Stepper
from tests.engine.running import settings_for
from tests.waiting import PATIENCE_S, until


@dataclass
class Countdown:
    """Background work of `left` pieces; records how many requests were being served at each piece."""

    left: int = 0
    beside: list[int] = field(default_factory=list)
    timed: list[bool] = field(default_factory=list)  # whether a decode step came before the piece
    threads: set[str] = field(default_factory=set)

    @property
    def busy(self) -> bool:
        return self.left > 0

    def advance(self, requests: int, step_s: float) -> None:
        self.beside.append(requests)
        self.timed.append(step_s > 0)
        self.threads.add(threading.current_thread().name)
        self.left -= 1  # last, so that a reader that sees none left also sees all of the above


def test_rollouts_leave_room_in_the_queue_to_their_adapters_tenants(base: Path) -> None:
    """What an adapter's training gets counts apart, also in what a refusal says."""
    _, _, generation = build(settings_for(base), base, Limits(running=2, waiting=8, step_tokens=64))
    stepper, sampling = Stepper(generation, lambda deliver: None), Sampling(max_tokens=1, seed=0)  # does not start
    stepper.submit_all([Request((5, 6), sampling, "a", background=True)] * 8, [lambda event: None] * 8)
    for _ in range(2):
        stepper.check_room(Party("a", background=False), 1)
        stepper.submit(Request((5, 6), sampling, "a"), lambda event: None)
    for background, own in ((False, "2 of them for a;"), (True, "8 of them for training a;")):
        with pytest.raises(Overloaded, match=own):
            stepper.check_room(Party("a", background), 1)


async def test_work_begins_when_the_thread_is_woken_and_goes_on_between_steps(base: Path) -> None:
    _, _, generation = build(settings_for(base), base, Limits())
    loop, work = asyncio.get_running_loop(), Countdown()

    def post(deliver: Callable[[], None]) -> None:
        loop.call_soon_threadsafe(deliver)

    stepper = Stepper(generation, post, work)
    stepper.start()
    try:
        work.left = 3
        stepper.wake()
        await until(lambda: not work.busy)
        assert work.beside == [0, 0, 0]
        assert work.timed == [False] * 3

        ended = asyncio.Event()

        def sink(event: Event) -> None:
            if isinstance(event, Done):
                ended.set()

        with stepper._wake:  # otherwise the thread might finish all the work before the request arrives
            work.left = 1000
            stepper.submit(Request((5, 6, 7), Sampling(max_tokens=8, seed=0, ignore_eos=True)), sink)
        await asyncio.wait_for(ended.wait(), PATIENCE_S)
        assert stepper.stalled_s() < 20
        await until(lambda: not work.busy)
        # One piece follows each of the seven steps that did not end the request; after the eighth it is gone.
        assert work.beside.count(1) == 7
        assert [timed for timed, beside in zip(work.timed, work.beside, strict=True) if beside] == [True] * 7
    finally:
        assert stepper.stop(20)
    assert work.threads == {"mint-step"}
