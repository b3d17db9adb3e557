"""The page's lists of waves: pure, from the map's records and placements and the engines' reports on policies."""

from collections.abc import Sequence

import msgspec

from mint_contracts.records import WaveRecord
from mint_contracts.training_pb2 import WaveProgress
from mint_gateway.waves.phase import Copies, phase, wanted_copies


class Serving(msgspec.Struct, frozen=True):
    """A serving wave."""

    wave: str
    base_model: str
    phase: str
    message: str
    chosen_by: str
    adapters: int
    replicas: int
    residency: str
    slots: int
    priority: int
    position: int  # in the queue, from 1; 0: it does not wait
    wanted: int
    placed: int
    ready: int
    failed: int


class Training(msgspec.Struct, frozen=True):
    """A training wave in aggregate. Rewards are means over its policies, None before there are any."""

    wave: str
    base_model: str
    phase: str
    message: str
    policies: int
    step: int
    steps: int
    reward: float | None
    best: float | None
    evaluation: float | None
    tokens: int
    eta_s: float | None


def serving(base: str, record: WaveRecord, copies: Copies) -> Serving:
    """Return a serving wave as the page shows it."""
    return Serving(
        wave=record.wave,
        base_model=base,
        phase=phase(record, copies),
        message=record.message,
        chosen_by=record.chosen_by,
        adapters=record.adapters,
        replicas=record.replicas,
        residency=record.residency,
        slots=record.slots,
        priority=record.priority,
        position=record.position,
        wanted=wanted_copies(record),
        placed=copies.placed,
        ready=copies.ready,
        failed=copies.failed,
    )


def training(progress: WaveProgress) -> Training:
    """Return a training wave as the page shows it."""
    return Training(
        wave=progress.wave,
        base_model=progress.base_model,
        phase=progress.phase,
        message=progress.message,
        policies=progress.policy_count,
        step=progress.step,
        steps=progress.steps,
        reward=progress.reward_recent if progress.HasField("reward_recent") else None,
        best=progress.reward_best if progress.HasField("reward_best") else None,
        evaluation=progress.evaluation if progress.HasField("evaluation") else None,
        tokens=progress.tokens,
        eta_s=progress.eta_s if progress.HasField("eta_s") else None,
    )


def thinned(rewards: Sequence[float], most: int) -> tuple[list[float], int]:
    """Reduce rewards to at most `most` points; return the points and how many steps each is the mean of.

    Only the first point may have fewer steps than the others.
    """
    every = max(1, -(-len(rewards) // most))
    starts = range(len(rewards) % every, len(rewards), every)
    shares = [rewards[: starts.start]] if starts.start else []
    shares += [rewards[start : start + every] for start in starts]
    return [round(sum(share) / len(share), 6) for share in shares], every


def not_training(base: str, record: WaveRecord) -> Training:
    """Return a wave that is to train, before the operator has written its training record."""
    return Training(
        wave=record.wave,
        base_model=base,
        phase=phase(record, Copies()),
        message=record.message,
        policies=record.adapters,
        step=0,
        steps=0,
        reward=None,
        best=None,
        evaluation=None,
        tokens=0,
        eta_s=None,
    )
