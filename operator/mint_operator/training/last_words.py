"""What a wave's record keeps of policies at rest: their engines know of them only until they start anew."""

from collections.abc import Iterable

import msgspec

from mint_contracts.training_records import Progress, Stage
from mint_contracts.training_words import AT_REST, last_word
from mint_operator.training.stand import WaveStand


def last_words(stand: WaveStand, before: Iterable[Progress], *, trains: bool = True) -> tuple[Progress, ...]:
    """The word on each policy that has ended or is paused; `before` is what the record says now.

    One that goes on is forgotten once it is loaded, but where it has published, not before it has published anew:
    who begins at its start again knows nothing of that. While nobody can say which policies the wave has, none is
    forgotten. Where the base `trains` no more, what was saved may not be where it trains next, and what has been
    published is still held.
    """
    if not stand.policies:
        return tuple(before)
    on_record = {each.policy: each for each in before}
    found = []
    for policy in stand.policies:
        progress, kept = policy.progress, on_record.get(policy.name)
        if progress is not None and not trains:
            progress = _left(progress)
        if progress is not None and progress.stage in AT_REST:
            found.append(last_word(progress))
        elif kept is not None and (policy.stage is Stage.LOADING or _stands(kept, progress)):
            found.append(kept)
    return tuple(found)


def _left(progress: Progress) -> Progress:
    """Of a policy that its base has let go of: one that has published rests; what was saved is not asked for."""
    rests = progress.stage in AT_REST or progress.published is None
    return msgspec.structs.replace(progress, stage=progress.stage if rests else Stage.PAUSED, saved=0)


def _stands(kept: Progress, progress: Progress | None) -> bool:
    """Whether what the record says was published is the newest that was, though it may be the record's word alone."""
    return progress is not None and progress.published is not None and progress.published == kept.published
