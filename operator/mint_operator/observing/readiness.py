"""Since when engines of a base have been unready while another is ready, as far as this operator has watched. Pure.

If no engine was ready, as when all start at once, the first to become ready gives the slower ones as long again as it
took before their time counts: otherwise everything they hold would move to it and stay there. An engine that has
become ready since gets no such allowance: if it fails later, that counts at once.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from mint_contracts.records import EngineView


class Readiness(msgspec.Struct, frozen=True):
    """The engines' state at one look. All times are in seconds by the operator's clock.

    `since`: for each engine that is not ready, from when that counts, which may be in the future. `started`: each
    living engine's incarnation and when it was first seen. `none_since`: since when none is ready; None if one is.
    """

    since: Mapping[str, float] = {}
    started: Mapping[str, tuple[int, float]] = {}
    none_since: float | None = None

    def unready_s(self, now: float) -> dict[str, float]:
        """Return how long engines have not been ready, without those for which that does not count yet."""
        return {name: now - at for name, at in self.since.items() if at <= now}


def watched(
    before: Readiness, views: Sequence[EngineView], engines: Sequence[str], telling: Collection[str], now: float
) -> Readiness:
    """Return the state of `engines` now. Those still `telling` a lost map what they hold do not count as unready."""
    records = [view.record for view in views if view.record is not None]
    started = {}
    for record in records:
        last = before.started.get(record.engine)
        same = last is not None and last[0] == record.incarnation
        started[record.engine] = last if last is not None and same else (record.incarnation, now)
    ready = {record.engine for record in records if record.ready}
    if not ready:
        return Readiness(started=started, none_since=now if before.none_since is None else before.none_since)
    begins = now
    if before.none_since is not None:
        took_s = now - min(started[name][1] for name in ready)
        begins += min(took_s, now - before.none_since)
    fine = {*ready, *telling}
    since = {name: before.since.get(name, begins) for name in engines if name not in fine}
    return Readiness(since, started)
