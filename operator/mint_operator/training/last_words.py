"""What a wave's record keeps about policies at rest: their engines remember them only until they restart."""

from collections.abc import Iterable

import msgspec

from mint_contracts.training_records import Progress, Stage
from mint_contracts.training_reports import AT_REST, as_recorded
from mint_operator.training.standing import WaveStanding


def last_words(standing: WaveStanding, before: Iterable[Progress], *, trains: bool = True) -> tuple[Progress, ...]:
    """Return the last word on each policy that has ended or is paused; `before` is what the record says now.

    A policy that continues is dropped from the record once it is loaded or, if it has published, once it has
    published again: an engine that starts over does not know of that revision. While the wave's policies are unknown,
    none is dropped. If the base no longer `trains`, checkpoints may be missing where it trains next, but published
    revisions are still held.
    """
    if not standing.policies:
        return tuple(before)
    on_record = {each.policy: each for each in before}
    found = []
    for policy in standing.policies:
        progress, kept = policy.progress, on_record.get(policy.name)
        if progress is not None and not trains:
            progress = _left(progress)
        if progress is not None and progress.stage in AT_REST:
            found.append(as_recorded(progress))
        elif kept is not None and (policy.stage is Stage.LOADING or _stands(kept, progress)):
            found.append(kept)
    return tuple(found)


def _left(progress: Progress) -> Progress:
    """Return the word on a policy whose base no longer trains: one that has published rests; `saved` is reset."""
    rests = progress.stage in AT_REST or progress.published is None
    return msgspec.structs.replace(progress, stage=progress.stage if rests else Stage.PAUSED, saved=0)


def _stands(kept: Progress, progress: Progress | None) -> bool:
    """Whether the revision on record is the newest published one, even if only the record says so."""
    return progress is not None and progress.published is not None and progress.published == kept.published
