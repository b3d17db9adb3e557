"""What a wave's record keeps of policies at rest: their engines know of them only until they start anew."""

from collections.abc import Iterable

import msgspec

from mint_contracts.training_records import Progress, Stage
from mint_contracts.training_words import AT_REST, last_word
from mint_operator.training.stand import WaveStand


def last_words(stand: WaveStand, before: Iterable[Progress], *, trains: bool = True) -> tuple[Progress, ...]:
    """The word on each policy that has ended or is paused; `before` is what the record says now.

    One that goes on is forgotten once it is loaded, so that meanwhile it is known what it has published. While nobody
    can say which policies the wave has, none is forgotten. Where the base `trains` no more, what was saved may not be
    where it trains next, and what has been published is still held.
    """
    if not stand.policies:
        return tuple(before)
    on_record = {each.policy: each for each in before}
    found = []
    for policy in stand.policies:
        said = policy.progress if trains or policy.progress is None else _left(policy.progress)
        if said is not None and said.stage in AT_REST:
            found.append(last_word(said))
        elif policy.stage is Stage.LOADING and policy.name in on_record:
            found.append(on_record[policy.name])
    return tuple(found)


def _left(said: Progress) -> Progress:
    """Of a policy that its base has let go of: one that has published rests; what was saved is not asked for."""
    rests = said.stage in AT_REST or said.published is None
    return msgspec.structs.replace(said, stage=said.stage if rests else Stage.PAUSED, saved=0)
