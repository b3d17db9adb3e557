"""An engine of two ranks trains policies of waves and of calls: rollouts, updates, handoffs, revisions."""

from pathlib import Path

import grpc
import pytest

from mint_contracts import training_pb2 as pb
from mint_contracts import training_pb2_grpc
from tests.engine import saved_families
from tests.engine.in_process import Engine
from tests.engine.running import save_base
from tests.engine.training.calling import answer_calls
from tests.engine.training.training_engine import Scene, assignment, train, training
from tests.waiting import until

PROMPT = (5, 6, 7, 8)
NAMES = ("acme/one", "acme/two")


def save(family: str, folder: Path) -> Path:
    return save_base(folder) if family == "llama" else saved_families.save_base(family, folder)


def engine_of(scene: Scene) -> Engine:
    return Engine(scene.slots, scene.residency._climber._loader, scene.residency, scene.stepper)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
async def test_a_wave(family: str, tmp_path: Path) -> None:
    """Published revisions are served at once, exactly as an engine of one rank serves them from the store."""
    base = save(family, tmp_path / "base")
    async with training(base, tmp_path, train(publish_every_steps=1), tensor_parallel_size=2) as scene:
        scene.want(*[assignment(name) for name in NAMES])
        told = await scene.ended(*NAMES)
        engine, answers = engine_of(scene), {}
        for name in NAMES:
            published = told[name].published
            assert published is not None
            assert (told[name].step, published.step) == (3, 3)
            answers[name] = published, await engine.ask(name, PROMPT, 8)
            assert answers[name][1].revision == published.revision
        scene.want()
        await until(lambda: len(scene.residency.slots.free) == scene.slots.count)
    assert answers[NAMES[0]][1].revision != answers[NAMES[1]][1].revision
    async with training(base, tmp_path / "other") as alone:
        for name, (published, answer) in answers.items():
            again = await engine_of(alone).ask(name, PROMPT, 8, source=published.source)
            assert (again.revision, again.tokens) == (answer.revision, answer.tokens)


async def test_calls(tmp_path: Path) -> None:
    """Each step lowers the loss on its example, and the published revision is served."""
    async with training(save("llama", tmp_path / "base"), tmp_path, tensor_parallel_size=2) as scene:
        await answer_calls(scene)
        example = pb.Example(tokens=[5, 6, 7, 8], targets=[6, 7, 8, 9], weights=[0, 1, 1, 1])
        losses = []
        async with grpc.aio.insecure_channel(f"127.0.0.1:{scene.server.port}") as channel:
            stub = training_pb2_grpc.TrainerStub(channel)
            await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
            for at in range(1, 9, 2):
                lesson = pb.ForwardBackwardRequest(
                    policy="one", sequence=at, examples=[example], loss="cross_entropy"
                )
                losses.append((await stub.ForwardBackward(lesson)).loss_sum)
                await stub.OptimStep(pb.OptimStepRequest(policy="one", sequence=at + 1, learning_rate=1e-2))
            published = await stub.Publish(pb.PublishRequest(policy="one", sequence=9))
            answer = await engine_of(scene).ask("one", PROMPT, 4)
            await stub.DropPolicy(pb.DropPolicyRequest(policy="one"))
        assert losses == sorted(losses, reverse=True)
        assert answer.revision == published.revision
        await until(lambda: len(scene.residency.slots.free) == scene.slots.count)
