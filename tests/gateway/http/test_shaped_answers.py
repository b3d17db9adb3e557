"""Answers constrained to JSON or a regular expression, from a real engine over HTTP, as OpenAI's clients ask."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.engine.running import save_base
from tests.gateway.asking import CONTEXT, asking
from tests.gateway.scene import BASE, Scene

ASKED: dict[str, Any] = {"model": BASE, "messages": [{"role": "user", "content": "Where?"}], "max_tokens": 900}


class Place(pydantic.BaseModel):
    """The schema of the answers."""

    model_config = pydantic.ConfigDict(extra="forbid")
    sea: Literal["north", "south"]
    deep: bool
    fathoms: list[Literal[3, 7, 12]] = pydantic.Field(min_length=1, max_length=3)


@pytest.fixture
async def client(scene: Scene, tmp_path: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client for a gateway with a real engine of a tiny base."""
    base = save_base(tmp_path, max_position_embeddings=CONTEXT)
    async with asking(scene, base) as client:
        yield client


async def test_a_class_of_pydantics_comes_back(client: openai.AsyncOpenAI) -> None:
    for seed in range(3):
        answer = await client.chat.completions.parse(**ASKED, seed=seed, response_format=Place)
        [choice] = answer.choices
        assert choice.finish_reason == "stop"
        assert isinstance(choice.message.parsed, Place)


async def test_expressions_objects_and_schemas_of_vllms(client: openai.AsyncOpenAI) -> None:
    text: dict[str, Any] = {"model": BASE, "prompt": "Where?", "max_tokens": 900, "seed": 1}
    response = await client.completions.create(
        **text, n=2, extra_body={"structured_outputs": {"regex": "[a-f]{4}-\\d"}}
    )
    for choice in response.choices:
        assert re.fullmatch(r"[a-f]{4}-\d", choice.text)
        assert choice.finish_reason == "stop"
    schema = {"structured_outputs": {"json": Place.model_json_schema()}}
    response = await client.completions.create(**text, extra_body=schema)
    assert Place.model_validate_json(response.choices[0].text)
    likely = {"27": 20, "3": 10, "94": 10}  # this tokenizer's ':', '"' and '}'
    chat = await client.chat.completions.create(
        **ASKED, temperature=0, logit_bias=likely, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(chat.choices[0].message.content or ""), dict)
    cut = await client.completions.create(**text | {"max_tokens": 2}, extra_body=schema)
    assert cut.choices[0].finish_reason == "length"


async def test_a_chat_that_tells_no_number_of_tokens_comes_to_its_end(client: openai.AsyncOpenAI) -> None:
    """With OpenAI only the context limits it: many clients send no limit and rely on a complete answer."""
    asked: dict[str, Any] = {"model": BASE, "messages": ASKED["messages"], "seed": 1}
    response = await client.chat.completions.create(
        **asked, extra_body={"structured_outputs": {"regex": "[a-f]{600}"}}
    )
    assert (response.choices[0].finish_reason, len(response.choices[0].message.content or "")) == ("stop", 600)


async def test_an_invalid_schema_is_refused_with_the_reason(client: openai.AsyncOpenAI) -> None:
    named: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "strin"}}}
    says = "sampling.json_schema: cannot be followed: Invalid type: strin"
    with pytest.raises(openai.BadRequestError, match=says):
        await client.chat.completions.create(**ASKED, response_format=named)
    with pytest.raises(openai.BadRequestError, match="cannot be combined with regex"):
        await client.completions.create(
            model=BASE, prompt="a", extra_body={"structured_outputs": {"regex": "a"}, "ignore_eos": True}
        )
