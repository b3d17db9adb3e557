"""Thoughts in a real engine's answers over HTTP, as OpenAI's clients get them from vLLM: streamed and complete."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import aiohttp
import openai
import pydantic
import pytest
from openai.types import CompletionUsage
from openai.types.chat.chat_completion import ChatCompletion, Choice
from transformers import AutoTokenizer

from mint_contracts.sampling_pb2 import Chat, Finished, GenerateRequest, Message, Started
from mint_engine.requests.prompts import read_prompt
from mint_gateway.http import openai_request
from tests.engine.running import save_base
from tests.engine.thinking import save_thinking
from tests.engine.tooled import teach
from tests.gateway.asking import CONTEXT, asking
from tests.gateway.scene import BASE, Scene

USER: Any = {"role": "user", "content": "How deep?"}
ASKED: dict[str, Any] = {"model": BASE, "messages": [USER], "max_tokens": 600, "temperature": 0}
BEGUN: dict[str, Any] = {"extra_body": {"chat_template_kwargs": {"begins": True}}}
NONE: dict[str, Any] = {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
DEPTH = {
    "type": "object",
    "properties": {"sea": {"const": "north"}},
    "required": ["sea"],
    "additionalProperties": False,
}
TOOLS: Any = [{"type": "function", "function": {"name": "depth", "parameters": DEPTH}}]
CALL = '<tool_call>\n{"name": "depth", "arguments": {"sea": "north"}}\n</tool_call>'
THOUGHT, ANSWER = "It is the sea.", "It is 9 fathoms deep."


class Place(pydantic.BaseModel):
    """The schema of the answers."""

    model_config = pydantic.ConfigDict(extra="forbid")
    sea: Literal["north", "south"]
    deep: bool


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that thinks before it answers, unless it is told not to; with tools, before it calls one."""
    base = save_thinking(tmp_path_factory.mktemp("base"), max_position_embeddings=CONTEXT)
    tokenizer = AutoTokenizer.from_pretrained(base)

    def prompt(*, extra_body: Any = {}, **fields: Any) -> list[int]:  # noqa: B006 - never changed
        request: GenerateRequest = openai_request.chat_request(
            openai_request.read(json.dumps(ASKED | fields | extra_body).encode(), openai_request.ChatRequest), ()
        )
        return list(read_prompt(request, tokenizer, len(tokenizer), CONTEXT))

    teach(
        base,
        [
            (prompt(), f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"),
            (prompt(**BEGUN), f"{THOUGHT}\n</think>\n\n{ANSWER}"),
            (prompt(**NONE), ANSWER),
            (prompt(tools=TOOLS), f"<think>\nI write {CALL}\n</think>\n\nI look.\n{CALL}"),
        ],
    )
    return base


@pytest.fixture
async def client(scene: Scene, base: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    async with asking(scene, base) as client:
        yield client


def reasoning(message: Any) -> str | None:
    found: str | None = getattr(message, "reasoning", None)
    return found


def thinking_tokens(usage: CompletionUsage | None) -> int | None:
    assert usage
    return usage.completion_tokens_details.reasoning_tokens if usage.completion_tokens_details else None


def counted(usage: CompletionUsage | None) -> dict[str, Any]:
    """Return the counts that do not depend on what was cached."""
    assert usage
    return usage.model_dump(exclude={"prompt_tokens_details"})


async def answered(client: openai.AsyncOpenAI, **options: Any) -> tuple[Choice, CompletionUsage]:
    """Return an answer's only choice and its usage, after checking that they are the same complete and streamed."""
    answer: ChatCompletion = await client.chat.completions.create(**ASKED | options)
    [whole] = answer.choices
    stream = await client.chat.completions.create(
        **ASKED | options, stream=True, stream_options={"include_usage": True}
    )
    told: dict[str, str | None] = {"reasoning": None, "content": None}
    order, usage, reason, calls = list[str](), None, None, list[tuple[str | None, str | None]]()
    async for piece in stream:
        usage = piece.usage or usage
        for choice in piece.choices:
            reason = choice.finish_reason or reason
            assert not hasattr(choice.delta, "reasoning_content"), "vLLM's older name"
            for name, text in (("reasoning", reasoning(choice.delta)), ("content", choice.delta.content)):
                told[name] = told[name] if text is None else (told[name] or "") + text
                order += [name] if text and not choice.delta.role else []
            functions = [call.function for call in choice.delta.tool_calls or () if call.function]
            calls += [(function.name, function.arguments) for function in functions]
    message = whole.message
    assert (told, reason) == ({"reasoning": reasoning(message), "content": message.content}, whole.finish_reason)
    assert order == sorted(order, reverse=True), "after an echo the thought comes first"
    functions = [call.function for call in message.tool_calls or () if call.type == "function"]
    assert calls == [(function.name, function.arguments) for function in functions]
    assert usage
    assert counted(usage) == counted(answer.usage)
    return whole, usage


@pytest.mark.parametrize("how", [{}, BEGUN])
async def test_a_thought_comes_apart_from_the_answer_whoever_begins_it(
    client: openai.AsyncOpenAI, how: dict[str, Any]
) -> None:
    choice, usage = await answered(client, **how)
    assert (reasoning(choice.message), choice.message.content) == (THOUGHT, ANSWER)
    assert choice.finish_reason == "stop"
    thinking = thinking_tokens(usage)
    assert thinking
    assert len(THOUGHT) / 2 < thinking < usage.completion_tokens - len(ANSWER) / 2, "this tokenizer has few words"
    hidden, spent = await answered(client, extra_body={"include_reasoning": False, **how.get("extra_body", {})})
    assert (reasoning(hidden.message), hidden.message.content) == (None, ANSWER)
    assert spent.completion_tokens_details == usage.completion_tokens_details


@pytest.mark.parametrize("quiet_s", [0.0, 3600.0])
async def test_while_nothing_of_an_answer_can_be_told_its_stream_has_comments(
    client: openai.AsyncOpenAI, scene: Scene, monkeypatch: pytest.MonkeyPatch, quiet_s: float
) -> None:
    """In a hidden thought, and in a call before its end."""
    monkeypatch.setattr("mint_gateway.http.stream.QUIET_S", quiet_s)
    asked = ASKED | {"stream": True, "include_reasoning": False, "tools": TOOLS}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{scene.url}/v1/chat/completions", json=asked) as raw,
    ):
        events = (await raw.text()).split("\n\n")
    told = [at for at, event in enumerate(events) if '"content":"' in event and '"role"' not in event]
    [call] = [at for at, event in enumerate(events) if '"tool_calls":[' in event]
    for quiet in (events[: told[0]], events[told[-1] : call]):
        assert (": generating" in quiet) == (quiet_s == 0.0)
    choice, _ = await answered(client, extra_body={"include_reasoning": False}, tools=TOOLS)
    assert choice.message.content == "I look.", "clients skip comments"
    assert choice.message.tool_calls


async def test_an_answer_without_a_thought_has_content_alone(client: openai.AsyncOpenAI) -> None:
    choice, usage = await answered(client, **NONE)
    assert (choice.message.content, usage.completion_tokens_details) == (ANSWER, None)
    assert "reasoning" not in choice.message.model_dump(exclude_unset=True)


@pytest.mark.parametrize("most", [1, 4])
async def test_an_answer_that_ends_within_its_thought_has_no_content(client: openai.AsyncOpenAI, most: int) -> None:
    for how in ({}, BEGUN):
        choice, usage = await answered(client, max_tokens=most, **how)
        assert (choice.message.content, choice.finish_reason) == (None, "length")
        assert THOUGHT.startswith(reasoning(choice.message) or "")
        assert thinking_tokens(usage) == most
        hidden, _ = await answered(client, max_tokens=most, extra_body={"include_reasoning": False})
        assert (hidden.message.content, reasoning(hidden.message)) == (None, None)


async def test_a_stop_string_ends_a_thought_as_it_ends_an_answer(client: openai.AsyncOpenAI) -> None:
    within, _ = await answered(client, stop="sea")
    assert (reasoning(within.message), within.message.content) == ("It is the ", None)
    after, usage = await answered(client, stop=["fathoms", ">\n\nNever"])
    assert (reasoning(after.message), after.message.content) == (THOUGHT, "It is 9 ")
    assert within.finish_reason == after.finish_reason == "stop"
    assert thinking_tokens(usage)


async def test_calls_are_those_after_the_thought(client: openai.AsyncOpenAI) -> None:
    choice, usage = await answered(client, tools=TOOLS)
    assert (reasoning(choice.message), choice.message.content) == (f"I write {CALL}", "I look.")
    [call] = choice.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, choice.finish_reason) == ("depth", "tool_calls")
    assert thinking_tokens(usage)


