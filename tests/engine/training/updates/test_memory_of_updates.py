"""What updates keep of long examples takes a GPU's memory, and no policy that has begun waits for another's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mint_engine.policies import patience
from mint_engine.residency.policy_device import PolicyDevice
from mint_engine.training.policy import PolicySettings
from tests.engine.device_double import Seen, standing_in
from tests.engine.training.training_engine import Gate, Scene, assignment, hold_updates, train, training
from tests.waiting import until

MEMORY, ROW = 64 << 20, 2 << 20
STEPS, PROMPTS = 2, 2
LONGEST = 12  # tokens of a prompt with its completion, at most


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Each row beyond two keeps much memory; interpreted programs take many rows, since each takes a millisecond."""
    monkeypatch.setattr("mint_engine.gpu.lora.FEW", 1)
    monkeypatch.setattr("mint_engine.serve.PIECE_ROWS", 2)
    monkeypatch.setattr("mint_engine.serve.kept_of", lambda _base: lambda rows: rows * ROW)
    monkeypatch.setattr(patience, "LONGEST_RETRY_S", 0.1)
    with standing_in() as seen:
        seen.memory = MEMORY
        yield seen


def memory_of(scene: Scene) -> PolicyDevice:
    found = scene.residency.lending.room.device
    assert found is not None
    return found


def leave(scene: Scene, device: Seen, rows: int) -> None:
    """Let other processes leave a policy only as much as it takes, and what an update keeps of `rows` rows."""
    needs = scene.context.step_thread.maker.needs("any", PolicySettings(4))
    device.others += memory_of(scene).budget - needs.device - (rows - 2) * ROW - MEMORY // 512


def count_rollouts(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    group, asked = scene.context.rollouts.group, list[object]()

    async def counted(ask: Any) -> Any:
        asked.append(ask)
        return await group(ask)

    monkeypatch.setattr(scene.context.rollouts, "group", counted)
    return asked


async def test_completions_are_kept_while_an_update_waits_for_memory(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: Seen
) -> None:
    async with training(base, tmp_path, train(steps=STEPS), device="cuda") as scene:
        asked = count_rollouts(scene, monkeypatch)
        with Gate() as updating:
            hold_updates(scene, updating)
            scene.want(assignment("acme/one"))
            await updating.reached()
            leave(scene, device, 4)
        await until(lambda: scene.roster.progress()["acme/one"].failure)
        failure = scene.roster.progress()["acme/one"].failure
        assert failure is not None
        assert (failure.reason, failure.terminal) == ("Overloaded", False)
        assert "has an example of " in failure.message
        device.others = 0
        await scene.ended("acme/one")
        assert len(asked) == STEPS * PROMPTS


async def test_an_update_that_never_fits_fails_its_policy_at_once(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: Seen
) -> None:
    """A policy of shorter examples trains there, since only examples that are there count, not those that may be."""
    async with training(base, tmp_path, train(steps=STEPS), device="cuda") as scene:
        asked = count_rollouts(scene, monkeypatch)
        leave(scene, device, 5)
        monkeypatch.setattr(memory_of(scene), "most", memory_of(scene).budget)  # as if they had been there before
        scene.want(assignment("acme/one"))
        failure = await scene.failed("acme/one")
        assert (failure.reason, failure.terminal) == ("CapacityExceeded", True)
        assert failure.message.startswith("policy 'acme/one': has an example of ")
        assert "sampling.maxTokens" in failure.message
        assert len(asked) == PROMPTS


async def test_policies_whose_examples_would_not_fit_together_begin_one_after_another(
    base: Path, tmp_path: Path, device: Seen
) -> None:
    names = ["acme/one", "acme/two"]
    async with training(base, tmp_path, train(steps=1), device="cuda") as scene:
        leave(scene, device, LONGEST)
        with Gate() as updating:
            hold_updates(scene, updating)
            scene.want(*map(assignment, names))
            await until(lambda: [each for each in scene.roster.progress().values() if each.failure])
            (failure,) = [each.failure for each in scene.roster.progress().values() if each.failure]
            assert "that are left for policies, and updates may keep " in failure.message
            slots = scene.residency.slots
            assert len(slots.free) == slots.count - 1, "the other waits without a slot"
        ended = await scene.ended(*names)
        assert {each.step for each in ended.values()} == {1}
