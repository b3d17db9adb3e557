"""Function calls in a real engine's answers over HTTP, as OpenAI's clients ask for them: streamed and complete."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from openai.types.chat.chat_completion import ChatCompletion, Choice
from transformers import AutoTokenizer

from mint_contracts.sampling_pb2 import Chat, GenerateRequest
from mint_engine.requests.prompts import read_prompt
from mint_gateway.http import openai_request
from tests.engine.running import save_adapter, save_base
from tests.engine.tooled import save_marked, save_tooled, teach
from tests.gateway.asking import CONTEXT, asking
from tests.gateway.scene import BASE, Scene

DEPTH = {
    "$id": "https://charts/depth",
    "type": "object",
    "properties": {"sea": {"$ref": "#/$defs/Sea"}, "deep": {"type": "boolean"}},
    "required": ["sea", "deep"],
    "additionalProperties": False,
    "$defs": {"Sea": {"enum": ["north", "south"]}},
}
TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "depth", "description": "Sounds.", "parameters": DEPTH, "strict": True},
    },
    {"type": "function", "function": {"name": "rest"}},
]
CHOSEN: Any = {"type": "function", "function": {"name": "depth"}}
USER: Any = {"role": "user", "content": "How deep?"}
ASKED: dict[str, Any] = {"model": BASE, "messages": [USER], "max_tokens": 600, "tools": TOOLS}
ARGUMENTS = '{"sea": "north", "deep": true}'
GENTLE, WILD = "demo/gentle", "demo/wild"
CALL = f'<tool_call>\n{{"name": "depth", "arguments": {ARGUMENTS}}}\n</tool_call>'


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that answers a question with two calls, and then repeats the result."""
    base = save_tooled(tmp_path_factory.mktemp("base"), max_position_embeddings=CONTEXT)
    tokenizer = AutoTokenizer.from_pretrained(base)

    def prompt(messages: list[Any]) -> list[int]:
        body = json.dumps(ASKED | {"messages": messages}).encode()
        request: GenerateRequest = openai_request.chat_request(
            openai_request.read(body, openai_request.ChatRequest), ()
        )
        return list(read_prompt(request, tokenizer, 300, CONTEXT))

    call = {"type": "function", "function": {"name": "depth", "arguments": ARGUMENTS}}
    assistant = {"role": "assistant", "content": "I sound.", "tool_calls": [{"id": "a"} | call, {"id": "b"} | call]}
    tool = {"role": "tool", "tool_call_id": "a", "content": "9 fathoms"}
    teach(
        base,
        [
            (prompt([USER]), f"I sound.\n{CALL}\n{CALL}"),
            (prompt([USER, assistant, tool, tool]), "It is 9 fathoms deep."),
        ],
    )
    return base


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One adapter that hardly changes the base's answers, and one with which it makes no calls."""
    folders = {name: tmp_path_factory.mktemp("adapter") for name in (GENTLE, WILD)}
    save_adapter(base, folders[GENTLE], rank=4, lora_alpha=0.001)
    save_adapter(base, folders[WILD], rank=4)
    return folders


@pytest.fixture
async def client(scene: Scene, base: Path, adapters: dict[str, Path]) -> AsyncIterator[openai.AsyncOpenAI]:
    async with asking(scene, base, adapters) as client:
        yield client


async def answered(client: openai.AsyncOpenAI, **options: Any) -> Choice:
    """Return an answer's only choice, after checking that it is the same complete and streamed."""
    headers = {"X-Request-Id": "mine"}  # the same for a conversation, as some clients set it
    answer: ChatCompletion = await client.chat.completions.create(**ASKED | options, extra_headers=headers)
    [whole] = answer.choices
    stream = await client.chat.completions.create(**ASKED | options, extra_headers=headers, stream=True)
    content: str | None = None
    calls: list[dict[str, Any]] = []
    reason = None
    async for piece in stream:
        [choice] = piece.choices
        assert reason is None, "the last piece tells it"
        reason, delta = choice.finish_reason, choice.delta
        content = content if delta.content is None else (content or "") + delta.content
        assert "<" not in (delta.content or "")
        for call in delta.tool_calls or ():
            assert call.index == len(calls), "each comes at once, in order"
            calls.append(call.model_dump(exclude={"index"}))
    assert (content, reason) == (whole.message.content, whole.finish_reason)
    others = [call.model_dump() for call in whole.message.tool_calls or ()]
    assert [call | {"id": ""} for call in calls] == [call | {"id": ""} for call in others]
    assert len({call["id"] for call in calls + others}) == len(calls + others), "no two of them are named alike"
    return whole


