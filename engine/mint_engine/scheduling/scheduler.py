"""Who runs, and how many tokens of whom a step computes. No tensors, no clock, no threads.

Admission takes the next request of the adapter that was served least (`fairness`), with pages for the tokens that it
has; full pages that were computed before are shared (`prefix`). While it decodes it takes a page every 16 tokens, of
each group of layers that the cache has, and lets go of those that no layer of their group sees any more.
When none is left, the running request whose adapter was served most, and of those the latest, is preempted: it goes
back to the queue with the tokens that it has generated, which become part of its prompt.

That ends: of those that go on one at least generates a token in the same step, whoever is late for its own
(`masking`), or the victim itself has generated one since it was admitted, and tokens are never lost. Of those that
run, the first in that order is never preempted for pages, and alone in the engine it has room for all that it can
grow to. Whoever gives way by turns has generated a token too, or nothing of it was computed and another of its party
goes on.

Where those who wait can't be placed, the latest requests of whoever has most places give way in the same manner, by
turns (`turns`), so that nobody waits for the end of others' long requests.

A step computes one token of every request that decodes, and fills the rest of its budget with prompts, in chunks
where they are long, those of the least served adapters first. Where tenants' requests are computed, training's
(`Request.background`) get a share of as many rows beside them, so that tenants' tokens come hardly later.
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
from mint_engine.scheduling.prefix import PrefixCache, extend_keys, key_in
from mint_engine.scheduling.request import Party, Sequence, State
from mint_engine.scheduling.turns import Terms, room_for_training, who_give_way
from mint_engine.scheduling.waiting import Waiting


class Limits(msgspec.Struct, frozen=True):
    """Bounds of one engine's work. `step_tokens` must exceed `running`, so that prompts always progress."""

    running: int = 68  # requests decoding together
    waiting: int = 256  # requests queued beside them
    step_tokens: int = STEP_TOKENS  # that one step computes at most

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

EARLIEST = 8  # of the tokens of prompts in a step, one in so many is the earliest prompt's, whoever else comes
FREE_ROWS = 4  # in the background cost tenants next to nothing: a step reads all weights for however few rows


def split_budget(running: List[Sequence], step_tokens: int, rank: Rank) -> list[Share]:
    """What a step computes of tenants' requests, then of those in the background."""
    background = [each for each in running if each.request.background]
    if not background:
        return _fill(running, step_tokens, rank)
    tenants = [each for each in running if not each.request.background]
    shares = _fill(tenants, step_tokens - min(len(background), FREE_ROWS), rank)
    rows = sum(share.length for share in shares)
    beside = max(FREE_ROWS, int(SHARE * rows)) if rows else step_tokens
    return shares + _fill(background, min(beside, step_tokens - rows), rank)


