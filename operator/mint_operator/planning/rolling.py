"""A roll of a base: its engines restart one after another with the latest spec. How far it is, and what is off. Pure.

Pods show when a roll begins, but not whether it is over: an engine that is not ready yet may have restarted for it or
not. So the base's last status tells whether a roll was under way.
"""

from collections.abc import Sequence

import msgspec

from mint_operator.planning.conditions import RECONCILING, ROLLING_UPDATE
from mint_operator.planning.elastic import Settled, is_outdated
from mint_operator.planning.engines import Engine
from mint_operator.planning.snapshot import ObservedBase


class Roll(msgspec.Struct, frozen=True):
    """`updated` engines have the latest spec; `away` (names) are not ready. `follows` says what happens next.

    `planned`: nothing but the roll keeps these from being ready, and they are no more than it may restart at once.
    """

    updated: int
    away: tuple[str, ...]
    follows: str
    planned: bool


def roll(base: ObservedBase, engines: Sequence[Engine], settings: str, sized: Settled) -> Roll | None:
    """Return the roll that is under way; None if there is none.

    It lasts until all engines are ready with the digest `settings`, which is empty if the spec is refused.
    """
    began = any(each.type == RECONCILING and each.reason == ROLLING_UPDATE for each in base.status.conditions)
    updated = sum(each.pod.settings == settings for each in engines)
    away = [engine for engine in engines if not engine.ready]
    over = not away and updated == len(engines)
    if not settings or not (sized.rolling or (began and not over)):
        return None
    fewest = 0 if len(engines) == 1 else max(1, base.spec.engine.replicas.min - 1)
    planned = len(engines) - len(away) >= fewest and all(_expected(each, settings, sized.partition) for each in away)
    return Roll(updated, tuple(each.name for each in away), sized.rolling, planned)


def _expected(away: Engine, settings: str, partition: int) -> bool:
    """Whether the roll explains why an engine is not ready: it restarts now, and there is no trouble with it."""
    troubled = away.failure is not None or away.unheard
    return not troubled and (away.ordinal >= partition or not is_outdated(away, settings))
