"""Since when engines of a base are not ready while another one is, as far as this operator has watched. Pure.

Where none was ready, as when all of them start at once, those that are slower than the first are given as long again
as that one took, before any time counts: what they hold would all go to the first, and stay there. One that has since
become ready has had its time: should it fail later, that counts at once.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from mint_contracts.records import EngineView


class Readiness(msgspec.Struct, frozen=True):
    """How engines stood at a look. All times are of the operator's clock, in seconds.

    `since`: of engines that are not ready, from when that counts, which may be later. `started`: the incarnation of
    each that lives, and when it was first seen. `none_since`: since when none is ready; None: one is.
    """

    since: Mapping[str, float] = {}
    started: Mapping[str, tuple[int, float]] = {}
    none_since: float | None = None

    def unready_s(self, now: float) -> dict[str, float]:
        """Of engines that are not ready, for how long; without those of which it does not count yet."""
        return {name: now - at for name, at in self.since.items() if at <= now}


def watched(
    before: Readiness, views: Sequence[EngineView], engines: Sequence[str], telling: Collection[str], now: float
) -> Readiness:
    """How `engines` stand now; of those that are `telling` a map that was lost what they hold it is not known yet."""
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