def _fill(sequences: List[Sequence], budget: int, rank: Rank) -> list[Share]:
    """Every decoding request's token, then prompts, while the budget lasts; by `rank` where it does not.

    Of what prompts get the earliest gets its part at least: adapters that nobody has served yet come before it by
    rank, and of a large catalog there may be new ones without end.
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
    """The waiting and the running, and the pages they own. Owned by the step thread."""

    def __init__(
        self, limits: Limits, pages: Pages, terms: Terms | None = None, windows: List[int | None] = (None,)
    ) -> None:
        """`windows` are those of the cache's groups of layers."""
        self.limits = limits
        self.terms = terms or Terms()
        self.pages = pages
        self.windows = windows
        self._sliding = [(group, window) for group, window in enumerate(windows) if window is not None]
        self.prefix = PrefixCache(pages)
        self.fairness = FairShare()
        self.waiting = Waiting(self.fairness)
        self.running: list[Sequence] = []
        self.parked: list[Sequence] = []
        self.unwiped: list[int] = []  # pages taken anew since whoever computes emptied this list
        self._arrivals = itertools.count(1)
        self._steps = 0
        self._without: dict[Party, int] = {}  # who wait and have no place, since which step

    @property
    def live(self) -> list[Sequence]:
        """All that have not ended."""
        return [*self.running, *self.waiting, *self.parked]

    @property
    def busy(self) -> bool:
        """Whether any has not ended."""
        return bool(self.running or self.parked or len(self.waiting))

    def add(self, sequence: Sequence) -> None:
        """Queue a request; the queue's bound is kept where requests come in."""
        sequence.arrival = next(self._arrivals)
        self.fairness.enter(sequence.request.adapter)
        self._queue(sequence)

    def next_step(self) -> list[Share]:
        """What the next step computes. `unwiped` must be wiped before."""
        self._steps += 1
        self._unpark()
        self._grow()
        self._admit()
        return split_budget(self._ready(), self.limits.step_tokens, self._rank)

    def _ready(self) -> list[Sequence]:
        """Whose adapters are there. Where nobody's is, those of one that comes: their step alone waits for it."""
        ready = [each for each in self.running if not each.request.awaits]
        if ready or not self.running:
            return ready
        first = min(self.running, key=self._rank).request.arrival
        return [each for each in self.running if each.request.arrival is first]

    def computed(self, sequence: Sequence, length: int) -> None:
        """Note that a step has computed the next `length` tokens of a sequence; others may find its full pages."""
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
        """Let go of pages that a window has left behind since so many tokens were computed; others may find them."""
        for group, window in self._sliding:
            table = sequence.tables[group]
            behind = slice(first_seen(before, window), first_seen(sequence.computed, window))
            self.prefix.release(table[behind])
            table[behind] = [NULL_PAGE] * len(table[behind])

    def generated(self, sequence: Sequence) -> None:
        """Count one new token of a sequence as service."""
        self.fairness.charge(sequence.request.adapter, COMPLETION_WEIGHT)

    def remove(self, sequence: Sequence) -> None:
        """Forget a request that ended, wherever it is; its pages are available at once."""
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
        """Who comes first: the least served adapter's, then the earliest."""
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
        """Pages for everyone's next tokens; where they run out, the last in rank make room."""
        growing = [each for each in self.running if each.covered < self._end(each)]
        if len(self.windows) * len(growing) > self.prefix.available:
            growing.sort(key=self._rank)
        for each in growing:
            while each.state is State.RUNNING and not self._extend(each):
                self._preempt(max(self.running, key=self._rank))
                metrics.PREEMPTED_FOR_PAGES.inc()

    def _end(self, sequence: Sequence) -> int:
        """How far the next step may compute a sequence."""
        return min(len(sequence.tokens), sequence.computed + self.limits.step_tokens)

    def _needed(self, sequence: Sequence) -> List[int]:
        """How many pages a sequence's tables are to have: where all is kept, for all of its tokens."""
        whole, next_ones = pages_for(len(sequence.tokens)), pages_for(self._end(sequence))
        return [whole if window is None else next_ones for window in self.windows]

    def _extend(self, sequence: Sequence) -> bool:
        """Pages for a sequence's next tokens; False and no change where there are too few."""
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
        """Back to the queue, before those of its party that came later."""
        self.running.remove(victim)
        victim.reached, victim.published = max(victim.reached, victim.computed), 0
        self._release(victim)
        if victim.must_score:
            victim.prompt_scores.clear()
        self._queue(victim)

    def _admit(self) -> None:
        """Move requests from the queue to the running while places and pages last. Nobody overtakes the next one.

        Where they do not last, others give way by turns.
        """
        if not len(self.waiting):
            self._without.clear()
            return
        self._note_waits()
        # Prompts that are yet to be computed count as if they were: else one adapter would get all free places.
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
        """Whose turn a free place is: training's only within its share while tenants wait."""
        training = sum(each.request.background for each in self.running)
        tenants_wait = any(not party.background for party in self.waiting.parties)
        full = tenants_wait and training >= room_for_training(len(self.running) - training)
        among = (False,) if full else (False, True)
        longest = self._longest_without(among)
        if longest is not None and self._steps - self._without[longest] >= self.terms.last_stay:
            return self.waiting.first(longest)
        return self.waiting.next(promised, among)

    def _next_in_turn(self, promised: Counter[str], background: bool) -> Sequence | None:
        """For whom others may have to give way: who has waited longest without a place, or else who comes next."""
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
        """Have as many give way as a request needs; False and no change where too few may, or none need."""
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
        """A place for a request; False and no change where its pages are lacking."""
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
        """Pages for a request's tokens, found or taken; False and no change where there are too few.

        The last token is always computed, since the next one is chosen from its logits. One page of each group for
        each request that runs is left, or they would preempt each other at once.
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
    """Whether to wait for a sibling: it computes full pages of their prompt, or its scores, which are told first."""
    leader = sequence.leader
    if leader is None or leader.state is State.ENDED or leader.completion_tokens:
        return False
    shares = len(sequence.request.prompt) > PAGE_TOKENS and sequence.request.reuses
    return shares or leader.must_score
