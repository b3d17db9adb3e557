"""Places in turn: which running requests give way, so that long ones can't keep every place from those who wait.

Places are shared between parties: an adapter's tenants are one, its training is another. A party's requests keep
their order. Who gives way goes back to the queue with its tokens, and comes back by its turn.

A party that waits without a place gets one from whoever has most: the latest request that has had its place for
`stay` steps, or of which nothing was computed yet but what was found (so of who is late for its first token, see
`masking`). A party's only place is taken once it was had for `last_stay` steps, and by who has waited for `stay`; who
has waited for `last_stay` steps is first in line for whatever is free, before those that were served less. So where
others have several places a newcomer waits for `stay` steps at most.
Where all n places are of different parties, one that waits behind p others gets one within (p // n + 2) times
`last_stay` steps. Both are longer by what the prompts of those that have places take, and hold as pages allow.

A party that has places gets more from one that has at least two more and was served more, by `margin`, until they
are even. Training keeps at most `SHARE` of tenants' places while tenants wait, and one at least.

What this costs is bounded. Pages of who gave way are found again where nobody needed them meanwhile: a page's worth
of tokens is computed twice, for `stay` steps at least. Where they are lost, the request keeps its next place until it
has generated as many tokens as were computed again. Of one party alone nobody ever gives way.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from mint_engine.scheduling.background import SHARE
from mint_engine.scheduling.fairness import COMPLETION_WEIGHT
from mint_engine.scheduling.request import Party
from mint_engine.scheduling.request import Sequence as Running


class Terms(msgspec.Struct, frozen=True):
    """For how many steps places are kept."""

    stay: int = 128  # where a party has others: some eight times what it costs to compute a page's tokens again
    last_stay: int = 512  # where it has no other

    @property
    def margin(self) -> int:
        """What a place gives of service in `stay` steps."""
        return COMPLETION_WEIGHT * self.stay


Served = Callable[[str], int]  # an adapter's service


def room_for_training(tenants: int) -> int:
    """How many places training may have beside so many of tenants that others of them wait for."""
    return max(1, int(SHARE * tenants))


def who_give_way(
    asking: Party, waited: int | None, running: Sequence[Running], served: Served, now: int, terms: Terms
) -> Iterator[Running]:
    """Those that may give way to a party's next request, one after another: take as few as make room for it.

    `waited` is for how many steps the party has been without a place; None where it has one, or has just lost it.
    """
    claim = _Claim(asking, waited, Counter(each.request.party for each in running), served, now, terms)
    movable: dict[Party, list[Running]] = {}
    for each in running:
        if each.request.party != asking and _may_move(each, now, terms):
            movable.setdefault(each.request.party, []).append(each)
    for latest_last in movable.values():
        latest_last.sort(key=lambda each: each.arrival)
    while (victim := claim.next_of(movable)) is not None:
        yield victim


def _may_move(each: Running, now: int, terms: Terms) -> bool:
    """Whether it has had enough of its place, or nothing of it yet."""
    if each.computed == each.found:
        return True
    generated = len(each.tokens) - each.placed_with
    return now - each.placed_at >= terms.stay and generated >= max(1, each.reached - each.found)


@dataclass(slots=True)
class _Claim:
    """What one party may ask of the others, by the places that they have."""

    asking: Party
    waited: int | None
    places: Counter[Party]
    served: Served
    now: int
    terms: Terms

    def next_of(self, movable: Mapping[Party, list[Running]]) -> Running | None:
        """Take out whoever gives way next, of requests by party, the latest last; None: nobody has to."""
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
        party = max(owing, key=lambda each: (each.background and over, self.places[each], self.served(each.adapter)))
        self.places[party] -= 1
        return movable[party].pop()

    def _is_owed(self, party: Party, movable: Sequence[Running]) -> bool:
        """Whether a party should give a place, by how many both have, and what they were served."""
        terms = self.terms
        own, its, last = self.places[self.asking], self.places[party], movable[-1]
        if self.waited is None:
            return its - own > 1 and self.served(party.adapter) - self.served(self.asking.adapter) > terms.margin
        if its > 1:
            return True
        return (
            self.waited >= terms.stay and self.now - last.placed_at >= terms.last_stay and last.computed > last.found
        )
