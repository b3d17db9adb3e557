"""Evaluations: a policy answers its wave's prompts greedily, and the answers are scored."""

import json
import threading
from pathlib import Path
from statistics import fmean

import grpc
import pytest

from mint_contracts import sampling_pb2, sampling_pb2_grpc
from mint_contracts.training import Algorithm, Dataset, Evaluation, Length, Reward
from mint_engine.examples import held
from mint_engine.examples.example import Example, read_line
from mint_engine.policies.stored.checkpoints import Checkpoints
from mint_engine.policies.stored.store import store_of
from tests.engine.training.training_engine import LINES, train, training


async def test_evaluations_are_greedy_and_scored(base: Path, tmp_path: Path) -> None:
    """The score equals that of a client's greedy answers from the revision published at the same step."""
    reward = Length(target=12, tolerance=12)
    scored = {"reward": Reward(length=reward), "evaluation": Evaluation(every_steps=2, prompts=3)}
    async with training(base, tmp_path, train(**scored)) as scene:
        told = await scene.complete("acme/one")
        assert told.published is not None
        assert told.published.step == told.step
        async with grpc.aio.insecure_channel(f"127.0.0.1:{scene.server.port}") as channel:
            sampler = sampling_pb2_grpc.SamplerStub(channel)
            answers = [await answer(sampler, "acme/one", json.loads(line)["prompt"]) for line in LINES[:3]]
        distances = [abs(len(text.strip()) - reward.target) for text in answers]
        assert told.evaluation == pytest.approx(fmean(max(0.0, 1 - each / reward.tolerance) for each in distances))


@pytest.mark.parametrize("algorithm", ["GRPO", "SFT"])
async def test_examples_are_not_decoded_where_tokens_are_sent(
    algorithm: Algorithm, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A megabyte takes milliseconds, and a step may take a thousand examples."""
    decoded = set[threading.Thread]()

    def note(line: bytes, dataset: Dataset, subject: str) -> Example:
        decoded.add(threading.current_thread())
        return read_line(line, dataset, subject)

    monkeypatch.setattr(held, "read_line", note)
    wave = train(steps=2, algorithm=algorithm, evaluation=Evaluation(every_steps=2, prompts=3))
    async with training(base, tmp_path, wave) as scene:
        await scene.complete("acme/one")
    assert decoded
    assert threading.current_thread() not in decoded


async def answer(sampler: "sampling_pb2_grpc.SamplerAsyncStub", policy: str, prompt: str) -> str:
    """Return the text of eight greedily sampled tokens."""
    sampling = sampling_pb2.SamplingParams(max_tokens=8)
    request = sampling_pb2.GenerateRequest(adapter=policy, text=prompt, sampling=sampling)
    return "".join([event.chunk.text async for event in sampler.Generate(request, timeout=60)])


async def test_an_evaluation_that_a_pause_or_an_end_cut_off_is_made_up_for(base: Path, tmp_path: Path) -> None:
    async with training(base, tmp_path, train(steps=2)) as scene:
        assert (await scene.complete("acme/one")).evaluation is None
    async with training(base, tmp_path, train(steps=2, evaluation=Evaluation(every_steps=2, prompts=3))) as scene:
        made_up = (await scene.complete("acme/one", lease=2)).evaluation
        record = Checkpoints(store_of(scene.store), "acme/one").newest_record()
    assert made_up is not None
    assert record is not None
    assert (record.step, record.evaluated, record.evaluation) == (2, 2, made_up), "a longer course starts there"
