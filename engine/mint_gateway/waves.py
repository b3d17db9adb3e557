"""What a training wave's progress looks like to those who watch it, put together from the map's records. Pure."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from mint_contracts.rewards import Rewards
from mint_contracts.training_pb2 import PolicyProgress, WaveProgress
from mint_contracts.training_records import Progress, Stage, WaveTraining
from mint_contracts.training_words import AT_REST, Progresses, Words, eta_s, policy_eta_s, untold, words

WAITING = "Waiting"  # of a policy that nobody has told of yet
OVER = frozenset({"Complete", "Failed", "Cancelled"})  # phases of a wave after which nothing more comes
_STOPPED = frozenset({Stage.FAILED, Stage.CANCELLED})


def heard(training: WaveTraining, told: Progresses) -> Words:
    """The newest word on each of a wave's policies, of engines or of its record."""
    return words(training.wave, training.run, told, training.last_words)


def carried(before: Progresses, told: Progresses, training: Mapping[str, WaveTraining]) -> Progresses:
    """What engines tell now, with the last word heard on policies of which none tells: nobody trains these now.

    What a wave's record says of one counts, where it says more.
    """
    on_record = {
        (wave, each.policy): (each.lease, each.step) for wave, of in training.items() for each in of.last_words
    }
    found = dict(told)
    for engine, of in untold(before, told, training).items():
        kept = {
            name: said if said.stage in AT_REST else msgspec.structs.replace(said, stage=Stage.LOADING)
            for name, said in of.items()
            if on_record.get((said.wave, name), (-1, 0)) < (said.lease, said.step)
        }
        found[engine] = {**found.get(engine, {}), **kept}
    return found


def wave_progress(
    base: str,
    training: WaveTraining,
    told: Words,
    names: Sequence[str] | None = None,
) -> WaveProgress:
    """The wave and each of its policies, or those of these `names`."""
    progress = aggregate(base, training, told)
    for name in training.policies if names is None else names:
        progress.policies.append(_policy(name, training, told.get(name)))
    return progress


def with_rewards(progress: WaveProgress, rewards: Mapping[str, Rewards]) -> WaveProgress:
    """The same with what is told of its policies' histories."""
    told = WaveProgress()
    told.CopyFrom(progress)
    for policy in told.policies:
        part = rewards[policy.policy]
        policy.rewards_from = part.first
        policy.rewards.extend(part.values)
    return told


def aggregate(base: str, training: WaveTraining, told: Words) -> WaveProgress:
    """The wave without its policies."""
    said = [each for _, each in told.values()]
    going = [name for name in training.policies if not _stopped(told, name)]
    steps = [told[name][1].step if name in told else 0 for name in going or training.policies]
    return WaveProgress(
        wave=training.wave,
        base_model=base,
        phase=training.phase,
        message=training.message,
        policy_count=len(training.policies),
        step=min(steps, default=0),
        steps=training.train.steps,
        reward_mean=_mean(each.reward_mean for each in said),
        reward_recent=_mean(each.reward_recent for each in said),
        reward_best=_mean(each.reward_best for each in said),
        evaluation=_mean(each.evaluation for each in said),
        tokens=sum(each.tokens for each in said),
        eta_s=eta_s(training.train, [told[name][1] if name in told else None for name in training.policies]),
    )


def _stopped(told: Words, name: str) -> bool:
    return name in told and told[name][1].stage in _STOPPED


def _policy(name: str, training: WaveTraining, word: tuple[str, Progress] | None) -> PolicyProgress:
    if word is None:
        return PolicyProgress(policy=name, stage=WAITING, steps=training.train.steps)
    engine, said = word
    return PolicyProgress(
        policy=name,
        stage=said.stage.value,
        step=said.step,
        steps=training.train.steps,
        reward_mean=said.reward_mean,
        reward_best=said.reward_best,
        reward_recent=said.reward_recent,
        evaluation=said.evaluation,
        tokens=said.tokens,
        step_s=said.step_s,
        engine=engine,
        revision=said.published.revision if said.published else "",
        failure_reason=said.failure.reason if said.failure else "",
        failure_message=said.failure.message if said.failure else "",
        eta_s=policy_eta_s(training.train, said),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
