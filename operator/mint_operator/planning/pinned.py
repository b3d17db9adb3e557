"""Slots of the engines that waves name: of waves that name the same ones, as many are admitted as fit there. Pure.

Without this a wave would be admitted that can never be placed, and keep what it takes of the base from others.
"""

from collections.abc import Mapping

from mint_contracts.records import Tier
from mint_operator.planning import conditions
from mint_operator.planning.asking import Ask
from mint_operator.planning.refusal import NO_NAMES, Refusal

Engines = frozenset[str]


class Pinned:
    """What the waves admitted so far want in slots of engines that they name. Mutable, and local to one admission.

    `_inside` has, for each set of engines that a wave names, the copies of adapters that may only be on these.
    """

    def __init__(self, slots: int) -> None:
        """Each engine has `slots`."""
        self._slots = slots
        self._inside: dict[Engines, dict[str, int]] = {}

    def refusal(self, ask: Ask) -> Refusal | None:
        """Return why a wave must wait for others that name its engines; None if it need not."""
        engines, copies = _wanted(ask)
        for around, taken in self._around(engines).items() if copies else ():
            room, held = len(around) * self._slots, sum(taken.values())
            more = sum(max(0, count - taken.get(name, 0)) for name, count in copies.items())
            if more and held + more > room:
                names = ", ".join(sorted(around))
                message = f"needs {more} more device slots of {names}; waves ahead of it hold {held} of {room} there"
                return Refusal(conditions.WAITING_FOR_ENGINES, message, terminal=False, mentions=NO_NAMES)
        return None

    def add(self, ask: Ask) -> None:
        """Count a wave in."""
        engines, copies = _wanted(ask)
        for around, taken in self._around(engines).items() if copies else ():
            more = {name: max(count, taken.get(name, 0)) for name, count in copies.items()}
            self._inside[around] = {**taken, **more}

    def _around(self, engines: Engines) -> dict[Engines, Mapping[str, int]]:
        """Return the known sets that include these engines, themselves among them, each with what is inside."""
        found: dict[Engines, Mapping[str, int]] = {each: of for each, of in self._inside.items() if engines <= each}
        if engines not in found:
            own: dict[str, int] = {}
            for each, of in self._inside.items():
                if each < engines:
                    own |= {name: max(count, own.get(name, 0)) for name, count in of.items()}
            found[engines] = own
        return found


def _wanted(ask: Ask) -> tuple[Engines, dict[str, int]]:
    """Return the engines that a wave names, and its copies that must be in slots there."""
    if not ask.spec.serve.engines:
        return frozenset(), {}
    wants = [want for want in ask.wants if want.residency is Tier.DEVICE and want.pins and not want.at_home]
    return frozenset(wants[0].pins if wants else ()), {want.adapter: want.replicas for want in wants}
