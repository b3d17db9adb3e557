"""Decides which running requests give way to waiting ones, so that long requests cannot keep every place for good.

Places are shared between parties: each client of an adapter is one, and its training is another. A party's requests
keep their order. A request that gives way returns to the queue with its tokens, and gets another place in its turn.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from mint_engine.scheduling.background import SHARE
from mint_engine.scheduling.fairness import COMPLETION_WEIGHT
from mint_engine.scheduling.request import Completion, Party


class PlaceTerms(msgspec.Struct, frozen=True):
    """The number of steps for which places are kept."""

    stay: int = 128  # if the party has others: about eight times the cost of computing a page's tokens again
    last_stay: int = 512  # if it is the party's only place

    @property
    def margin(self) -> int:
        """The service that a place gives in `stay` steps."""
        return COMPLETION_WEIGHT * self.stay


Served = Callable[[Party], int]  # returns a party's service


def room_for_training(tenants: int) -> int:
    """Return how many places training may have while `tenants` places are tenants' and more tenants wait."""
    return max(1, int(SHARE * tenants))


def who_give_way(
    asking: Party, waited: int | None, running: Sequence[Completion], served: Served, now: int, terms: PlaceTerms
) -> Iterator[Completion]:
    """Yield the requests that may give way to a party's next request; take only as many as make room for it.

    `waited` is the number of steps for which the party has had no place; None if it has one, or has just lost it.
    """
    claim = _Claim(asking, waited, Counter(each.request.party for each in running), served, now, terms)
    movable: dict[Party, list[Completion]] = {}
    for each in running:
        if each.request.party != asking and _may_move(each, now, terms):
            movable.setdefault(each.request.party, []).append(each)
    for latest_last in movable.values():
        latest_last.sort(key=lambda each: each.arrival)
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
    """One party's claim to the places of others."""

    asking: Party
    waited: int | None
    places: Counter[Party]
    served: Served
    now: int
    terms: PlaceTerms

    def next_of(self, movable: Mapping[Party, list[Completion]]) -> Completion | None:
        """Remove and return the request that gives way next, or None. `movable` lists them by party, latest last."""
        training = sum(count for party, count in self.places.items() if party.background)
        tenants = self.places.total() - training
        over = not self.asking.background and training > room_for_training(tenants)
        within = not self.asking.background or training < room_for_training(tenants - 1)
        owing = [
            party
            for party, those in movable.items()
            if those
            and ((party.background and over) or ((party.background or within) and self._is_owed(party, those)))
        ]
        if not owing:
            return None
        party = max(owing, key=lambda each: (each.background and over, self.places[each], self.served(each)))
        self.places[party] -= 1
        return movable[party].pop()

    def _is_owed(self, party: Party, movable: Sequence[Completion]) -> bool:
        """Return whether a party owes the claimant a place, by the places and the service of both."""
        terms = self.terms
        own, its, last = self.places[self.asking], self.places[party], movable[-1]
        if self.waited is None:
            return its - own > 1 and self.served(party) - self.served(self.asking) > terms.margin
        if its > 1:
            return True
        return (
            self.waited >= terms.stay and self.now - last.placed_at >= terms.last_stay and last.computed > last.found
        )
