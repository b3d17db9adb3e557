"""Decides which running requests give way to waiting ones, so that long requests cannot keep every place for good.

Places are shared on two levels by the same rules: between clients that have names, then each one's between its
parties, which are the adapters that it asks for. Training, and adapters asked for without such a client, are parties
that take part as if each were a client. "Party" below means whoever shares on a level. A client's place is given by
its party that has most, of equals by the one that was served most. A party's requests keep their order. A request
that gives way returns to the queue with its tokens, and gets another place in its turn.

A party that waits without a place gets one from the party that has most: that of its latest request that has had the
place for `stay` steps, or of which nothing beyond cached tokens has been computed yet (which includes a request that
is late for its first token, see `masking`). A party's only place is taken after `last_stay` steps, and only by a
party that has waited for `stay` steps. A party that has waited for `last_stay` steps is first in line for any free
place, ahead of parties that were served less. So a newcomer waits at most `stay` steps if others have several places.
If all n places belong to different parties, one that waits behind p others gets a place within (p // n + 2) times
`last_stay` steps. The prompts of requests that have places lengthen both bounds, which hold as far as pages suffice.

A party that has places gets more from one that has at least two more and was served more, by `margin`, until they
are even. Training keeps at most `SHARE` of tenants' places while tenants wait, but at least one.

The cost is bounded. If the pages of a request that gave way are still cached, a page's worth of tokens is computed
twice, at most once in `stay` steps. If they are lost, the request keeps its next place until it has generated as many
tokens as were computed again. With only one party, nobody ever gives way.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from mint_engine.scheduling.background import SHARE
from mint_engine.scheduling.fairness import COMPLETION_WEIGHT
from mint_engine.scheduling.request import Completion, Party, Sharer


class PlaceTerms(msgspec.Struct, frozen=True):
    """The number of steps for which places are kept."""

    stay: int = 128  # if the party has others: about eight times the cost of computing a page's tokens again
    last_stay: int = 512  # if it is the party's only place

    @property
    def margin(self) -> int:
        """The service that a place gives in `stay` steps."""
        return COMPLETION_WEIGHT * self.stay


Served = Callable[[Sharer], int]  # returns the service of a client or party

BETWEEN, WITHIN = 0, -1  # levels of a party's path: between clients, or within one

_Movable = dict[Sharer, dict[Party, list[Completion]]]  # by client and party, the latest last; nothing is empty


def room_for_training(tenants: int) -> int:
    """Return how many places training may have while `tenants` places are tenants' and more tenants wait."""
    return max(1, int(SHARE * tenants))


def may_any_give_way(own: Sequence[Completion], now: int, terms: PlaceTerms) -> bool:
    """Return whether any of a client's `own` that run might give way to another of its parties: a quick look."""
    places = Counter(each.request.party for each in own)
    return any(
        _may_move(each, now, terms) if places[each.request.party] > 1 else now - each.placed_at >= terms.last_stay
        for each in own
    )


def who_give_way(
    party: Party,
    level: int,
    waited: int | None,
    running: Sequence[Completion],
    served: Served,
    now: int,
    terms: PlaceTerms,
) -> Iterator[Completion]:
    """Yield the requests that may give way to a party's next request; take only as many as make room for it.

    `running` are those of the level: all, or those of the party's client. `waited` is the number of steps for which
    the party, or its client if the level is theirs, has had no place; None if it has one, or has just lost it.
    """
    asking, movable = party.path[level], _Movable()
    for each in running:
        its = each.request.party
        if its.path[level] != asking and _may_move(each, now, terms):
            movable.setdefault(its.path[level], {}).setdefault(its, []).append(each)
    if not movable:
        return
    for parties in movable.values():
        for latest_last in parties.values():
            latest_last.sort(key=lambda each: each.arrival)
    places = Counter(sharer for each in running for sharer in each.request.party.path)
    claim = _Claim(asking, party.background, waited, places, served, now, terms)
    while (victim := claim.next_of(movable)) is not None:
        yield victim


def _may_move(each: Completion, now: int, terms: PlaceTerms) -> bool:
    """Return whether a request has had its place long enough, or nothing has been computed of it there."""
    if each.computed == each.found:
        return True
    generated = len(each.tokens) - each.placed_with
    return now - each.placed_at >= terms.stay and generated >= max(1, each.reached - each.found)


@dataclass(slots=True)
class _Claim:
    """One client's or party's claim to the places of others on its level."""

    asking: Sharer
    background: bool
    waited: int | None
    places: Counter[Sharer]
    served: Served
    now: int
    terms: PlaceTerms

    def next_of(self, movable: _Movable) -> Completion | None:
        """Remove and return the request that gives way next, or None."""
        counts = [(sharer.background, count) for sharer, count in self.places.items() if isinstance(sharer, Party)]
        training = sum(count for background, count in counts if background)
        tenants = sum(count for _, count in counts) - training
        over = not self.background and training > room_for_training(tenants)
        within = not self.background or training < room_for_training(tenants - 1)
        owing: list[tuple[Sharer, Party]] = []
        for sharer, parties in movable.items():
            party = max(parties, key=self._has)
            owes = (party.background or within) and self._is_owed(sharer, parties[party][-1])
            if (party.background and over) or owes:
                owing.append((sharer, party))
        if not owing:
            return None
        sharer, party = max(owing, key=lambda each: (each[1].background and over, *self._has(each[0])))
        victim = movable[sharer][party].pop()
        if not movable[sharer][party]:
            del movable[sharer][party]
        if not movable[sharer]:
            del movable[sharer]
        self.places.subtract(party.path)
        return victim

    def _has(self, sharer: Sharer) -> tuple[int, int]:
        return self.places[sharer], self.served(sharer)

    def _is_owed(self, sharer: Sharer, last: Completion) -> bool:
        """Return whether a sharer, whose request `last` would give way, owes the claimant a place."""
        terms = self.terms
        own, its = self.places[self.asking], self.places[sharer]
        if self.waited is None:
            return its - own > 1 and self.served(sharer) - self.served(self.asking) > terms.margin
        if its > 1:
            return True
        return (
            self.waited >= terms.stay and self.now - last.placed_at >= terms.last_stay and last.computed > last.found
        )
