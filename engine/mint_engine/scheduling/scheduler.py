"""Decides which requests run, and how many tokens of each a step computes. No tensors, no clock, no threads.

Admission takes the next request of the least served client's least served party (`fairness`), with pages for the
tokens that it has; full pages that were computed before are shared (`prefix`). While it decodes, it takes a page
every 16 tokens in each of the cache's groups of layers, and releases pages that no layer of their group sees any
more. When no page is left, the running request of the most served client's most served party, and among its requests
the latest, is preempted: it returns to the queue with the tokens that it has generated, which become part of its
prompt. Training's requests are preempted before any tenant's, but for the first of them.

This makes progress: tokens are never lost, and either one of the requests that go on generates a token in the same
step, however many are late for theirs (`masking`), or the victim itself has generated one since it was admitted. The
first running request in that order is never preempted for pages, and alone in the engine it has room for all that it
can grow to. A request that gives way in turn has generated a token too, or nothing of it was computed and another of
its client or party goes on.

If waiting requests cannot be placed, the latest requests of the client, and of its party, that has most places give
way in the same manner (`place_turns`), so that nobody waits for the end of others' long requests.

A step computes one token of every decoding request, and fills the rest of its budget with prompts, those of the least
served first, and long ones in chunks. While tenants' requests are computed, training's (`Request.background`) get
only a fraction of as many rows, so that tenants' tokens are hardly delayed.
"""

import itertools
from collections import Counter
from collections.abc import Sequence

import msgspec

from mint_contracts.layer_groups import NULL_PAGE, PAGE_TOKENS, STEP_TOKENS, first_seen, pages_for
from mint_engine import metrics
from mint_engine.scheduling.budget import Share, split_budget
from mint_engine.scheduling.fairness import COMPLETION_WEIGHT, PROMPT_WEIGHT, FairShare
from mint_engine.scheduling.pages import Pages
from mint_engine.scheduling.place_turns import (
    BETWEEN,
    WITHIN,
    PlaceTerms,
    may_any_give_way,
    room_for_training,
    who_give_way,
)
from mint_engine.scheduling.prefix import PrefixCache, extend_keys, key_in
from mint_engine.scheduling.request import Completion, Sharer, State
from mint_engine.scheduling.waiting import Waiting


class Limits(msgspec.Struct, frozen=True):
    """Bounds of one engine's work. `step_tokens` must exceed `running`, so that prompts always progress."""

    running: int = 68  # requests decoding together
    waiting: int = 256  # requests queued in addition
    step_tokens: int = STEP_TOKENS  # the most tokens that one step computes

    def __post_init__(self) -> None:
        if not 0 < self.running < self.step_tokens:
            raise ValueError(f"step_tokens {self.step_tokens} must exceed running {self.running}, at least 1")