async def test_one_call_at_most_ends_the_answer_and_not_the_thought(client: openai.AsyncOpenAI) -> None:
    several, usage = await answered(client, tools=TOOLS)
    one, less = await answered(client, tools=TOOLS, parallel_tool_calls=False)
    assert (reasoning(one.message), one.message.content) == (f"I write {CALL}", "I look.")
    assert one.finish_reason == "tool_calls"
    assert len(one.message.tool_calls or ()) == len(several.message.tool_calls or ()) == 1
    assert less.completion_tokens < usage.completion_tokens, "it ends with the call"


@pytest.mark.parametrize("how", [{}, BEGUN])
async def test_a_shape_is_that_of_the_answer_after_the_thought(
    client: openai.AsyncOpenAI, how: dict[str, Any]
) -> None:
    answer = await client.chat.completions.parse(**ASKED, response_format=Place, **how)
    message = answer.choices[0].message
    assert isinstance(message.parsed, Place)
    assert reasoning(message) == THOUGHT
    schema = {"type": "json_schema", "json_schema": {"name": "place", "schema": Place.model_json_schema()}}
    choice, _ = await answered(client, response_format=schema, **how)
    assert choice.message.content == message.content
    for required in ("required", {"type": "function", "function": {"name": "depth"}}):
        held, _ = await answered(client, tools=TOOLS, tool_choice=required, parallel_tool_calls=False)
        assert reasoning(held.message) == f"I write {CALL}"
        [call] = held.message.tool_calls or []
        assert call.type == "function"
        assert json.loads(call.function.arguments) == {"sea": "north"}


