"""Answers in channels, as gpt-oss', from a real engine over HTTP, as OpenAI's clients get them from vLLM."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat.chat_completion import Choice
from transformers import AutoTokenizer

from mint_contracts.sampling_pb2 import Chat, Finished, GenerateRequest, Message, Started
from mint_engine.requests.prompts import read_prompt
from mint_gateway.http import openai_request
from tests.engine.channelled import save_channelled
from tests.engine.tooled import teach
from tests.gateway.asking import CONTEXT, asking
from tests.gateway.scene import BASE, Scene

USER: Any = {"role": "user", "content": "How deep?"}
ASKED: dict[str, Any] = {"model": BASE, "messages": [USER], "max_tokens": 300, "temperature": 0}
DEPTH = {
    "type": "object",
    "properties": {"sea": {"const": "north"}},
    "required": ["sea"],
    "additionalProperties": False,
}
TOOLS: Any = [{"type": "function", "function": {"name": "depth", "description": "Looks.", "parameters": DEPTH}}]
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
NEXT = "<|end|><|start|>assistant"
CALLING = (
    f"{ANALYSIS}I look.{NEXT}<|channel|>commentary<|message|>A moment.{NEXT}<|channel|>commentary "
    'to=functions.depth <|constrain|>json<|message|>{"sea": "north"}<|call|>'
)
TOLD: Any = {
    "role": "assistant",
    "reasoning": "I look.",
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "depth", "arguments": '{"sea": "north"}'}}
    ],
}
RESULT: Any = {"role": "tool", "tool_call_id": "call_1", "content": "9"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = save_channelled(tmp_path_factory.mktemp("base"), max_position_embeddings=CONTEXT)
    tokenizer = AutoTokenizer.from_pretrained(base)

    def prompt(**fields: Any) -> list[int]:
        request: GenerateRequest = openai_request.chat_request(
            openai_request.read(json.dumps(ASKED | fields).encode(), openai_request.ChatRequest), ()
        )
        return list(read_prompt(request, tokenizer, len(tokenizer), CONTEXT))

    teach(
        base,
        [
            (prompt(), f"{ANALYSIS}Is it?{NEXT}{FINAL}It is."),
            (
                prompt(tools=TOOLS),
                CALLING,
            ),
            (prompt(messages=[USER, TOLD, RESULT]), f"{FINAL}It is 9."),
        ],
    )
    return base


@pytest.fixture
async def client(scene: Scene, base: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    async with asking(scene, base) as client:
        yield client


def thinking(choice: Choice) -> str | None:
    found: str | None = getattr(choice.message, "reasoning", None)
    return found


async def answered(client: openai.AsyncOpenAI, **options: Any) -> tuple[Choice, int]:
    """Return an answer's only choice and its thought's tokens, after checking that it is the same streamed."""
    answer = await client.chat.completions.create(**ASKED | options)
    [whole] = answer.choices
    told: dict[str, str | None] = {"reasoning": None, "content": None}
    reason, calls, spent = None, list[tuple[str | None, str | None]](), None
    stream = await client.chat.completions.create(
        **ASKED | options, stream=True, stream_options={"include_usage": True}
    )
    async for piece in stream:
        spent = piece.usage or spent
        for choice in piece.choices:
            reason = choice.finish_reason or reason
            for name in told:
                text = getattr(choice.delta, name, None)
                told[name] = told[name] if text is None else (told[name] or "") + text
            functions = [call.function for call in choice.delta.tool_calls or () if call.function]
            calls += [(function.name, function.arguments) for function in functions]
    assert (told, reason) == (
        {"reasoning": thinking(whole), "content": whole.message.content},
        whole.finish_reason,
    )
    functions = [call.function for call in whole.message.tool_calls or () if call.type == "function"]
    assert calls == [(function.name, function.arguments) for function in functions]
    assert answer.usage
    assert spent
    assert answer.usage.completion_tokens == spent.completion_tokens
    details = answer.usage.completion_tokens_details
    assert details
    assert details == spent.completion_tokens_details
    assert details.reasoning_tokens is not None
    return whole, details.reasoning_tokens


async def test_a_thought_comes_apart_from_the_answer(client: openai.AsyncOpenAI, base: Path) -> None:
    choice, tokens = await answered(client)
    assert (thinking(choice), choice.message.content, choice.finish_reason) == ("Is it?", "It is.", "stop")
    assert tokens == len(AutoTokenizer.from_pretrained(base).encode(f"{ANALYSIS}Is it?<|end|>"))
    choice, hidden = await answered(client, extra_body={"include_reasoning": False})
    assert (thinking(choice), choice.message.content, hidden) == (None, "It is.", tokens)
    choice, _ = await answered(client, stop=["<|end|>", "?<|"])
    assert (thinking(choice), choice.message.content) == ("Is it?", "It is."), "markers are no text to stop at"
    choice, _ = await answered(client, stop=[" is"])
    assert (thinking(choice), choice.message.content, choice.finish_reason) == ("Is it?", "It", "stop")
    choice, _ = await answered(client, max_tokens=tokens - 2)
    assert (choice.message.content, choice.finish_reason) == (None, "length")
    assert "Is it?".startswith(thinking(choice) or "-")


async def test_a_call_ends_the_answer_and_its_result_goes_back(client: openai.AsyncOpenAI) -> None:
    choice, _ = await answered(client, tools=TOOLS)
    assert (thinking(choice), choice.message.content) == ("I look.", "A moment.")
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("depth", {"sea": "north"})
    choice, tokens = await answered(client, messages=[USER, TOLD, RESULT])
    assert (thinking(choice), choice.message.content, tokens) == (None, "It is 9.", 0)
    back = {"id": call.id, "type": "function", "function": call.function.model_dump()}
    turn = choice.message.model_dump(exclude_none=True) | {"tool_calls": [back]}
    await answered(client, messages=[USER, turn, RESULT | {"tool_call_id": call.id}], max_tokens=3)


async def test_a_call_that_is_cut_off_before_its_arguments_is_none(client: openai.AsyncOpenAI, base: Path) -> None:
    until_its_arguments = CALLING[: CALLING.index('{"sea"')]
    most = len(AutoTokenizer.from_pretrained(base).encode(until_its_arguments, add_special_tokens=False))
    choice, _ = await answered(client, tools=TOOLS, max_tokens=most)
    assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)
    assert choice.message.content == "A moment."


async def test_a_call_that_is_not_offered_stays_text(client: openai.AsyncOpenAI) -> None:
    choice, _ = await answered(client, tools=TOOLS, tool_choice="none")
    assert choice.message.content == 'A moment.\n{"sea": "north"}'
    assert choice.finish_reason == "stop"


async def test_only_the_final_message_is_constrained(client: openai.AsyncOpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "depth", "schema": DEPTH}}
    choice, tokens = await answered(client, response_format=form)
    assert (thinking(choice), choice.finish_reason) == ("Is it?", "stop")
    assert json.loads(choice.message.content or "") == {"sea": "north"}
    assert tokens
    for chosen in ("required", {"type": "function", "function": {"name": "depth"}}):
        choice, _ = await answered(client, tools=TOOLS, tool_choice=chosen, parallel_tool_calls=False)
        [call] = choice.message.tool_calls or []
        assert call.type == "function"
        assert json.loads(call.function.arguments) == {"sea": "north"}
        assert (thinking(choice) or "").startswith("I look.")
        assert choice.message.content is None


@pytest.mark.parametrize("channels", [False, True])
async def test_grpc_has_the_markers_if_it_asks_for_them(
    client: openai.AsyncOpenAI, scene: Scene, channels: bool
) -> None:
    request = GenerateRequest(base_model=BASE, chat=Chat(messages=[Message(role="user", content="How deep?")]))
    request.chat.channels, request.sampling.max_tokens = channels, 200
    events = [event async for event in scene.stub().Generate(request)]
    text = "".join(event.chunk.text for event in events)
    markers = [at for event in events for at in event.chunk.markers]
    assert events[0].started.thought == (Started.CHANNELS if channels else Started.NO_THOUGHT)
    assert events[-1].finished.reason == Finished.STOP
    if channels:
        assert text == f"{ANALYSIS}Is it?{NEXT}{FINAL}It is."
        assert markers == [at for at in range(len(text)) if text.startswith("<|", at)]
    else:
        assert (text, markers) == ("analysisIs it?assistantfinalIt is.", [])
