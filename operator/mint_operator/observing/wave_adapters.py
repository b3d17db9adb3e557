"""Attaches to waves what was looked up about their adapters; an unchanged wave stays the same object."""

from collections.abc import Mapping, Sequence

import msgspec

from mint_contracts.resources import AdapterWaveSpec, BaseModelSpec
from mint_operator.observing.wave_lists import Found, Lists
from mint_operator.planning.lookup import Lookup, lookup
from mint_operator.planning.snapshot import BaseMap, Listed, ObservedBase, ObservedWave

NOTHING = Found()


class _Made(msgspec.Struct, frozen=True):
    """A wave as returned last (`made`), and what it was made from."""

    wave: ObservedWave
    found: Found
    made: ObservedWave


class _Asked(msgspec.Struct, frozen=True):
    """A wave's lookup (None: it needs none), and the specs that this follows from."""

    wave: AdapterWaveSpec
    base: BaseModelSpec
    lookup: Lookup | None


class WaveAdapters:
    """Attaches looked-up adapters to waves; `changed` says whether the last `attach` returned anything new."""

    def __init__(self, lists: Lists) -> None:
        self._lists = lists
        self._known: dict[str, _Asked] = {}
        self._made: dict[str, _Made] = {}
        self._placed: dict[str, tuple[Listed, ...]] = {}  # by wave that was never read: its adapters in the map
        self.changed = False

    async def attach(
        self,
        waves: Sequence[ObservedWave],
        bases: Mapping[str, ObservedBase],
        maps: Mapping[str, BaseMap],
        now: float,
    ) -> tuple[ObservedWave, ...]:
        """Return the waves with what is known by now about the adapters that they name, select or list in a manifest.

        If a lookup has not succeeded since this operator started, the placement map's entries stand in for it, so
        that a served wave stays served while its catalog or manifest is away. Expired waves are not looked up.
        """
        asked = self._asked([wave for wave in waves if not wave.expired(now)], bases)
        await self._lists.refresh(set(asked.values()))
        found = {key: self._lists.found.get(each, NOTHING) for key, each in asked.items()}
        self._stand_in({key for key, each in found.items() if each.listed is None}, waves, maps)
        before, self._made = self._made, {}
        given = []
        for wave in waves:
            key = wave.meta.key
            if key not in asked:
                given.append(wave)
                continue
            each = found[key]
            if each.listed is None and (placed := self._placed.get(key)):
                left = tuple(listed for listed in placed if listed.name not in each.gone)
                each = Found(left, each.failure, from_map=_may_ask_more(asked[key], left, each.gone))
            self._made[key] = made = _made(wave, each, before.get(key))
            given.append(made.made)
        same = before.keys() == self._made.keys() and all(before[key] is each for key, each in self._made.items())
        self.changed = not same
        return tuple(given)

    def _stand_in(self, unread: set[str], waves: Sequence[ObservedWave], maps: Mapping[str, BaseMap]) -> None:
        """Remember what the map has for waves that were never read: once per wave, when there is a map."""
        self._placed = {key: listed for key, listed in self._placed.items() if key in unread}
        new = {wave.meta.key for wave in waves if wave.meta.key in unread and wave.base in maps} - self._placed.keys()
        if new:
            self._placed |= dict.fromkeys(new, ()) | _as_placed(new, maps)

    def _asked(self, waves: Sequence[ObservedWave], bases: Mapping[str, ObservedBase]) -> dict[str, Lookup]:
        """Return the lookups of the waves that need one; recomputed if the wave's or the base's spec has changed."""
        before, self._known = self._known, {}
        for wave in waves:
            base, last = bases.get(wave.base), before.get(wave.meta.key)
            if base is None:
                continue
            same = last is not None and last.wave is wave.spec and last.base is base.spec
            known = last if last is not None and same else _Asked(wave.spec, base.spec, lookup(wave, base))
            self._known[wave.meta.key] = known
        return {key: each.lookup for key, each in self._known.items() if each.lookup is not None}


def _made(wave: ObservedWave, found: Found, before: _Made | None) -> _Made:
    if before is not None and before.wave is wave and (before.found is found or before.found == found):
        return before
    listed = found.listed
    if before is not None and before.made.listed == listed:
        listed = before.made.listed
    made = msgspec.structs.replace(wave, listed=listed, unread=found.failure, from_map=found.from_map)
    return _Made(wave, found, made)


def _may_ask_more(of: Lookup, listed: Sequence[Listed], gone: frozenset[str]) -> bool:
    """Whether the lookup may mean more adapters than those listed and gone."""
    return not of.names or not gone.union(each.name for each in listed).issuperset(of.names)


def _as_placed(waves: set[str], maps: Mapping[str, BaseMap]) -> dict[str, tuple[Listed, ...]]:
    """Return the adapters that the placement map has for these waves, by wave."""
    found: dict[str, list[Listed]] = {}
    for known in maps.values():
        for each in (known.state.placements or known.remembered).values():
            for wave in waves.intersection(each.waves):
                found.setdefault(wave, []).append(Listed(each.adapter, each.source))
    return {wave: tuple(sorted(listed, key=lambda each: each.name)) for wave, listed in found.items()}
