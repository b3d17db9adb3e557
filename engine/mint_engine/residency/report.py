"""What an engine reports about an adapter to the placement map: what new requests get, and why not what is wanted."""

from collections.abc import Mapping
from dataclasses import dataclass

from mint_contracts import records
from mint_contracts.records import Assignment, Tier
from mint_contracts.source import Source, parent
from mint_engine.residency.copies import Copy
from mint_engine.residency.decide import CopyView, Wants, stale


@dataclass(frozen=True)
class AdapterView:
    """What the books know about one adapter. `own`: this engine itself published the revision that is wanted."""

    adapter: str
    copies: Mapping[Copy, CopyView]
    current: Copy | None
    want: Assignment | None
    announced: Source | None
    own: bool
    store: Source | None

    @property
    def wants(self) -> Wants:
        """This adapter's want, in the form that the functions of `decide` take."""
        return {} if self.want is None else {self.adapter: self.want}

    def tier(self, copy: Copy) -> Tier:
        """Return the tier of one of the copies."""
        return self.copies[copy].tier


def report(view: AdapterView) -> records.Held | None:
    """Return one adapter's record for the placement map, or None if there is nothing to report.

    If a wave's source failed to load while an older revision goes on serving, the record has the wave's source and
    the failure, with the tier and revision that do serve: the wave is not Ready, but requests still find it here.
    Failures of adapters that no wave wants are left out, since anybody can ask for a name that does not exist.
    What Trainer calls have published is reported in every tier, since only engines report it.
    """
    want, announced = view.want, view.announced if view.want is None else None
    held = None if announced is None else records.Held(view.adapter, announced, Tier.REMOTE, published=True)
    for copy in view.copies:
        if announced not in {None, copy.formerly or copy.source}:
            continue  # may be the catalog's adapter of that name; requests that name its source find it
        if view.tier(copy) is not Tier.REMOTE and not stale(view.copies[copy], view.wants, view.store):
            held = _held(view, copy, copy.source, None)
    if want is not None:
        target = next((copy for copy in view.copies if copy.source == want.source), None)
        serving = view.current
        shown = serving if serving is not None and view.tier(serving) is not Tier.REMOTE else target
        failure = target.failure if target is not None else None
        if shown is not None and (view.tier(shown) is not Tier.REMOTE or failure is not None or view.own):
            held = _held(view, shown, want.source if failure else shown.source, failure)
    return held


def _held(view: AdapterView, copy: Copy, source: Source, failure: records.Failure | None) -> records.Held:
    """Return the record of a copy. One of a source that has changed since is reported under that source's name."""
    known = copy.formerly if copy.formerly is not None and source == copy.source else source
    if view.want is None:
        published = known == view.announced
    else:
        published = view.own and parent(known) == parent(view.want.source)
    return records.Held(
        adapter=copy.adapter,
        source=known,
        tier=view.tier(copy),
        revision=copy.revision,
        rank=copy.rank,
        failure=failure,
        bytes=copy.bytes,
        published=published,
    )