def function_calls(choice: Choice) -> list[tuple[str, Any]]:
    found = []
    for call in choice.message.tool_calls or ():
        assert call.type == "function"
        found.append((call.function.name, json.loads(call.function.arguments)))
    return found


async def test_the_model_calls_in_its_own_way_and_answers_with_what_it_was_told(client: openai.AsyncOpenAI) -> None:
    for choice in ({}, {"tool_choice": "auto"}):
        first = await answered(client, temperature=0, **choice)
        assert (first.message.content, first.finish_reason) == ("I sound.", "tool_calls")
        assert function_calls(first) == [("depth", json.loads(ARGUMENTS))] * 2
        calls = first.message.tool_calls or []
        assert len({call.id for call in calls}) == 2
        gave = [{"role": "tool", "tool_call_id": call.id, "content": "9 fathoms"} for call in calls]
        then = await answered(client, temperature=0, messages=[USER, first.message, *gave], **choice)
        assert (then.message.content, then.finish_reason) == ("It is 9 fathoms deep.", "stop")
        assert not then.message.tool_calls


async def test_an_adapter_calls_as_its_base_does(client: openai.AsyncOpenAI) -> None:
    """In its own format if it has learnt one, and constrained to calls if it has not."""
    first = await answered(client, temperature=0, model=GENTLE)
    assert (first.message.content, first.finish_reason) == ("I sound.", "tool_calls")
    assert function_calls(first) == [("depth", json.loads(ARGUMENTS))] * 2
    gave = [{"role": "tool", "tool_call_id": call.id, "content": "9"} for call in first.message.tool_calls or ()]
    response = await client.chat.completions.create(
        **ASKED | {"model": GENTLE, "messages": [USER, first.message, *gave]}
    )
    assert (response.system_fingerprint or "").startswith("sha256:")
    own = await client.chat.completions.create(**ASKED | {"model": WILD}, temperature=0)
    assert own.choices[0].message.content
    assert not own.choices[0].message.tool_calls
    for choice in ("required", CHOSEN):
        held = await answered(client, model=WILD, tool_choice=choice, parallel_tool_calls=False, seed=2)
        [(name, arguments)] = function_calls(held)
        jsonschema.validate(arguments, DEPTH if name == "depth" else {"maxProperties": 0})
    bare, adapted = [
        function_calls(await answered(client, model=model, tool_choice="required", temperature=0))
        for model in (BASE, WILD)
    ]
    assert bare != adapted, "the adapter has chosen"


async def test_one_call_at_most_and_none(client: openai.AsyncOpenAI) -> None:
    one = await answered(client, temperature=0, parallel_tool_calls=False)
    assert (one.message.content, one.finish_reason) == ("I sound.", "tool_calls")
    assert len(function_calls(one)) == 1
    response = await client.chat.completions.create(**ASKED, temperature=0, tool_choice="none")
    assert response.choices[0].message.content == f"I sound.\n{CALL}\n{CALL}"
    assert response.choices[0].finish_reason == "stop"


async def test_a_call_that_is_cut_stays_text(client: openai.AsyncOpenAI) -> None:
    response = await client.chat.completions.create(**ASKED | {"max_tokens": 130}, temperature=0)
    [choice] = response.choices
    assert choice.finish_reason == "length"
    assert len(function_calls(choice)) == 1
    assert (choice.message.content or "").startswith("I sound.<tool_call>")


