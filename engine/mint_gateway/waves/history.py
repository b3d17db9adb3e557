"""Which rewards of a wave's policies one watcher has been sent, and which are new."""

from collections.abc import Mapping

import msgspec

from mint_contracts.rewards import Rewards
from mint_contracts.train_reader import TrainReader
from mint_contracts.training_records import Stage, WaveTraining
from mint_contracts.training_reports import LatestReports

MOST_POINTS = 200_000  # rewards in one message, over all policies
MOST_REPEATED = 20_000  # rewards kept for a watcher that gets the full history with each message


class _Report(msgspec.Struct, frozen=True):
    """Who reports on a policy, and its step; None: not known yet."""

    whose: tuple[str, int, str]
    step: int | None


class _Sent(msgspec.Struct, frozen=True):
    """How far a policy's rewards have been sent, and who reported them: the next trainer may start further back."""

    whose: tuple[str, int, str]
    end: int


class History:
    """One watcher's history. Nothing is read for a policy that has taken no step since the last message."""

    def __init__(self, reader: TrainReader, *, new_only: bool) -> None:
        """`new_only`: messages have only new rewards, as the watcher keeps earlier ones; else the full history."""
        self._reader, self._new_only = reader, new_only
        self._sent: dict[str, _Sent] = {}
        self._kept: dict[str, Rewards] = {}

    async def read(self, base: str, training: WaveTraining, words: LatestReports) -> tuple[dict[str, Rewards], bool]:
        """Return each policy's rewards for the next message, and whether any are new. Raises MapUnavailable."""
        reports = {name: _report(training, words, name) for name in training.policies}
        due = {
            name: start
            for name, report in reports.items()
            if (start := _due(self._sent.get(name), report)) is not None
        }
        most = max(1, MOST_POINTS // max(1, len(reports)))
        parts = {
            name: _up_to(part, reports[name].step)
            for name, part in (await self._reader.rewards(base, due, most)).items()
        }
        self._sent |= {name: _Sent(reports[name].whose, part.end) for name, part in parts.items()}
        new = any(part.values for part in parts.values())
        parts |= {name: Rewards(self._sent[name].end) for name in reports if name not in parts}
        return (parts if self._new_only else self._repeated(parts)), new

    def _repeated(self, parts: Mapping[str, Rewards]) -> dict[str, Rewards]:
        """Return the full histories, as far as they were kept."""
        histories = {name: self._kept.get(name, Rewards()).followed_by(part) for name, part in parts.items()}
        most = max(1, MOST_REPEATED // max(1, len(parts)))
        self._kept = {
            name: Rewards(max(whole.first, whole.end - most), whole.values[-most:])
            for name, whole in histories.items()
        }
        return histories


def _report(training: WaveTraining, words: LatestReports, name: str) -> _Report:
    engine, progress = words.get(name, ("", None))
    if progress is None:
        return _Report((training.run, 0, ""), None)
    return _Report((training.run, progress.lease, engine), None if progress.stage is Stage.LOADING else progress.step)


def _due(sent: _Sent | None, report: _Report) -> int | None:
    """Return the index from which a policy's rewards are to be read; None if nothing can be new."""
    if sent is None or sent.whose != report.whose:
        return 0
    if report.step is None or report.step == sent.end:
        return None
    return min(report.step, sent.end)


def _up_to(part: Rewards, step: int | None) -> Rewards:
    """Cut off rewards beyond `step`: the map may still have those of steps that are about to be repeated."""
    return part if step is None else Rewards(min(part.first, step), part.values[: max(0, step - part.first)])
