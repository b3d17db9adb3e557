"""Rewards sent to the watchers of a wave: all at first, then only new ones, or all again to older clients."""

from collections.abc import AsyncIterator

import grpc
import pytest

from mint_contracts.training_pb2 import WatchWaveRequest, WaveProgress
from mint_contracts.training_pb2_grpc import WavesStub
from mint_gateway.waves import history
from tests.gateway.scene import Scene
from tests.gateway.training_waves import NAMES, Training, reached, reported, wave


async def test_a_watcher_that_keeps_rewards_gets_only_new_ones(scene: Scene, training: Training) -> None:
    first, second = NAMES
    await training.declare(wave())
    await training.report(reported(first, 2), reported(second, 0), rewards={first: [0.1, 0.2]})
    call = WatchWaveRequest(wave="demo/w", history=True, new_rewards_only=True)

    async def rewards_at(updates: AsyncIterator[WaveProgress], step: int, lease: int = 7) -> tuple[int, list[float]]:
        seen = await reached(updates, lambda progress: progress.policies[0].step == step)
        return seen.policies[0].rewards_from, list(seen.policies[0].rewards)

    stream = WavesStub(grpc.aio.insecure_channel(scene.target)).WatchWave(call)
    updates, whole = aiter(stream), scene.client.watch("demo/w", history=True)
    assert await rewards_at(updates, 2) == await rewards_at(whole, 2) == (0, [0.1, 0.2])
    await training.report(reported(first, 3), rewards={first: [0.1, 0.2, 0.3]})
    assert await rewards_at(updates, 3) == (2, [0.3])
    assert await rewards_at(whole, 3) == (0, [0.1, 0.2, 0.3])
    await training.report(reported(first, 1, lease=8))  # resumed, before it has reported its first step there
    assert await rewards_at(updates, 1) == await rewards_at(whole, 1) == (0, [0.1])
    await training.report(reported(first, 2, lease=8), rewards={first: [0.1, 0.9]})
    assert await rewards_at(updates, 2) == (1, [0.9])
    assert await rewards_at(whole, 2) == (0, [0.1, 0.9])
    stream.cancel()


async def test_a_long_history_is_told_by_its_end(
    scene: Scene, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MOST_POINTS", 6)
    monkeypatch.setattr(history, "MOST_REPEATED", 4)
    await training.declare(wave())
    values = [float(step) for step in range(9)]
    await training.report(reported(NAMES[0], 9), rewards={NAMES[0]: values})
    seen = await anext(scene.client.watch("demo/w", history=True))
    assert (seen.policies[0].rewards_from, list(seen.policies[0].rewards)) == (6, values[6:])
    stub = WavesStub(grpc.aio.insecure_channel(scene.target))
    older = aiter(stub.WatchWave(WatchWaveRequest(wave="demo/w", history=True)))
    assert list((await anext(older)).policies[0].rewards) == values[6:]
    await training.report(reported(NAMES[0], 10), rewards={NAMES[0]: [*values, 9.0]})
    seen = await reached(older, lambda progress: progress.policies[0].step == 10)
    assert list(seen.policies[0].rewards) == [7.0, 8.0, 9.0], "what is kept for it, and what is new"


async def test_a_restarted_policy_is_reported_from_its_beginning_despite_older_history(
    scene: Scene, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MOST_POINTS", 6)
    await training.declare(wave())
    await training.report(reported(NAMES[0], 9), rewards={NAMES[0]: [0.5] * 9})
    updates = scene.client.watch("demo/w", history=True)
    await anext(updates)
    await training.report(reported(NAMES[0], 0, lease=8))
    await reached(updates, lambda progress: progress.policies[0].step == 0)
    await training.report(reported(NAMES[0], 1, lease=8), rewards={NAMES[0]: [0.9]})
    seen = await reached(updates, lambda progress: progress.policies[0].step == 1)
    assert list(seen.policies[0].rewards) == [0.9]
