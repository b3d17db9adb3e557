"""Decides which requests run, and how many tokens of each a step computes. No tensors, no clock, no threads.

Admission takes the next request of the least served adapter (`fairness`), with pages for the tokens that it has; full
pages that were computed before are shared (`prefix`). While it decodes, it takes a page every 16 tokens in each of
the cache's groups of layers, and releases pages that no layer of their group sees any more. When no page is left, the
running request of the most served adapter, and among its requests the latest, is preempted: it returns to the queue
with the tokens that it has generated, which become part of its prompt.

This makes progress: tokens are never lost, and either one of the requests that go on generates a token in the same
step, however many are late for theirs (`masking`), or the victim itself has generated one since it was admitted. The
first running request in that order is never preempted for pages, and alone in the engine it has room for all that it
can grow to. A request that gives way in turn has generated a token too, or nothing of it was computed and another of
its party goes on.

If waiting requests cannot be placed, the latest requests of the party that has most places give way in the same
manner (`place_turns`), so that nobody waits for the end of others' long requests.

A step computes one token of every decoding request, and fills the rest of its budget with prompts, those of the least
served adapters first, and long ones in chunks. While tenants' requests are computed, training's
(`Request.background`) get only a fraction of as many rows, so that tenants' tokens are hardly delayed.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import dataclass

import msgspec

from mint_contracts.layer_groups import NULL_PAGE, PAGE_TOKENS, STEP_TOKENS, first_seen, pages_for
from mint_engine import metrics
from mint_engine.scheduling.background import SHARE
from mint_engine.scheduling.fairness import COMPLETION_WEIGHT, PROMPT_WEIGHT, FairShare
from mint_engine.scheduling.pages import Pages
from mint_engine.scheduling.place_turns import PlaceTerms, room_for_training, who_give_way
from mint_engine.scheduling.prefix import PrefixCache, extend_keys, key_in
from mint_engine.scheduling.request import Party, Sequence, State
from mint_engine.scheduling.waiting import Waiting


class Limits(msgspec.Struct, frozen=True):
    """Bounds of one engine's work. `step_tokens` must exceed `running`, so that prompts always progress."""

    running: int = 68  # requests decoding together
    waiting: int = 256  # requests queued in addition
    step_tokens: int = STEP_TOKENS  # the most tokens that one step computes

    def __post_init__(self) -> None:
        if not 0 < self.running < self.step_tokens:
            raise ValueError(f"step_tokens {self.step_tokens} must exceed running {self.running}, at least 1")


@dataclass(frozen=True, slots=True)
class Share:
    """One request's part of a step."""

    sequence: Sequence
    length: int

    @property
    def samples(self) -> bool:
        """Whether the step reaches the sequence's end, so that a next token is chosen."""
        return self.length == self.sequence.pending


Rank = Callable[[Sequence], tuple[int, int]]

EARLIEST = 8  # at least one in 8 prompt tokens of a step belongs to the earliest prompt, whatever else arrives
FREE_ROWS = 4  # background rows that cost tenants next to nothing: a step reads all weights however few rows it has


def split_budget(running: List[Sequence], step_tokens: int, rank: Rank) -> list[Share]:
    """Return what a step computes: tenants' shares first, then those of background requests."""
    background = [each for each in running if each.request.background]
    if not background:
        return _fill(running, step_tokens, rank)
    tenants = [each for each in running if not each.request.background]
    shares = _fill(tenants, step_tokens - min(len(background), FREE_ROWS), rank)
    rows = sum(share.length for share in shares)
    beside = max(FREE_ROWS, int(SHARE * rows)) if rows else step_tokens
    return shares + _fill(background, min(beside, step_tokens - rows), rank)


