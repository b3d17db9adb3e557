"""Assembling a training wave's progress for its watchers from the map's records. Pure."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from mint_contracts.rewards import Rewards
from mint_contracts.step_figures import Curve, StepFigures
from mint_contracts.training_pb2 import PolicyProgress, WaveProgress
from mint_contracts.training_pb2 import StepFigures as FiguresMessage
from mint_contracts.training_records import Progress, Stage, WaveTraining
from mint_contracts.training_reports import (
    AT_REST,
    LatestReports,
    Progresses,
    eta_s,
    latest_reports,
    no_longer_reported,
    policy_eta_s,
)

WAITING = "Waiting"  # the stage of a policy that nobody has reported on yet
OVER = frozenset({"Complete", "Failed", "Cancelled"})  # a wave's final phases
_STOPPED = frozenset({Stage.FAILED, Stage.CANCELLED})


def newest_reports(training: WaveTraining, progresses: Progresses) -> LatestReports:
    """Return the newest report on each of a wave's policies, from engines or from its record."""
    return latest_reports(training.wave, training.run, progresses, training.last_words)


def with_last_reports(before: Progresses, progresses: Progresses, training: Mapping[str, WaveTraining]) -> Progresses:
    """Return the engines' current reports, plus the last report on each policy that none reports (nobody trains it).

    A last report is left out if the wave's record is at least as new.
    """
    on_record = {
        (wave, each.policy): (each.lease, each.step) for wave, of in training.items() for each in of.last_words
    }
    found = dict(progresses)
    for engine, of in no_longer_reported(before, progresses, training).items():
        kept = {
            name: progress
            for name, progress in untrained(of).items()
            if on_record.get((progress.wave, name), (-1, 0)) < (progress.lease, progress.step)
        }
        found[engine] = {**found.get(engine, {}), **kept}
    return found


def untrained(reports: Mapping[str, Progress]) -> dict[str, Progress]:
    """Return the last reports of an engine that trains nothing now: policies that do not rest are to be loaded."""
    return {
        name: progress if progress.stage in AT_REST else msgspec.structs.replace(progress, stage=Stage.LOADING)
        for name, progress in reports.items()
    }


def wave_progress(
    base: str,
    training: WaveTraining,
    newest: LatestReports,
    names: Sequence[str] | None = None,
) -> WaveProgress:
    """Return the progress of the wave and of each of its policies, or only of those in `names`."""
    progress, given_up = aggregate(base, training, newest), _gives_up(training, newest)
    for name in training.policies if names is None else names:
        progress.policies.append(_policy(name, training, newest.get(name), given_up=given_up))
    return progress


def with_history(
    progress: WaveProgress, rewards: Mapping[str, Rewards], curves: Mapping[str, Curve] = {}
) -> WaveProgress:
    """Return a copy of the progress with its policies' rewards and curves, as far as there are any."""
    completed = WaveProgress()
    completed.CopyFrom(progress)
    for policy in completed.policies:
        if part := rewards.get(policy.policy):
            policy.rewards_from = part.first
            policy.rewards.extend(part.values)
        policy.curve.extend(_figures(each) for each in curves.get(policy.policy, ()))
    return completed


def aggregate(base: str, training: WaveTraining, newest: LatestReports) -> WaveProgress:
    """Return the wave's progress without its policies."""
    progresses = [each for _, each in newest.values()]
    going = [name for name in training.policies if not _stopped(newest, name)]
    steps = [newest[name][1].step if name in newest else 0 for name in going or training.policies]
    return WaveProgress(
        wave=training.wave,
        base_model=base,
        phase=training.phase,
        message=training.message,
        policy_count=len(training.policies),
        step=min(steps, default=0),
        steps=training.train.steps,
        reward_mean=_mean(each.reward_mean for each in progresses),
        reward_recent=_mean(each.reward_recent for each in progresses),
        reward_best=_mean(each.reward_best for each in progresses),
        evaluation=_mean(each.evaluation for each in progresses),
        tokens=sum(each.tokens for each in progresses),
        eta_s=eta_s(training.train, [newest[name][1] if name in newest else None for name in training.policies]),
    )


def _stopped(newest: LatestReports, name: str) -> bool:
    return name in newest and newest[name][1].stage in _STOPPED


def _gives_up(training: WaveTraining, newest: LatestReports) -> bool:
    """Whether what is left of a wave is cancelled: it is itself, or more policies have failed than it allows."""
    most = training.train.failure_policy.max_failed
    if training.phase != "Failed" or most is None:  # None: all have failed, or it is refused as it is written
        return training.phase == "Cancelled"
    return sum(name in newest and newest[name][1].stage is Stage.FAILED for name in training.policies) > most


def _policy(
    name: str, training: WaveTraining, word: tuple[str, Progress] | None, *, given_up: bool
) -> PolicyProgress:
    steps = training.train.steps
    if word is None:
        return PolicyProgress(policy=name, stage=Stage.CANCELLED if given_up else WAITING, steps=steps)
    engine, progress = word
    over = progress.stage is Stage.FAILED or (progress.stage is Stage.COMPLETE and progress.step >= steps)
    return PolicyProgress(
        policy=name,
        stage=Stage.CANCELLED if given_up and not over else progress.stage,
        step=progress.step,
        steps=steps,
        reward_mean=progress.reward_mean,
        reward_best=progress.reward_best,
        reward_recent=progress.reward_recent,
        evaluation=progress.evaluation,
        tokens=progress.tokens,
        step_s=progress.step_s,
        engine=engine,
        revision=progress.published.revision if progress.published else "",
        failure_reason=progress.failure.reason if progress.failure else "",
        failure_message=progress.failure.message if progress.failure else "",
        eta_s=policy_eta_s(training.train, progress),
        figures=_figures(progress.figures) if progress.figures else None,
    )


def _figures(of: StepFigures) -> FiguresMessage:
    return FiguresMessage(**msgspec.structs.asdict(of))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