async def test_log_probabilities_are_told_of_every_token(client: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = ASKED | {"temperature": 0, "logprobs": True}
    whole = (await client.chat.completions.create(**asked)).choices[0].logprobs
    assert whole
    assert whole.content
    stream = await client.chat.completions.create(**asked, stream=True)
    scores = [piece.choices[0].logprobs async for piece in stream if piece.choices[0].logprobs]
    scored = [score for each in scores for score in each.content or ()]
    assert [score.token for score in scored] == [score.token for score in whole.content]
    assert "".join(score.token for score in scored).startswith(f"I sound.\n{CALL}")


async def test_calls_that_must_come_do_whatever_the_model_would_say(client: openai.AsyncOpenAI) -> None:
    for seed, (choice, few) in enumerate([("required", False), (CHOSEN, False), (CHOSEN, True), ("required", False)]):
        first = await answered(client, tool_choice=choice, seed=seed, parallel_tool_calls=few)
        assert (first.message.content, first.finish_reason) == (None, "tool_calls")
        [(name, arguments)] = function_calls(first)
        jsonschema.validate(arguments, DEPTH if name == "depth" else {"maxProperties": 0})
        assert name == "depth" or choice == "required"
        gave = {"role": "tool", "tool_call_id": (first.message.tool_calls or [])[0].id, "content": "9 fathoms"}
        then = await client.chat.completions.create(**ASKED | {"messages": [USER, first.message, gave]})
        assert then.choices[0].finish_reason


async def test_calls_that_must_come_and_are_cut(client: openai.AsyncOpenAI) -> None:
    """Complete calls count; the rest stays text."""
    for seed in range(3):
        cut = await client.chat.completions.create(
            **ASKED | {"max_tokens": 8}, tool_choice=CHOSEN, seed=seed, temperature=0.5
        )
        assert cut.choices[0].finish_reason == "length"
        assert not cut.choices[0].message.tool_calls
        assert "{" in (cut.choices[0].message.content or "")


async def test_a_base_that_writes_calls_in_no_known_form_is_held_to_them(scene: Scene, tmp_path: Path) -> None:
    """And tools are refused for a base whose template does not accept them."""
    base = save_base(tmp_path, max_position_embeddings=CONTEXT)
    tokenizer = AutoTokenizer.from_pretrained(base)
    own = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}" + tokenizer.chat_template
    for template, says in (
        (own, "writes none in a form that is asked for"),
        (tokenizer.chat_template, "does not support them"),
    ):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(base)
        async with AsyncExitStack() as stack, asking(Scene(scene.redis, stack), base) as client:
            with pytest.raises(openai.BadRequestError, match=says):
                await client.chat.completions.create(**ASKED)
            if template == own:
                held = await answered(client, tool_choice="required", parallel_tool_calls=False, seed=1)
                assert len(function_calls(held)) == 1


async def test_a_base_that_writes_calls_as_mistrals_is_asked_for_them(scene: Scene, tmp_path: Path) -> None:
    base = save_base(tmp_path, max_position_embeddings=CONTEXT)
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt = tokenizer.encode("Deep? ")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.tool_calls %}[TOOL_CALLS] [{% for call in m.tool_calls %}"
        "{{ call.function | tojson }}{% endfor %}]{% elif tools %}{{ m.content }}{% endif %}{% endfor %}"
    )
    tokenizer.save_pretrained(base)
    teach(base, [(prompt, f'[{{"name": "depth", "arguments": {ARGUMENTS}}}]')])
    async with asking(scene, base) as client:
        choice = await answered(client, temperature=0, messages=[USER | {"content": "Deep? "}])
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    assert function_calls(choice) == [("depth", json.loads(ARGUMENTS))]