async def test_a_shape_without_a_thought_begins_at_once(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.parse(**ASKED, response_format=Place, **NONE)
    assert isinstance(answer.choices[0].message.parsed, Place)
    assert reasoning(answer.choices[0].message) is None
    biased = ASKED | {"logit_bias": {"296": -100}}  # this tokenizer's <think>
    held = await client.chat.completions.parse(**biased, response_format=Place)
    assert isinstance(held.choices[0].message.parsed, Place)
    assert reasoning(held.choices[0].message) is None


async def test_completions_of_one_request_think_each_for_itself(client: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = ASKED | {"temperature": 1.5, "n": 4, "seed": 1, "max_tokens": 60}
    answer = await client.chat.completions.create(**asked)
    stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    told, usage = [["", ""] for _ in range(4)], None
    async for piece in stream:
        usage = piece.usage or usage
        for choice in piece.choices:
            told[choice.index][0] += reasoning(choice.delta) or ""
            told[choice.index][1] += choice.delta.content or ""
    assert told == [[reasoning(each.message) or "", each.message.content or ""] for each in answer.choices]
    assert len({each for each, _ in told}) > 1
    assert counted(usage) == counted(answer.usage)


async def test_log_probabilities_are_those_of_every_token(client: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = ASKED | {"logprobs": True}
    whole = await client.chat.completions.create(**asked)
    stream = await client.chat.completions.create(**asked, stream=True)
    pieces = [piece.choices[0].logprobs async for piece in stream if piece.choices[0].logprobs]
    scored = [score.token for each in pieces for score in each.content or ()]
    scores = whole.choices[0].logprobs
    assert scores
    assert scored == [score.token for score in scores.content or ()]
    assert "".join(scored).startswith(f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}")
    assert whole.usage
    assert len(scored) == whole.usage.completion_tokens


async def test_an_answer_goes_back_with_its_thought(client: openai.AsyncOpenAI) -> None:
    """As clients send it: the message itself, extra fields included."""
    first = (await client.chat.completions.create(**ASKED)).choices[0].message
    plain = {"role": "assistant", "content": first.content}
    spent = [
        (await client.chat.completions.create(**ASKED | {"messages": [USER, sent, USER], "max_tokens": 1})).usage
        for sent in (first, plain)
    ]
    assert spent[0]
    assert spent[1]
    assert spent[0].prompt_tokens > spent[1].prompt_tokens, "the template writes the thought"


async def test_an_echo_is_content(client: openai.AsyncOpenAI) -> None:
    last: Any = {"role": "assistant", "content": "<think>Aye"}
    choice, _ = await answered(client, messages=[USER, last], extra_body={"echo": True} | BEGUN["extra_body"])
    assert (choice.message.content or "").startswith("<think>Aye")
    assert reasoning(choice.message)


@pytest.mark.parametrize("thoughts", [False, True])
async def test_grpc_has_the_text_as_it_is(client: openai.AsyncOpenAI, scene: Scene, thoughts: bool) -> None:
    stub = scene.stub()
    request = GenerateRequest(base_model=BASE, chat=Chat(messages=[Message(role="user", content="How deep?")]))
    request.chat.thoughts, request.sampling.max_tokens = thoughts, 200
    events = [event async for event in stub.Generate(request)]
    text = "".join(event.chunk.text for event in events)
    assert text == f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
    assert events[0].started.thought == (Started.POSSIBLE if thoughts else Started.NO_THOUGHT)
    assert events[-1].finished.reason == Finished.STOP
    request.sampling.json_object = True
    shaped = "".join([event.chunk.text async for event in stub.Generate(request)])
    assert shaped.lstrip().startswith("<think>" if thoughts else "{")


async def test_the_mark_that_ends_a_thought_is_nothing_to_stop_an_answer_at(
    client: openai.AsyncOpenAI, scene: Scene
) -> None:
    request = GenerateRequest(base_model=BASE, chat=Chat(messages=[Message(role="user", content="How deep?")]))
    request.chat.thoughts, request.sampling.max_tokens = True, 200
    for stop, answer in ((">", ANSWER), ("think", ANSWER), ("9", "It is ")):
        request.sampling.answer_stop[:] = [stop]
        text = "".join([event.chunk.text async for event in scene.stub().Generate(request)])
        assert text == f"<think>\n{THOUGHT}\n</think>\n\n{answer}"


async def test_a_base_without_markers_answers_as_before(scene: Scene, tmp_path: Path) -> None:
    """Its text is its content, whatever it looks like."""
    base = save_base(tmp_path, max_position_embeddings=CONTEXT)
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt: Any = tokenizer.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
    text = "<think>It is</think>\n deep."
    teach(base, [(list(prompt), text)])
    async with asking(scene, base) as client:
        choice, usage = await answered(client)
    assert choice.message.model_dump(exclude_unset=True) == {"role": "assistant", "content": text}
    assert "completion_tokens_details" not in usage.model_dump(exclude_unset=True)
