"""Decides who owns a name that waves use for different things: no wave takes another namespace's or a policy's. Pure.

Otherwise, among the waves of one namespace, the turn decides (`sharing`).
"""

from collections.abc import Iterable, Mapping

import msgspec

from mint_contracts.records import Mentions, Placement
from mint_contracts.source import Source, parent
from mint_operator.planning import conditions
from mint_operator.planning.adapters import Want, of_one_namespace, shown_name, shown_waves
from mint_operator.planning.asking import Asks
from mint_operator.planning.refusal import Refusal
from mint_operator.planning.sharing import shown


class Claim(msgspec.Struct, frozen=True):
    """The claim of a training wave on a policy's name; with `all`, no other wave may use the name.

    Else, others may ask for what the policy has published or, before that, what an earlier policy of the name has
    published in `folder`. Waves of its own namespace may ask for anything there and, once it has `ended`, elsewhere.
    """

    wave: str
    all: bool = False
    ended: bool = False
    published: Source | None = None
    folder: str = ""

    def bars(self, wave: str, want: Want) -> bool:
        """Whether `wave` may not want this because of the claim."""
        if self.all or wave == self.wave:
            return wave != self.wave
        if of_one_namespace(wave, self.wave):
            return not self.ended and want.source != self.published and parent(want.source) != self.folder
        return want.source != self.published if self.published else parent(want.source) != self.folder


def barred(asks: Asks, claims: Mapping[str, Claim], there: Mapping[str, Placement]) -> dict[str, Refusal]:
    """Return the waves that ask for others' names. A name in the map (`there`) is its waves' while they ask so."""
    found: dict[str, Refusal] = {}
    for name, claim in claims.items():
        for wave in _asking(asks, name):
            if wave not in found and claim.bars(wave, asks.of(wave, name)):
                problem = f"adapter {name} is being trained by {shown_name(wave, claim.wave)}"
                found[wave] = Refusal(
                    conditions.POLICY_CONFLICT,
                    f"{problem}; serve it after that wave has published it, or choose another name",
                    terminal=False,
                    mentions=Mentions((name,), shown_waves(wave, claim.wave)),
                )
    for name, waves in asks.shared.items():
        placement = there.get(name)
        source = asks.of(waves[0], name).source
        if placement is None or name in claims or all(asks.of(wave, name).source == source for wave in waves[1:]):
            continue
        for wave in waves:
            if wave not in found and _another_has(asks, placement, wave):
                found[wave] = Refusal(
                    conditions.SOURCE_CONFLICT,
                    f"adapter {name} is {shown(asks.of(wave, name))} here, but a wave of another namespace "
                    "already uses this name for a different source; choose another name",
                    mentions=Mentions((name,), others=True),
                )
    return found


def _asking(asks: Asks, name: str) -> Iterable[str]:
    owner = asks.owners.get(name)
    return asks.shared.get(name, () if owner is None else (owner,))


def _another_has(asks: Asks, placement: Placement, wave: str) -> bool:
    """Whether a wave of another namespace has the name in the map, for a different source.

    If `wave` has it there as well, only a wave whose source is the placed one takes it away.
    """
    name, has_it = placement.adapter, wave in placement.waves
    source = asks.of(wave, name).source
    theirs = (want for other in placement.waves if (want := _foreign(asks, other, wave, name)) is not None)
    return any(want.source != source and (not has_it or want.source == placement.source) for want in theirs)


def _foreign(asks: Asks, other: str, wave: str, name: str) -> Want | None:
    """Return what `other`, of another namespace than `wave`, asks of the name; None if it does not or yields."""
    want = asks.by_wave[other].by_name.get(name) if other in asks.by_wave else None
    if want is None or of_one_namespace(wave, other) or wave in want.source_from:
        return None
    return want
