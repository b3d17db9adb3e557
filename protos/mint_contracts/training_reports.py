"""The newest report on each policy of a training wave, from engines or from the wave's own record. Pure.

An engine reports on a policy as long as it runs and has the lease. After a restart it knows nothing of policies at
rest, and nothing of one that it resumes until that is loaded. So the operator keeps the last report ("last word") on
policies at rest in the wave's record, and fields of an older report hold until a newer one fills them.
"""

from collections.abc import Iterable, Mapping
from statistics import fmean

import msgspec

from mint_contracts.training import Train
from mint_contracts.training_records import Progress, Stage, WaveTraining

_HERE = frozenset({Stage.LOADING, Stage.RUNNING})  # an engine has it in a slot
AT_REST = frozenset({Stage.PAUSED, Stage.COMPLETE, Stage.FAILED, Stage.CANCELLED})  # saved, and no engine works on it
MESSAGE_LENGTH = 512  # characters of a failure in a last word: a wave may have a thousand of them

LatestReports = Mapping[str, tuple[str, Progress]]  # policy -> the reporting engine, and its report
Progresses = Mapping[str, Mapping[str, Progress]]  # engine -> policy -> the engine's report on the policy
_Aged = tuple[tuple[int, bool, int, str], Progress]


def latest_reports(
    wave: str, run: str, reports: Progresses, on_record: Iterable[Progress]
) -> dict[str, tuple[str, Progress]]:
    """Return the newest report on each policy of one run of a wave: by lease; at equal lease an engine's comes first.

    `reports` are those of engines, `on_record` the record's last words; a policy only on record has no engine.
    """
    found: dict[str, list[_Aged]] = {}
    for each in on_record:
        progress = msgspec.structs.replace(each, wave=wave, run=run)
        found.setdefault(progress.policy, []).append(((progress.lease, False, progress.step, ""), progress))
    for engine, of in reports.items():
        for name, progress in of.items():
            if progress.wave == wave and progress.run == run:
                found.setdefault(name, []).append(((progress.lease, True, progress.step, engine), progress))
    return {name: _newest(each) for name, each in found.items()}


def no_longer_reported(
    before: Progresses, now: Progresses, training: Mapping[str, WaveTraining]
) -> dict[str, dict[str, Progress]]:
    """Return the reports from `before` on policies of these waves that no engine reports `now`.

    After a restart, an engine does not report them until it has loaded its base.
    """
    runs = {(wave, each.run) for wave, each in training.items()}
    known = {name for of in now.values() for name in of}
    found: dict[str, dict[str, Progress]] = {}
    for engine, of in before.items():
        for name, each in of.items():
            if name not in known and (each.wave, each.run) in runs:
                found.setdefault(engine, {})[name] = each
    return found


def as_recorded(progress: Progress) -> Progress:
    """Return a report on a policy at rest as a wave's record keeps it: without fields that the record has itself."""
    failure = progress.failure
    if failure is not None:
        failure = msgspec.structs.replace(failure, message=failure.message[:MESSAGE_LENGTH])
    return msgspec.structs.replace(progress, wave="", run="", steps=0, step_s=0.0, failure=failure, incarnation=0)


def eta_s(train: Train, latest: Iterable[Progress | None]) -> int | None:
    """Return the seconds until the last of a wave's policies ends. `latest` has the report on each, None if none yet.

    Policies with a slot run side by side, each at its own pace; the others follow in rounds of as many. Returns None
    if no policy runs, or if the pace of a running one is not known yet.
    """
    going = [each for each in latest if each is None or not _over(each, train.steps)]
    here = [each for each in going if each is not None and each.stage in _HERE]
    paces = [each.step_s for each in here if each.stage is Stage.RUNNING]
    if not paces or min(paces) <= 0:
        return None
    pace = fmean(paces)
    left = max(_left(each, train) * (each.step_s if each.stage is Stage.RUNNING else pace) for each in here)
    later = [_left(each, train) for each in going if each is None or each.stage not in _HERE]
    if train.paused or train.cancelled:
        later = []
    return round(left + pace * sum(sorted(later, reverse=True)[:: len(here)]))


def policy_eta_s(train: Train, progress: Progress) -> int | None:
    """Return the seconds until a policy ends at its own pace; None if it does not run or its pace is unknown."""
    runs = progress.stage is Stage.RUNNING and progress.step_s > 0
    return round(_left(progress, train) * progress.step_s) if runs else None


def _left(progress: Progress | None, train: Train) -> int:
    """Return the number of steps that are left."""
    return max(0, train.steps - (progress.step if progress else 0))


def _over(progress: Progress, steps: int) -> bool:
    complete = progress.stage is Stage.COMPLETE and progress.step >= steps
    return complete or progress.stage in {Stage.FAILED, Stage.CANCELLED}


def _newest(aged: list[_Aged]) -> tuple[str, Progress]:
    """Return the newest report, its missing fields (step, published, saved) filled in from older ones."""
    if len(aged) > 1:
        aged.sort(key=lambda each: each[0], reverse=True)
    (*_, engine), newest = aged[0]
    older = [progress for _, progress in aged[1:]]
    if older and newest.stage is Stage.LOADING:
        newest = msgspec.structs.replace(newest, step=newest.step or older[0].step)
    if older and newest.published is None:
        published = next((progress.published for progress in older if progress.published is not None), None)
        newest = msgspec.structs.replace(newest, published=published)
    if older and newest.saved == 0:
        newest = msgspec.structs.replace(newest, saved=max(progress.saved for progress in older))
    return engine, newest