def _fill(sequences: List[Sequence], budget: int, rank: Rank) -> list[Share]:
    """Share the budget: a token for every decoding request, then prompts, in the order of `rank` if it is too small.

    The earliest prompt always gets its part of what prompts get: adapters that have not been served yet precede it
    by rank, and a large catalog may bring new ones without end.
    """
    decoding = [each for each in sequences if each.pending == 1]
    if len(decoding) > budget:
        decoding = sorted(decoding, key=rank)[:budget]
    shares = [Share(each, 1) for each in decoding]
    left = budget - len(shares)
    prompts = sorted((each for each in sequences if each.pending > 1), key=rank)
    earliest = min(prompts, key=lambda each: each.arrival, default=None)
    kept = min(earliest.pending, -(-left // EARLIEST)) if earliest is not None else 0
    for each in prompts:
        if each is earliest:
            kept = 0
        if left > kept:
            shares.append(Share(each, min(each.pending, left - kept)))
            left -= shares[-1].length
    return shares


class Scheduler:
    """The waiting and running requests, and the pages that they own. Owned by the step thread."""

    def __init__(
        self, limits: Limits, pages: Pages, terms: PlaceTerms | None = None, windows: List[int | None] = (None,)
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
        self.running: list[Sequence] = []
        self.parked: list[Sequence] = []
        self.unwiped: list[int] = []  # pages taken since the caller last wiped pages and emptied this list
        self._arrivals = itertools.count(1)
        self._steps = 0
        self._without: dict[Party, int] = {}  # parties that wait without a place: since which step

    @property
    def live(self) -> list[Sequence]:
        """All requests that have not ended."""
        return [*self.running, *self.waiting, *self.parked]

    @property
    def busy(self) -> bool:
        """Whether any request has not ended."""
        return bool(self.running or self.parked or len(self.waiting))

    def add(self, sequence: Sequence) -> None:
        """Queue a request. The caller enforces the queue's bound."""
        sequence.arrival = next(self._arrivals)
        self.fairness.enter(sequence.request.adapter)
        self._queue(sequence)

    def next_step(self) -> list[Share]:
        """Schedule the next step and return its shares. The pages in `unwiped` must be wiped before it."""
        self._steps += 1
        self._unpark()
        self._grow()
        self._admit()
        return split_budget(self._ready(), self.limits.step_tokens, self._rank)

    def _ready(self) -> list[Sequence]:
        """Return the running requests whose adapters are complete; if there are none, those of one arriving adapter.

        Only the step of the latter waits for the adapter.
        """
        ready = [each for each in self.running if not each.request.awaits]
        if ready or not self.running:
            return ready
        first = min(self.running, key=self._rank).request.arrival
        return [each for each in self.running if each.request.arrival is first]

    def computed(self, sequence: Sequence, length: int) -> None:
        """Record that a step computed the next `length` tokens of a sequence, and publish its full pages."""
        sequence.computed += length
        new = min(sequence.computed, len(sequence.request.prompt)) - sequence.charged
        if new > 0:
            sequence.charged += new
            self.fairness.charge(sequence.request.adapter, PROMPT_WEIGHT * new)
        full = sequence.computed // PAGE_TOKENS
        if full > sequence.published and sequence.request.reuses:
            extend_keys(sequence.keys, sequence.request.revision, sequence.tokens, sequence.request.salt)
            for group, table in enumerate(sequence.tables):
                for at in range(sequence.published, full):
                    self.prefix.publish(key_in(group, sequence.keys[at]), table[at])
            sequence.published = full
        self._slide(sequence, sequence.computed - length)

    def _slide(self, sequence: Sequence, before: int) -> None:
        """Release the pages that windows left behind since `before` tokens were computed; others may find them."""
        for group, window in self._sliding:
            table = sequence.tables[group]
            behind = slice(first_seen(before, window), first_seen(sequence.computed, window))
            self.prefix.release(table[behind])
            table[behind] = [NULL_PAGE] * len(table[behind])

    def generated(self, sequence: Sequence) -> None:
        """Count one new token of a sequence as service."""
        self.fairness.charge(sequence.request.adapter, COMPLETION_WEIGHT)

    def remove(self, sequence: Sequence) -> None:
        """Remove a request that ended, in any state; its pages are available at once."""
        if sequence.state is State.RUNNING:
            self.running.remove(sequence)
            self._release(sequence)
        elif sequence.state is State.WAITING:
            self.waiting.remove(sequence)
        elif sequence.state is State.PARKED:
            self.parked.remove(sequence)
        sequence.state = State.ENDED
        self.fairness.leave(sequence.request.adapter)

    def _rank(self, sequence: Sequence) -> tuple[int, int]:
        """Return the sort key of a request: the least served adapter's first, then the earliest."""
        return self.fairness.service(sequence.request.adapter), sequence.arrival

    def _queue(self, sequence: Sequence) -> None:
        if _follows(sequence):
            sequence.state = State.PARKED
            self.parked.append(sequence)
        else:
            sequence.state = State.WAITING
            self.waiting.add(sequence)

    def _unpark(self) -> None:
        if self.parked:
            parked, self.parked = self.parked, []
            for each in parked:
                self._queue(each)

    def _grow(self) -> None:
        """Take pages for all running requests' next tokens; if they run out, preempt the last in rank."""
        growing = [each for each in self.running if each.covered < self._end(each)]
        if len(self.windows) * len(growing) > self.prefix.available:
            growing.sort(key=self._rank)
        for each in growing:
            while each.state is State.RUNNING and not self._extend(each):
                self._preempt(max(self.running, key=self._rank))
                metrics.PREEMPTED_FOR_PAGES.inc()

    def _end(self, sequence: Sequence) -> int:
        """Return the token up to which the next step may compute a sequence."""
        return min(len(sequence.tokens), sequence.computed + self.limits.step_tokens)

    def _needed(self, sequence: Sequence) -> List[int]:
        """Return the pages that each of a sequence's tables needs: without a window, enough for all of its tokens."""
        whole, next_ones = pages_for(len(sequence.tokens)), pages_for(self._end(sequence))
        return [whole if window is None else next_ones for window in self.windows]

    def _extend(self, sequence: Sequence) -> bool:
        """Take pages for a sequence's next tokens; return False, changing nothing, if there are too few."""
        lacking = [needed - len(table) for needed, table in zip(self._needed(sequence), sequence.tables, strict=True)]
        pages = self.prefix.take(sum(lacking))
        if pages is None:
            return False
        self.unwiped += pages
        for count, table in zip(lacking, sequence.tables, strict=True):
            table += pages[:count]
            del pages[:count]
        return True

    def _preempt(self, victim: Sequence) -> None:
        """Return a request to the queue, ahead of those of its party that arrived later."""
        self.running.remove(victim)
        victim.reached, victim.published = max(victim.reached, victim.computed), 0
        self._release(victim)
        if victim.must_score:
            victim.prompt_scores.clear()
        self._queue(victim)

    def _admit(self) -> None:
        """Start waiting requests in order while places and pages last; then make others give way in turn."""
        if not len(self.waiting):
            self._without.clear()
            return
        self._note_waits()
        # Prompts still to be computed count as service: otherwise one adapter would get all free places.
        promised: Counter[str] = Counter()
        for each in self.running:
            promised[each.request.adapter] += PROMPT_WEIGHT * (each.pending - 1)
        while len(self.running) < self.limits.running:
            sequence = self._next(promised)
            if sequence is None or not self._start(sequence, promised):
                break
        for background in sorted((False, True), key=self._longest_since):
            while (sequence := self._next_in_turn(promised, background)) and self._make_room(sequence, promised):
                self._start(sequence, promised)

    def _note_waits(self) -> None:
        having = {each.request.party for each in self.running}
        self._without = {
            party: self._without.get(party, self._steps) for party in self.waiting.parties if party not in having
        }

    def _next(self, promised: Counter[str]) -> Sequence | None:
        """Return the request that gets a free place; while tenants wait, training gets none beyond its share."""
        training = sum(each.request.background for each in self.running)
        tenants_wait = any(not party.background for party in self.waiting.parties)
        full = tenants_wait and training >= room_for_training(len(self.running) - training)
        among = (False,) if full else (False, True)
        longest = self._longest_without(among)
        if longest is not None and self._steps - self._without[longest] >= self.terms.last_stay:
            return self.waiting.first(longest)
        return self.waiting.next(promised, among)

    def _next_in_turn(self, promised: Counter[str], background: bool) -> Sequence | None:
        """Return the request for which others may give way: the party's longest without a place, else the next."""
        longest = self._longest_without((background,))
        return self.waiting.first(longest) if longest else self.waiting.next(promised, (background,))

    def _longest_without(self, among: List[bool]) -> Party | None:
        return min(
            (each for each in self._without if each.background in among), key=self._without_since, default=None
        )

    def _longest_since(self, background: bool) -> float:
        longest = self._longest_without((background,))
        return math.inf if longest is None else self._without[longest]

    def _without_since(self, party: Party) -> tuple[int, int]:
        return self._without[party], self.waiting.first(party).arrival

    def _make_room(self, sequence: Sequence, promised: Counter[str]) -> bool:
        """Preempt as many as a request needs; return False, changing nothing, if too few may, or none must."""
        party, running = sequence.request.party, len(self.running)
        since = self._without.get(party)
        waited = None if since is None else self._steps - since
        spare, each_one = self.prefix.available - sum(self._needed(sequence)), len(self.windows)
        if running < self.limits.running and spare >= running * each_one:
            return False
        victims: list[Sequence] = []

        def served(adapter: str) -> int:
            return self.fairness.service(adapter) + promised[adapter]

        for victim in who_give_way(party, waited, self.running, served, self._steps, self.terms):
            victims.append(victim)
            spare += sum(self.pages.references(page) == 1 for page in victim.pages)
            if spare >= (running - len(victims)) * each_one:
                for each in victims:
                    self._preempt(each)
                    metrics.PREEMPTED_FOR_TURN.inc()
                return True
        return False

    def _start(self, sequence: Sequence, promised: Counter[str]) -> bool:
        """Start a waiting request; return False, changing nothing, if there are too few pages for it."""
        if not self._place(sequence):
            return False
        self.waiting.remove(sequence)
        self._without.pop(sequence.request.party, None)
        sequence.state = State.RUNNING
        if not sequence.placed_at:
            sequence.found_first = sequence.found
        sequence.placed_at, sequence.placed_with = self._steps, len(sequence.tokens)
        self.running.append(sequence)
        promised[sequence.request.adapter] += PROMPT_WEIGHT * sequence.pending
        metrics.REUSED_TOKENS.inc(sequence.computed)
        return True

    def _place(self, sequence: Sequence) -> bool:
        """Find or take pages for a request's tokens; return False, changing nothing, if there are too few.

        The last token is always computed, since the next one is chosen from its logits. One page per group is left
        for each running request, because they would otherwise preempt each other at once.
        """
        reusable = 0 if sequence.must_score else (len(sequence.tokens) - 1) // PAGE_TOKENS
        sequence.tables = self.prefix.share(sequence.keys[:reusable], self.windows)
        found = len(sequence.tables[0])
        sequence.computed = found * PAGE_TOKENS
        lacking = sum(self._needed(sequence)) - found * len(self.windows)
        left = self.prefix.available - lacking
        if left < len(self.running) * len(self.windows) or not self._extend(sequence):
            self._release(sequence)
            return False
        sequence.published, sequence.found = found, sequence.computed
        sequence.charged = max(sequence.charged, min(sequence.computed, len(sequence.request.prompt)))
        return True

    def _release(self, sequence: Sequence) -> None:
        for table in sequence.tables:
            self.prefix.release(table)
        sequence.tables, sequence.computed = (), 0


def _follows(sequence: Sequence) -> bool:
    """Return whether to wait for the leader: it computes full pages of the prompt, or its scores, posted first."""
    leader = sequence.leader
    if leader is None or leader.state is State.ENDED or leader.completion_tokens:
        return False
    shares = len(sequence.request.prompt) > PAGE_TOKENS and sequence.request.reuses
    return shares or leader.must_score
