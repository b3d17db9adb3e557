"""An optimizer step that a defect cuts off halfway, by calls of the Trainer service."""

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mint_contracts import training_pb2 as pb
from mint_engine.training import optimizer, stepping
from mint_engine.training.optimizer import StepOutcome
from mint_engine.training.policy import Policy
from tests.engine.training.calling import called, lesson, refused, step


async def test_a_step_that_a_defect_cuts_off_halfway_is_nobodys_and_what_was_saved_is_gone_on_from(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizer, "_STRETCH", 1 << 8)

    def cut_off(policy: Policy, *how: Any) -> Generator[None, None, StepOutcome]:
        with contextlib.closing(optimizer.take_step(policy, *how)) as parts:
            for _ in parts:
                if policy.torn:
                    raise RuntimeError("a defect")
                yield
        raise AssertionError("the step was taken in one part")

    async with called(base, tmp_path) as (_, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        await stub.ForwardBackward(lesson("one", 1))
        saved = await stub.SaveState(pb.SaveStateRequest(policy="one", sequence=2))
        with monkeypatch.context() as patched, capture_logs():
            patched.setattr(stepping, "take_step", cut_off)
            error = await refused(stub.OptimStep(step("one", 3)))
            assert error.reason == "Internal"
            assert "could not take its step (RuntimeError: a defect) to its end; load a saved state" in error.message
        for call in (
            stub.OptimStep(step("one", 3)),
            stub.ForwardBackward(lesson("one", 3)),
            stub.SaveState(pb.SaveStateRequest(policy="one", sequence=3)),
            stub.Publish(pb.PublishRequest(policy="one", sequence=3)),
        ):
            error = await refused(call)
            assert (error.reason, "load a saved state" in error.message) == ("TornPolicy", True)
        await stub.LoadState(pb.LoadStateRequest(policy="one", sequence=3, uri=saved.uri))
        found = await stub.OptimStep(step("one", 4))
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="two", rank=4))
        await stub.ForwardBackward(lesson("two", 1))
        undisturbed = await stub.OptimStep(step("two", 2))
        assert found == undisturbed
