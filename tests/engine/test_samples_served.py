"""SmolLM2 and its adapters, all in one batch over gRPC: the answers are PEFT's, token by token."""

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from e2e.samples import GOOD, Samples, prepare, questions
from e2e.samples.reference import ANSWER_TOKENS, BASE, reference
from mint_contracts.sampling_pb2 import Chat, Finished, GenerateRequest, Message, SamplingParams
from mint_engine.scheduling.scheduler import Limits
from tests.engine.running import collect, running

NEW_TOKENS = 24
QUESTIONS = 2
CLEAR_GAP = 1e-3  # in logits: a closer tie may fall either way with another order of summation


@pytest.fixture(scope="module")
def samples() -> Samples:
    return prepare()


@pytest.mark.timeout(1200)  # the first run on a machine makes the samples, and PEFT's answers
async def test_everyone_at_once(samples: Samples) -> None:
    names = [BASE, *(adapter.name for adapter in GOOD)]
    asked = questions()[:QUESTIONS]
    expected = reference(samples, asked, names, ANSWER_TOKENS)
    folders: dict[str, Path] = {name: samples.adapters / name for name in names if name != BASE}
    async with running(
        samples.base,
        folders,
        Limits(step_tokens=96),
        max_rank=32,
        device_slots=len(folders),
        context_length=256,
        kv_cache_bytes=128 << 20,
    ) as engine:
        requests = {
            (name, question): GenerateRequest(
                adapter=name,
                chat=Chat(messages=[Message(role="user", content=question)]),
                sampling=SamplingParams(max_tokens=NEW_TOKENS),
            )
            for question in asked
            for name in names
        }
        answers = dict(
            zip(requests, await asyncio.gather(*(collect(engine, each) for each in requests.values())), strict=True)
        )
    compared = 0
    for name in names:
        for question, wanted in zip(asked, expected[name], strict=True):
            tokens = wanted.token_ids[:NEW_TOKENS]
            clear = next((n for n, gap in enumerate(wanted.gaps[: len(tokens)]) if gap < CLEAR_GAP), len(tokens))
            assert answers[name, question].tokens[:clear] == tokens[:clear], (name, question)
            compared += clear
    assert compared > len(requests) * NEW_TOKENS / 3


async def test_each_writes_a_recipe_as_its_schema_has_it(samples: Samples) -> None:
    """With SmolLM2's vocabulary of 49,152; the base and adapters at once, greedy and sampled."""
    name = {"type": "string", "maxLength": 30}
    properties: dict[str, Any] = {
        "name": name,
        "ingredients": {"type": "array", "items": name, "minItems": 1, "maxItems": 3},
        "minutes": {"type": "integer", "minimum": 1, "maximum": 90},
        "easy": {"type": "boolean"},
    }
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    asked = [Message(role="user", content="Give me a recipe for pancakes as JSON.")]
    names = ("", "demo/json", "demo/pirate")
    folders = {each: samples.adapters / each for each in names if each}
    told: dict[str, Any] = {"max_tokens": 400, "json_schema": json.dumps(schema), "seed": 1}
    async with running(samples.base, folders, max_rank=32, context_length=512, kv_cache_bytes=256 << 20) as engine:
        answers = await asyncio.gather(
            *(
                collect(
                    engine,
                    GenerateRequest(
                        adapter=each,
                        chat=Chat(messages=asked),
                        sampling=SamplingParams(temperature=temperature, **told),
                    ),
                )
                for each in names
                for temperature in (0.0, 0.7)
            )
        )
    for answer in answers:
        assert answer.finished.reason == Finished.STOP
        jsonschema.validate(json.loads(answer.text), schema)
    assert len({answer.text for answer in answers}) == len(answers)
