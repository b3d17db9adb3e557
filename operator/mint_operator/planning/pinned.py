"""Slots of the engines that waves name: of waves that name the same ones, as many are admitted as fit there. Pure.

Without this a wave would be admitted that can never be placed, and keep what it takes of the base from others. Each
set of engines that a wave names is checked alone, and not the union of several, as of [0, 1] and [1, 2].
"""

from collections.abc import Mapping

from mint_contracts.records import Tier
from mint_operator.planning import conditions
from mint_operator.planning.adapters import Want
from mint_operator.planning.asking import Ask
from mint_operator.planning.refusal import NO_NAMES, Refusal

Engines = frozenset[str]
Copies = dict[str, int]


class Pinned:
    """What the waves admitted so far want in slots of engines that they name. Mutable, and local to one admission.

    `_counted` has the copies of adapters by the only engines that may hold them. `_inside` has, for each of these
    sets, the copies that have to be on its engines: all of an adapter that may be on no others, and of one that may,
    those for which the others, with one copy each, are too few.
    `merged` is what a wave and those before it want together of the adapters that they share: engines that one
    wave names are then the only ones for all.
    """

    def __init__(self, slots: int) -> None:
        """Each engine has `slots`."""
        self._slots = slots
        self._counted: dict[Engines, Copies] = {}
        self._inside: dict[Engines, Copies] = {}

    def refusal(self, ask: Ask, merged: Mapping[str, Want]) -> Refusal | None:
        """Return why a wave must wait for others that name its engines; None if it need not."""
        wanted = _wanted(ask, merged)
        for around, taken in self._around(wanted).items():
            room, held = len(around) * self._slots, sum(taken.values())
            more = sum(max(0, count - taken.get(name, 0)) for name, count in _within(around, wanted).items())
            if more and held + more > room:
                names = ", ".join(sorted(around, key=lambda name: (len(name), name)))  # smol-2 before smol-10
                message = (
                    f"needs {more} more device slot{'s' * (more > 1)} of {names}, which waves ahead of it name; "
                    f"they hold {held} of {room} there"
                )
                return Refusal(conditions.WAITING_FOR_ENGINES, message, terminal=False, mentions=NO_NAMES)
        return None

    def add(self, ask: Ask, merged: Mapping[str, Want]) -> None:
        """Count a wave in."""
        wanted = _wanted(ask, merged)
        for around, taken in self._around(wanted).items():
            _count(taken, _within(around, wanted))
            self._inside[around] = taken
        for engines, copies in wanted.items():
            _count(self._counted.setdefault(engines, {}), copies)

    def _around(self, wanted: Mapping[Engines, Copies]) -> dict[Engines, Copies]:
        """Return the sets wanted and the known ones on which any of these copies have to be, each with its own."""
        found: dict[Engines, Copies] = {}
        for engines, copies in wanted.items():
            most = max(copies.values())
            found |= {each: of for each, of in self._inside.items() if most > len(engines - each)}
        for engines in wanted.keys() - found.keys():
            found[engines] = _within(engines, self._counted)
        return found


def _wanted(ask: Ask, merged: Mapping[str, Want]) -> dict[Engines, Copies]:
    """Return the copies that must be in slots of the only engines that may hold them, by these."""
    wants = [merged.get(want.adapter, want) for want in ask.wants] if ask.spec.serve.engines else merged.values()
    found: dict[Engines, Copies] = {}
    for want in wants:
        if want.residency is Tier.DEVICE and want.pins and not want.at_home:
            found.setdefault(frozenset(want.pins), {})[want.adapter] = want.replicas
    return found


def _within(around: Engines, wanted: Mapping[Engines, Copies]) -> Copies:
    """Return the copies that have to be on engines of `around`."""
    found: Copies = {}
    for engines, copies in wanted.items():
        others = len(engines - around)
        _count(found, {name: count - others for name, count in copies.items() if count > others})
    return found


def _count(taken: Copies, more: Copies) -> None:
    taken.update({name: max(count, taken.get(name, 0)) for name, count in more.items()})