class Scheduler:
    """The waiting and running requests, and the pages that they own. Owned by the step thread."""

    def __init__(
        self, limits: Limits, pages: Pages, terms: PlaceTerms | None = None, windows: Sequence[int | None] = (None,)
    ) -> None:
        """`windows` are the window sizes of the cache's groups of layers; None for a group that sees everything."""
        self.limits = limits
        self.terms = terms or PlaceTerms()
        self.pages = pages
        self.windows = windows
        self._sliding = [(group, window) for group, window in enumerate(windows) if window is not None]
        self.prefix = PrefixCache(pages)
        self.fairness = FairShare()
        self.waiting = Waiting(self.fairness)
        self.running: list[Completion] = []
        self.parked: list[Completion] = []
        self.unwiped: list[int] = []  # pages taken since the caller last wiped pages and emptied this list
        self._arrivals = itertools.count(1)
        self._steps = 0

    @property
    def live(self) -> list[Completion]:
        """All requests that have not ended."""
        return [*self.running, *self.waiting, *self.parked]

    @property
    def busy(self) -> bool:
        """Whether any request has not ended."""
        return bool(self.running or self.parked or len(self.waiting))

    def add(self, completion: Completion) -> None:
        """Queue a request. The caller enforces the queue's bound."""
        completion.arrival = next(self._arrivals)
        self.fairness.enter(completion.request.party)
        self._queue(completion)

    def next_step(self) -> list[Share]:
        """Schedule the next step and return its shares. The pages in `unwiped` must be wiped before it."""
        self._steps += 1
        self._unpark()
        self._grow()
        self._admit()
        return split_budget(self._ready(), self.limits.step_tokens, self._rank)

    def _ready(self) -> list[Completion]:
        """Return the running requests whose adapters are complete; if there are none, those of one arriving adapter.

        Only the step of the latter waits for the adapter.
        """
        ready = [each for each in self.running if not each.request.awaits]
        if ready or not self.running:
            return ready
        first = min(self.running, key=self._rank).request.arrival
        return [each for each in self.running if each.request.arrival is first]

    def computed(self, completion: Completion, length: int) -> None:
        """Record that a step computed the next `length` tokens of a completion, and publish its full pages."""
        completion.computed += length
        new = min(completion.computed, len(completion.request.prompt)) - completion.charged
        if new > 0:
            completion.charged += new
            self.fairness.charge(completion.request.party, PROMPT_WEIGHT * new)
        full = completion.computed // PAGE_TOKENS
        if full > completion.published and completion.request.reuses:
            extend_keys(completion.keys, completion.request.revision, completion.tokens, completion.request.salt)
            for group, table in enumerate(completion.tables):
                for at in range(completion.published, full):
                    self.prefix.publish(key_in(group, completion.keys[at]), table[at])
            completion.published = full
        self._slide(completion, completion.computed - length)

    def _slide(self, completion: Completion, before: int) -> None:
        """Release the pages that windows left behind since `before` tokens were computed; others may find them."""
        for group, window in self._sliding:
            table = completion.tables[group]
            behind = slice(first_seen(before, window), first_seen(completion.computed, window))
            self.prefix.release(table[behind])
            table[behind] = [NULL_PAGE] * len(table[behind])

    def generated(self, completion: Completion) -> None:
        """Count one new token of a completion as service."""
        self.fairness.charge(completion.request.party, COMPLETION_WEIGHT)

    def remove(self, completion: Completion) -> None:
        """Remove a request that ended, in any state; its pages are available at once."""
        if completion.state is State.RUNNING:
            self.running.remove(completion)
            self._release(completion)
        elif completion.state is State.WAITING:
            self.waiting.remove(completion)
        elif completion.state is State.PARKED:
            self.parked.remove(completion)
        completion.state = State.ENDED
        self.fairness.leave(completion.request.party)

    def _rank(self, completion: Completion) -> tuple[tuple[int, ...], int]:
        """Return a request's sort key: the least served client's least served party's is first, then the earliest."""
        return self.fairness.rank(completion.request.party), completion.arrival

    def _queue(self, completion: Completion) -> None:
        if _follows(completion):
            completion.state = State.PARKED
            self.parked.append(completion)
        else:
            completion.state = State.WAITING
            self.waiting.add(completion)

    def _unpark(self) -> None:
        if self.parked:
            parked, self.parked = self.parked, []
            for each in parked:
                self._queue(each)

    def _grow(self) -> None:
        """Take pages for all running requests' next tokens; if they run out, preempt others or themselves."""
        growing = [each for each in self.running if each.covered < self._end(each)]
        if len(self.windows) * len(growing) > self.prefix.available:
            growing.sort(key=self._rank)
        for each in growing:
            while each.state is State.RUNNING and not self._extend(each):
                self._preempt(self._last())
                metrics.PREEMPTED_FOR_PAGES.inc()

    def _last(self) -> Completion:
        """Return the request to preempt for pages: the last of training's, or of all if training has only one.

        Beside tenants training gets few rows, and so is served least: by rank alone it would keep all of its pages.
        """
        training = [each for each in self.running if each.request.background]
        return max(training if len(training) > 1 else self.running, key=self._rank)

    def _end(self, completion: Completion) -> int:
        """Return the token up to which the next step may compute a completion."""
        return min(len(completion.tokens), completion.computed + self.limits.step_tokens)

    def _needed(self, completion: Completion) -> Sequence[int]:
        """Return the pages that each of a completion's tables needs: without a window, enough for all its tokens."""
        whole, next_ones = pages_for(len(completion.tokens)), pages_for(self._end(completion))
        return [whole if window is None else next_ones for window in self.windows]

    def _extend(self, completion: Completion) -> bool:
        """Take pages for a completion's next tokens; return False, changing nothing, if there are too few."""
        lacking = [
            needed - len(table) for needed, table in zip(self._needed(completion), completion.tables, strict=True)
        ]
        pages = self.prefix.take(sum(lacking))
        if pages is None:
            return False
        self.unwiped += pages
        for count, table in zip(lacking, completion.tables, strict=True):
            table += pages[:count]
            del pages[:count]
        return True

    def _preempt(self, victim: Completion) -> None:
        """Return a request to the queue, ahead of those of its party that arrived later."""
        self.running.remove(victim)
        if victim.computed == victim.found and not victim.late:
            self.waiting.unplaced(victim, self.running)
        victim.reached, victim.published = max(victim.reached, victim.computed), 0
        self._release(victim)
        if victim.must_score:
            victim.prompt_scores.clear()
        self._queue(victim)

    def _admit(self) -> None:
        """Start waiting requests in order while places and pages last; then make others give way in turn."""
        self.waiting.note(self.running if len(self.waiting) else (), self._steps)
        if not len(self.waiting):
            return
        # Prompts still to be computed count as service: otherwise one party would get all free places.
        promised: Counter[Sharer] = Counter()
        for each in self.running:
            _promise(promised, each, each.pending - 1)
        while len(self.running) < self.limits.running:
            completion = self._next(promised)
            if completion is None or not self._start(completion, promised):
                break
        self._take_turns(promised)

    def _take_turns(self, promised: Counter[Sharer]) -> None:
        """Start waiting requests for which others give way: between clients, then within each client."""
        for background in sorted((False, True), key=self.waiting.longest):
            while (first := self.waiting.next(promised, (background,))) and self._make_room(first, promised):
                self._start(first, promised)
        by_client: dict[str, list[Completion]] = {}
        for each in self.running:
            if each.request.client:
                by_client.setdefault(each.request.client, []).append(each)
        for client, own in by_client.items():
            self._take_turns_within(client, own, promised)

    def _take_turns_within(self, client: str, own: list[Completion], promised: Counter[Sharer]) -> None:
        """Start a client's waiting requests for which some of its `own` that run give way."""
        while may_any_give_way(own, self._steps, self.terms):
            completion = self.waiting.next_of(client, promised)
            if completion is None or not self._make_room(completion, promised, own):
                return
            self._start(completion, promised)
            own = [each for each in self.running if each.request.client == client]

    def _next(self, promised: Counter[Sharer]) -> Completion | None:
        """Return the request that gets a free place; while tenants wait, training gets none beyond its share."""
        training = sum(each.request.background for each in self.running)
        full = self.waiting.has(False) and training >= room_for_training(len(self.running) - training)
        return self.waiting.next(promised, (False,) if full else (False, True), self.terms.last_stay)

    def _make_room(self, completion: Completion, promised: Counter[Sharer], own: Sequence[Completion] = ()) -> bool:
        """Preempt as many as a request needs; return False, changing nothing, if too few may, or none must.

        If its client's `own` that run are given, it is only they who may. For pages alone, nobody gives way to
        training that has a place: it is the first to lose pages (`_last`).
        """
        level, rivals = (WITHIN, own) if own else (BETWEEN, self.running)
        party, running = completion.request.party, len(self.running)
        waited = self.waiting.waited(party.path[level])
        spare, each_one = self.prefix.available - sum(self._needed(completion)), len(self.windows)
        fits = spare >= running * each_one
        if running < self.limits.running and (fits or (party.background and waited is None)):
            return False
        victims: list[Completion] = []

        def served(each: Sharer) -> int:
            return self.fairness.service(each) + promised[each]

        for victim in who_give_way(party, level, waited, rivals, served, self._steps, self.terms):
            victims.append(victim)
            spare += sum(self.pages.references(page) == 1 for page in victim.pages)
            if spare >= (running - len(victims)) * each_one:
                for each in victims:
                    self._preempt(each)
                    metrics.PREEMPTED_FOR_TURN.inc()
                return True
        return False

    def _start(self, completion: Completion, promised: Counter[Sharer]) -> bool:
        """Start a waiting request; return False, changing nothing, if there are too few pages for it."""
        if not self._place(completion):
            return False
        self.waiting.placed(completion)
        completion.state = State.RUNNING
        if not completion.placed_at:
            completion.found_first = completion.found
        completion.placed_at, completion.placed_with = self._steps, len(completion.tokens)
        self.running.append(completion)
        _promise(promised, completion, completion.pending)
        metrics.REUSED_TOKENS.inc(completion.computed)
        return True

    def _place(self, completion: Completion) -> bool:
        """Find or take pages for a request's tokens; return False, changing nothing, if there are too few.

        The last token is always computed, since the next one is chosen from its logits. One page per group is left
        for each running request, because they would otherwise preempt each other at once.
        """
        if self._lacks_still(completion):
            return False
        keys = completion.keys[: 0 if completion.must_score else (len(completion.tokens) - 1) // PAGE_TOKENS]
        completion.tables = self.prefix.share(keys, self.windows)
        found = len(completion.tables[0])
        completion.computed = found * PAGE_TOKENS
        lacking = sum(self._needed(completion)) - found * len(self.windows)
        left = self.prefix.available - lacking
        if left < len(self.running) * len(self.windows) or not self._extend(completion):
            self._release(completion)
            following = keys[found] if found < len(keys) else b""
            completion.lacked = self.prefix.released, len(self.running), following
            return False
        completion.published, completion.found, completion.lacked = found, completion.computed, None
        completion.charged = max(completion.charged, min(completion.computed, len(completion.request.prompt)))
        return True

    def _lacks_still(self, completion: Completion) -> bool:
        """Return whether a request that had too few pages has them still: then nothing is looked up again.

        For 131,072 cached tokens that takes 4 ms and more, which each step would pay for the first in line.
        """
        if completion.lacked is None:
            return False
        released, running, following = completion.lacked
        return (released, running) == (self.prefix.released, len(self.running)) and not self.prefix.has(following)

    def _release(self, completion: Completion) -> None:
        for table in completion.tables:
            self.prefix.release(table)
        completion.tables, completion.computed = (), 0


def _promise(promised: Counter[Sharer], completion: Completion, tokens: int) -> None:
    for sharer in completion.request.party.path:
        promised[sharer] += PROMPT_WEIGHT * tokens


def _follows(completion: Completion) -> bool:
    """Return whether to wait for the leader: it computes full pages of the prompt, or its scores, posted first."""
    leader = completion.leader
    if leader is None or leader.state is State.ENDED or leader.generated > len(leader.request.begun):
        return False
    shares = len(completion.request.prompt) > PAGE_TOKENS and completion.request.reuses
    return shares or leader.must_score