async def test_a_base_calls_with_marks_that_its_tokenizer_has_as_special_tokens(scene: Scene, tmp_path: Path) -> None:
    """A text argument stays one, and one call at most ends no value that contains a mark."""
    note = 'a\n</tool_call>\n"b"'
    call = (
        "\n<tool_call>note\n<arg_key>text</arg_key>\n<arg_value>{}</arg_value>\n"
        "<arg_key>page</arg_key>\n<arg_value>12</arg_value>\n</tool_call>"
    )
    properties = {"text": {"type": "string"}, "page": {"type": "integer"}}
    function = {"name": "note", "parameters": {"type": "object", "properties": properties}}
    asked: dict[str, Any] = {"tools": [{"type": "function", "function": function}], "temperature": 0}
    base = save_marked(tmp_path, max_position_embeddings=CONTEXT)
    tokenizer = AutoTokenizer.from_pretrained(base)
    body = json.dumps(ASKED | asked).encode()
    request = openai_request.chat_request(openai_request.read(body, openai_request.ChatRequest), ())
    prompt = list(read_prompt(request, tokenizer, len(tokenizer), CONTEXT))
    teach(base, [(prompt, "I note." + call.format(note) + call.format("12"))])
    async with asking(scene, base) as client:
        for parallel, texts in ((True, [note, "12"]), (False, [note])):
            choice = await answered(client, **asked, parallel_tool_calls=parallel)
            assert (choice.message.content, choice.finish_reason) == ("I note.", "tool_calls")
            assert function_calls(choice) == [("note", {"text": text, "page": 12}) for text in texts]


@pytest.mark.parametrize(
    ("form", "words", "ids"),
    [
        (Chat.LLAMA, ['{"name": "depth", "para', f'meters": {ARGUMENTS}}}'], r"call_[0-9a-f]{24}"),
        (Chat.MISTRAL, ['[{"name": "dep', f'th", "arguments": {ARGUMENTS}}}', "]"], r"[0-9a-f]{9}"),
    ],
)
async def test_calls_are_read_in_the_form_that_the_engine_tells_of(
    scene: Scene, form: "Chat.Calls.ValueType", words: list[str], ids: str
) -> None:
    engine = await scene.with_engine()
    engine.calls, engine.words = form, words
    async with openai.AsyncOpenAI(base_url=f"{scene.url}/v1", api_key="none", max_retries=0) as client:
        choice = await answered(client)
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    assert function_calls(choice) == [("depth", json.loads(ARGUMENTS))]
    assert re.fullmatch(ids, (choice.message.tool_calls or [])[0].id)


@pytest.mark.parametrize("choice", ["auto", "required", CHOSEN])
async def test_an_answer_of_nothing_is_an_empty_text_that_can_be_sent_back(scene: Scene, choice: Any) -> None:
    engine = await scene.with_engine()
    engine.words = []
    async with openai.AsyncOpenAI(base_url=f"{scene.url}/v1", api_key="none", max_retries=0) as client:
        answer = await answered(client, tool_choice=choice)
        assert (answer.message.content, answer.message.tool_calls, answer.finish_reason) == ("", None, "stop")
        await answered(client, messages=[USER, answer.message, USER])


async def test_completions_of_one_request_call_each_for_itself(scene: Scene) -> None:
    """An engine's pieces may end anywhere, and may contain several calls."""
    engine = await scene.with_engine()
    engine.words = [*(CALL[place : place + 7] for place in range(0, len(CALL), 7)), f"{CALL}{CALL}"]
    asked: dict[str, Any] = ASKED | {"n": 2, "extra_headers": {"X-Request-Id": "mine"}}
    async with openai.AsyncOpenAI(base_url=f"{scene.url}/v1", api_key="none", max_retries=0) as client:
        response = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True)
        deltas = [(piece.choices[0].index, piece.choices[0].delta) async for piece in stream]
    first, second = response.choices
    assert [first.finish_reason, second.finish_reason] == ["tool_calls", "tool_calls"]
    assert function_calls(first) == [("depth", json.loads(ARGUMENTS))] * 3
    assert first.message.content is None
    assert len(function_calls(second)) == 2, "this engine breaks up its first"
    assert second.message.content == "1" + "1".join([*engine.words[:-1], ""])
    for choice in (first, second):
        own = [delta for index, delta in deltas if index == choice.index]
        assert "".join(delta.content or "" for delta in own) == (choice.message.content or "")
        calls = [call for delta in own for call in delta.tool_calls or ()]
        assert [call.index for call in calls] == list(range(len(calls)))
        told_whole = [call.model_dump(exclude={"id"}) for call in choice.message.tool_calls or ()]
        assert [call.model_dump(exclude={"id", "index"}) for call in calls] == told_whole
    ids = {call.id for choice in (first, second) for call in choice.message.tool_calls or ()}
    assert len(ids | {call.id for _, delta in deltas for call in delta.tool_calls or ()}) == 10
