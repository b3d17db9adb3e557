"""The thread that computes: takes requests from an inbox, steps while there is work, and posts the events."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable

import msgspec
import structlog

from mint_contracts.errors import Draining, EngineUnavailable, InvalidRequest, MintError, Overloaded
from mint_engine import metrics
from mint_engine.place_counter import PlaceCounter
from mint_engine.requests.events import Done, Failed, Sink
from mint_engine.residency.holding import Tenant
from mint_engine.residency.slots import NO_SLOT
from mint_engine.scheduling.background import Background, NoBackground
from mint_engine.scheduling.demand import Demand
from mint_engine.scheduling.generation import Generation, Outcome
from mint_engine.scheduling.integrity import find_imbalance
from mint_engine.scheduling.pace import Pace
from mint_engine.scheduling.request import Completion, Party, Request, Sharer

IDLE_S = 0.05  # idle time after which the books are checked

Post = Callable[[Callable[[], None]], None]

_log = structlog.get_logger(__name__)


class Load(msgspec.Struct, frozen=True):
    """The number of requests of an engine."""

    running: int
    waiting: int


class Cancelled(MintError):
    """The request was cancelled, since nobody waits for it any more. Never crosses the wire."""


class Stepper:
    """Owns the step thread. Its methods may be called from any thread and never wait for a step.

    Events reach a request's sink through `post`, which must run the functions it is given in order (for example an
    event loop's call_soon_threadsafe). After a Done or Failed nothing refers to the request's slot any more.
    Between steps, `background` does a piece of its own work.
    """

    def __init__(self, generation: Generation, post: Post, background: Background | None = None) -> None:
        self._generation = generation
        self._background = background or NoBackground()
        self._scheduler = generation.scheduler
        self._post = post
        self._wake = threading.Condition()
        self._inbox: list[Completion] = []
        self._cancelled: list[Completion] = []
        self._stopping = self._doubted = False
        self.broken = False  # a defect has ended the thread, and so all work of its background
        places = self._scheduler.limits.running + self._scheduler.limits.waiting
        self._counter = PlaceCounter[Sharer](places)  # by client, if that has a name, or party
        self._within = PlaceCounter[Party](places)  # the same requests, by party
        self._demand = Demand()
        self._tenants: Counter[Tenant] = Counter()  # requests in flight, by what they expect in their slots
        self._pace = Pace()
        self._beat = time.monotonic()
        self._idle = False  # the thread waits and has not been woken since
        self._thread = threading.Thread(target=self._run, name="mint-step", daemon=True)

    def start(self) -> None:
        """Start the step thread."""
        self._thread.start()

    def check_room(self, party: Party, count: int) -> None:
        """Raise Overloaded if the queue has no room for `count` more, so that nothing is loaded in vain.

        Raises InvalidRequest if it can never have.
        """
        with self._wake:
            self._check_room(party, count)

    def submit(self, request: Request, sink: Sink) -> Completion:
        """Queue a request for one completion; return that, for `cancel`. Raises Overloaded or Draining."""
        return self.submit_all([request], [sink])[0]

    def submit_all(self, requests: list[Request], sinks: list[Sink]) -> list[Completion]:
        """Queue all completions of one prompt, or none: the first computes the prompt, the others share it.

        Raises as `submit` does.
        """
        completions = self.begin(requests, sinks)
        self.enqueue(completions)
        return completions

    def begin(self, requests: list[Request], sinks: list[Sink]) -> list[Completion]:
        """Return the completions of one prompt, to be queued; any thread may call this. Raises InvalidRequest."""
        leader: Completion | None = None
        completions: list[Completion] = []
        for request, sink in zip(requests, sinks, strict=True):
            completions.append(self._generation.begin(request, sink, leader))
            if leader is None and completions[-1].ended is None:  # one that has ended computes no prompt
                leader = completions[-1]
        return completions

    def enqueue(self, completions: list[Completion]) -> None:
        """Queue completions of one prompt, or none. Raises Overloaded or Draining."""
        party = completions[0].request.party
        with self._wake:
            if self._stopping:
                raise Draining("engine", "is shutting down and takes no new requests")
            self._check_room(party, len(completions))
            now = time.monotonic()
            self._counter.enter(party.path[0], len(completions))
            self._within.enter(party, len(completions))
            self._demand.enter(party.adapter, len(completions), now)
            if self._is_full:
                self._pace.awaited(now)
            self._tenants.update(map(_tenant, completions))
            self._inbox += completions
            self._call()

    def cancel(self, completion: Completion) -> None:
        """End a request that nobody waits for: before the next step its pages are released and Failed is posted."""
        with self._wake:
            self._cancelled.append(completion)
            self._call()

    def wake(self) -> None:
        """Wake the thread, because the background has something to do."""
        with self._wake:
            self._call()

    def check(self) -> None:
        """Make the thread check before its next step whether the engine can still compute."""
        with self._wake:
            self._doubted = True
            self._call()

    def stop(self, timeout_s: float) -> bool:
        """End the thread after the step in progress; requests left fail with Draining. Return False if it hangs."""
        with self._wake:
            self._stopping = True
            self._call()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def load(self) -> Load:
        """The numbers of running and waiting requests."""
        running = len(self._scheduler.running)
        return Load(running, max(0, self._counter.total - running))

    @property
    def follows_arrivals(self) -> bool:
        """Whether a request may begin before its adapter is complete: the forward pass can, and nobody else waits."""
        load = self.load
        return self._generation.follows_arrivals and not (load.running or load.waiting or self._background.busy)

    def demand(self, most: int) -> dict[str, float]:
        """Return the smoothed requests in flight of the `most` adapters that have the most."""
        with self._wake:
            return self._demand.top(most, time.monotonic())

    def tenants(self) -> frozenset[Tenant]:
        """Return what requests in flight expect in their slots. Requests whose end was posted do not count."""
        with self._wake:
            return frozenset(tenant for tenant in self._tenants if tenant.slot != NO_SLOT)

    def stalled_s(self) -> float:
        """Return the seconds since the step thread last progressed: 0 while it is idle, infinite once it has died."""
        if not self._thread.is_alive():
            return math.inf
        load = self.load
        busy = load.running or load.waiting or self._background.busy
        return time.monotonic() - self._beat if busy else 0.0

    @property
    def _is_full(self) -> bool:
        """Whether there are more requests than places, so that some wait for the end of others."""
        return self._counter.total > self._scheduler.limits.running

    def _call(self) -> None:
        """Notify the thread of work. If it was idle, restart its beat, so that idle time is not taken for a stall."""
        if self._idle:
            self._idle, self._beat = False, time.monotonic()
        self._wake.notify()

    def _check_room(self, party: Party, count: int) -> None:
        # Running and waiting requests count together: those that wait while places are free are about to run.
        counter = self._counter
        if count > counter.places:
            raise InvalidRequest("sampling.n", f"is {count}; this engine has {counter.places} places")
        room = counter.room(party.path[0], counter.free)
        if count <= (self._within.room(party, room) if party.client else room):
            return
        load, own = self.load, self._within.of(party)
        what = f"{'training ' if party.background else ''}{party.adapter or 'the bare base'}"
        whose = "with your key " if party.client else ""
        others = counter.of(party.path[0]) - own
        rest = f" and {others} for other adapters" if others else ""
        retry_after_s = self._pace.retry_after_s(load.waiting, time.monotonic())
        raise Overloaded(
            "engine",
            f"{load.running} requests run and {load.waiting} wait, {own} of them {whose}for {what}{rest}; "
            f"retry in {retry_after_s:.1f} s",
            retry_after_s=retry_after_s,
        )

    def _run(self) -> None:
        try:
            while self._advance(*self._await_work()):
                pass
        except Exception:  # noqa: BLE001 - any defect, as of the books: clients would wait forever
            _log.exception("step_thread_ended", requests=len(self._scheduler.live))
            self._give_up()

    def _give_up(self) -> None:
        """Report the engine as lost, and fail all requests with EngineUnavailable; the books no longer matter."""
        with self._wake:
            self._stopping = self.broken = True
            left = [*self._scheduler.live, *self._inbox]
        self._generation.lose()
        error = EngineUnavailable("engine", "cannot compute any more; see its log")
        self._hand([(completion, Failed(error)) for completion in left])

    def _advance(self, came: list[Completion], cancelled: list[Completion], stopping: bool) -> bool:
        """Take in new and cancelled requests and do one step; return whether to go on."""
        self._beat = time.monotonic()
        for completion in came:
            self._scheduler.add(completion)
        self._deliver(self._generation.fail(cancelled, Cancelled("request", "was cancelled")))
        if stopping:
            left = self._scheduler.live
            self._deliver(self._generation.fail(left, Draining("engine", "ended before the request did")))
            self._check_books()
            return False
        if self._doubted:
            self._doubted = False
            self._generation.check()
        step_s = self._step()
        if self._background.busy:
            self._background.advance(len(self._scheduler.live), step_s)
        return True

    def _await_work(self) -> tuple[list[Completion], list[Completion], bool]:
        """Wait for work; return the new requests, the cancelled ones, and whether to stop.

        The books are checked only after IDLE_S without work, so that a request that comes sooner is not delayed.
        """
        with self._wake:
            if self._wake.wait_for(self._is_called, IDLE_S):
                return self._empty_inbox()
        self._check_books()
        with self._wake:
            self._idle = True
            self._wake.wait_for(self._is_called)
            self._idle = False
            return self._empty_inbox()

    def _empty_inbox(self) -> tuple[list[Completion], list[Completion], bool]:
        came, cancelled, self._inbox, self._cancelled = self._inbox, self._cancelled, [], []
        return came, cancelled, self._stopping

    def _is_called(self) -> bool:
        return bool(self._inbox or self._cancelled or self._stopping or self._doubted or self._busy)

    @property
    def _busy(self) -> bool:
        return self._generation.busy or self._background.busy

    def _step(self) -> float:
        """Do a step, if there is work, and return the seconds it took, else 0."""
        if not self._generation.busy:
            return 0.0
        began = time.perf_counter()
        outcomes = self._generation.step()
        seconds = time.perf_counter() - began
        metrics.STEP.observe(seconds)
        self._deliver(outcomes)
        return seconds

    def _deliver(self, outcomes: list[Outcome]) -> None:
        if not outcomes:
            return
        ended = [completion for completion, event in outcomes if isinstance(event, Done | Failed)]
        if ended:
            now = time.monotonic()
            with self._wake:
                for completion in ended:
                    self._pace.ended(now, awaited=self._is_full)
                    party = completion.request.party
                    self._counter.leave(party.path[0])
                    self._within.leave(party)
                    self._demand.leave(completion.request.adapter, now)
                    self._tenants[_tenant(completion)] -= 1
                self._tenants = +self._tenants
        self._hand(outcomes)

    def _hand(self, outcomes: list[Outcome]) -> None:
        try:
            self._post(lambda: self._hand_over(outcomes))
        except RuntimeError:  # the event loop has closed: nobody is left to receive them
            _log.warning("events_undelivered", events=len(outcomes))

    def _hand_over(self, outcomes: list[Outcome]) -> None:
        """Call the sinks, on the thread of `post`. One that raises loses only its own request."""
        for completion, event in outcomes:
            try:
                completion.sink(event)
            except Exception:  # noqa: BLE001 - a defect of one request; the others still wait for their events
                _log.exception("sink_defect", adapter=completion.request.adapter)
                self.cancel(completion)

    def _check_books(self) -> None:
        imbalance = find_imbalance(self._scheduler)
        if imbalance:
            metrics.IMBALANCES.inc()
            _log.error("books_unbalanced", found=imbalance)


def _tenant(completion: Completion) -> Tenant:
    request = completion.request
    return Tenant(request.slot, request.adapter, request.revision)
