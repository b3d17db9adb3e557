"""Completions to learn from, drawn by the serving engine itself: ordinary requests in the same batch as all others.

The number in flight is bounded: some places stay free for new tenants' requests, and while tenants are served the
rollouts beside them stay few (as do their rows in each step, see `scheduler`). Policies that wait for more take turns
(see `rollout_queue`). Belongs to the event loop.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from mint_contracts.errors import MintError
from mint_engine.model.routes import Routes
from mint_engine.policies.rollout_queue import QueuedGroup, RolloutQueue
from mint_engine.requests.events import Done, Event, Failed, Sink, Tokens
from mint_engine.requests.parameters import Sampling
from mint_engine.scheduling.request import Completion, Request
from mint_engine.scheduling.stepper import Stepper

RESERVED = 17  # one place in 17 stays free for new tenants: waves fill 64 of 68 places, or 256 of 272
LEAST = 8  # rollouts allowed beside tenants' requests, however few those are

Idle = Callable[[], None]


class Ask(msgspec.Struct, frozen=True):
    """A request for completions of one prompt with one policy's slot, one for each seed."""

    policy: str
    revision: str  # label of what the slot holds, for the prefix cache
    slot: int
    prompt: tuple[int, ...]
    sampling: Sampling
    seeds: tuple[int, ...]
    routes: bool = False  # whether to return the experts that tokens were routed to
    thought: int = 0  # as in `Request`


@dataclass
class Rollout:
    """One completion; `logprobs` are the sampler's, one for each of `tokens`."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    stopped: bool = False
    routes: Routes | None = None  # of the prompt and all `tokens` but the last, if asked for


def window(places: int, tenants: int) -> int:
    """Return how many rollouts may be in flight in `places` beside `tenants` requests."""
    if tenants:
        return max(LEAST, min(tenants // 2, places // 2))
    return places - places // RESERVED


class Rollouts:
    """Draws groups of rollouts: policies take turns, each policy's own groups go in order.

    `on_idle` is called when none is in flight any more.
    """

    def __init__(self, stepper: Stepper, places: int, on_idle: Idle = lambda: None) -> None:
        self._stepper, self._places, self._on_idle = stepper, places, on_idle
        self._queue = RolloutQueue[asyncio.Future[None]]()
        self.in_flight = 0

    async def group(self, ask: Ask) -> list[Rollout]:
        """Return the prompt's completions in the order of their seeds. Raises the first error of any of them.

        If cancelled, returns only once no step refers to the slot any more.
        """
        await self._admit(ask.policy, len(ask.seeds))
        rollouts = [Rollout() for _ in ask.seeds]
        failures: list[MintError] = []
        completions: list[Completion] = []
        left, ended = len(rollouts), asyncio.Event()

        def sink_of(rollout: Rollout) -> Sink:
            """Return a sink for one completion's events; the last completion to end sets `ended`."""

            def sink(event: Event) -> None:
                nonlocal left
                _note(rollout, event)
                if isinstance(event, Failed):
                    failures.append(event.error)
                    self._cancel(completions)
                if isinstance(event, Done | Failed):
                    self._leave(1)
                    left -= 1
                    if not left:
                        ended.set()

            return sink

        try:
            completions += self._stepper.submit_all(_requests(ask), [sink_of(each) for each in rollouts])
        except MintError:
            self._leave(left)
            raise
        try:
            await ended.wait()
        except asyncio.CancelledError:
            self._cancel(completions)
            await ended.wait()
            raise
        if failures:
            raise failures[0]
        return rollouts

    def _cancel(self, completions: list[Completion]) -> None:
        while completions:
            self._stepper.cancel(completions.pop())

    async def _admit(self, policy: str, count: int) -> None:
        """Wait for `count` places, and take them."""
        if not self._queue and self._fits(count):
            self.in_flight += count
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queued = QueuedGroup(policy, count, turn)
        self._queue.join(queued)
        try:
            await turn  # `_go_on` has taken the places for us
        except asyncio.CancelledError:
            if turn.cancelled():
                self._queue.leave(queued)
                self._go_on()  # those behind may fit, if they ask for less
            else:
                self._leave(count)
            raise

    def _fits(self, count: int) -> bool:
        load = self._stepper.load
        tenants = max(0, load.running + load.waiting - self.in_flight)
        return not self.in_flight or self.in_flight + count <= window(self._places, tenants)

    def _leave(self, count: int) -> None:
        self.in_flight -= count
        self._go_on()
        if not self.in_flight:
            self._on_idle()

    def _go_on(self) -> None:
        """Admit the next requests while there are places."""
        while self._queue:
            queued = self._queue.first
            if queued.who.done():  # was just cancelled: draws nothing, so it takes nothing of its policy's turn
                self._queue.leave(queued)
            elif self._fits(queued.count):
                self._queue.admit()
                self.in_flight += queued.count
                queued.who.set_result(None)
            else:
                break


def _note(rollout: Rollout, event: Event) -> None:
    if isinstance(event, Tokens):
        rollout.tokens += event.token_ids
        rollout.logprobs += (score.logprob for score in event.scores)
        rollout.text += event.text
    elif isinstance(event, Done):
        rollout.stopped, rollout.routes = event.stopped, event.routes


def _requests(ask: Ask) -> list[Request]:
    return [
        Request(
            prompt=ask.prompt,
            sampling=msgspec.structs.replace(ask.sampling, seed=seed),
            adapter=ask.policy,
            revision=ask.revision,
            slot=ask.slot,
            routes=ask.routes,
            background=True,
            thought=ask.thought,
        )
        for seed in ask.seeds
    ]
