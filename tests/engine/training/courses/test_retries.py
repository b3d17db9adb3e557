"""A policy that was given up resumes under another lease from its newest checkpoint, however far it had come."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
import torch
from safetensors.torch import load

from mint_contracts import training_pb2, training_pb2_grpc
from mint_contracts.training import Dataset, Optimizer, Reward, RewardService, Train
from mint_contracts.training_records import Stage
from mint_engine.policies.courses.handoff import label_of
from mint_engine.policies.stored.checkpoints import Checkpoints
from mint_engine.policies.stored.store import store_of
from tests.engine.training.training_engine import Scene, assignment, saved, train, training
from tests.waiting import PATIENCE_S, until

LONG = json.dumps({"prompt": "the quick brown fox jumps over the lazy dog and then goes on to " * 3})
BROKEN_AT = 3


class Judge(training_pb2_grpc.RewardServicer):
    """A reward service that pays for late letters of the alphabet until it breaks, and for early ones once mended."""

    def __init__(self) -> None:
        self.mended = False
        self.breaking = asyncio.Event()  # it waits for this before it breaks

    async def Score(  # noqa: N802 - the name is the proto's
        self, request: training_pb2.ScoreRequest, context: Any
    ) -> training_pb2.ScoreResponse:
        texts = [each.completion for each in request.completions]
        if self.mended:
            return training_pb2.ScoreResponse(rewards=[-sum(map(ord, text)) for text in texts])
        if request.step >= BROKEN_AT:
            await asyncio.wait_for(self.breaking.wait(), PATIENCE_S)
            return training_pb2.ScoreResponse(rewards=[float("nan")] * len(texts))
        return training_pb2.ScoreResponse(rewards=[sum(map(ord, text)) for text in texts])


@asynccontextmanager
async def judged() -> AsyncIterator[tuple[Judge, Reward]]:
    judge, server = Judge(), grpc.aio.server()
    training_pb2_grpc.add_RewardServicer_to_server(judge, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield judge, Reward(service=RewardService(address=f"127.0.0.1:{port}"))
    finally:
        await server.stop(None)


def told(reward: Reward, **changes: Any) -> Train:
    """Return a wave with a large learning rate, and a prompt of several pages."""
    return train(
        reward=reward, dataset=Dataset(lines=[LONG]), prompts_per_step=1, steps=5,
        optimizer=Optimizer(learning_rate=5e-2), **changes,
    )  # fmt: skip


async def fail_and_mend(scene: Scene, judge: Judge, wave: Train) -> None:
    judge.breaking.set()
    await scene.ended("acme/one", stage=Stage.FAILED)
    judge.mended = True
    scene.want(assignment("acme/one", lease=2), told=msgspec.structs.replace(wave, retry=1))


def published_at(scene: Scene) -> int:
    told = scene.roster.progress()["acme/one"].published
    return told.step if told is not None else 0


async def test_a_retried_policy_learns_as_one_that_begins_then(base: Path, tmp_path: Path) -> None:
    """Not even in shared prompt pages of its rollouts: it learns as a policy that begins then."""
    found = []
    for folder in (tmp_path / "whole", tmp_path / "again"):
        async with judged() as (judge, reward):
            wave = told(reward, checkpoint_every_steps=100)
            async with training(base, folder, wave) as scene:
                judge.mended = folder.name == "whole"
                scene.want(assignment("acme/one"))
                if not judge.mended:
                    await fail_and_mend(scene, judge, wave)
                await scene.ended("acme/one")
                found.append(saved(scene, "acme/one"))
    assert found[0] == found[1]


@pytest.mark.parametrize("every", [2, 100])
async def test_a_retried_policy_stays_served_and_ends_with_its_new_revision(
    base: Path, tmp_path: Path, every: int
) -> None:
    def revisions() -> dict[str, str]:
        files = (tmp_path / "runs").rglob("adapter.mint")
        return {each.parent.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in files}

    async with judged() as (judge, reward):
        wave = told(reward, checkpoint_every_steps=every, publish_every_steps=1)
        async with training(base, tmp_path, wave) as scene:
            scene.want(assignment("acme/one"))
            await until(lambda: published_at(scene) == BROKEN_AT)
            before = revisions()
            await fail_and_mend(scene, judge, msgspec.structs.replace(wave, steps=BROKEN_AT))
            published = (await scene.ended("acme/one"))["acme/one"].published
            after = revisions()
            kept = before.keys() & after.keys()
            assert kept, "the newest of them, which may still be served"
            assert all(after[name] == before[name] for name in kept)
            assert published is not None
            assert published.step == BROKEN_AT
            checkpoint = Checkpoints(store_of(scene.store), "acme/one").newest()
            assert checkpoint is not None
            weights = load(bytes(checkpoint[1]))["weights"].to(scene.context.dtype)
            content = (Path(published.source.uri.removeprefix("file://")) / "adapter.mint").read_bytes()
            assert weights.view(torch.uint8).numpy().tobytes() in content


def test_two_courses_of_a_policy_label_its_slot_differently() -> None:
    assert label_of("acme/one", 1, 3) != label_of("acme/one", 2, 3)
