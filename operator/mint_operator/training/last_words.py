"""What a wave's record keeps of policies at rest: their engines know of them only until they start anew."""

from collections.abc import Iterable

from mint_contracts.training_records import Progress, Stage
from mint_contracts.training_words import AT_REST, last_word
from mint_operator.training.stand import WaveStand


def last_words(stand: WaveStand, before: Iterable[Progress]) -> tuple[Progress, ...]:
    """The word on each policy that has ended or is paused; `before` is what the record says now.

    One that goes on is forgotten once it is loaded, so that meanwhile it is known what it has published. While nobody
    can say which policies the wave has, none is forgotten.
    """
    if not stand.policies:
        return tuple(before)
    on_record = {each.policy: each for each in before}
    found = []
    for policy in stand.policies:
        if policy.progress is not None and policy.stage in AT_REST:
            found.append(last_word(policy.progress))
        elif policy.stage is Stage.LOADING and policy.name in on_record:
            found.append(on_record[policy.name])
    return tuple(found)
