"""Any JSON that arrives over HTTP becomes a request that gRPC can carry, or one clear error."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_params

from mint_contracts.errors import InvalidRequest
from mint_contracts.sampling_pb2 import GenerateRequest
from mint_gateway.http import openai_request

BASES = {"demo/smollm2"}

_text = st.text(st.characters(), max_size=4)  # including lone surrogates, which JSON can escape
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | _text
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=2)
)
_names = (
    *openai_request.TextRequest.__struct_fields__,
    *openai_request.ChatRequest.__struct_fields__,
    *openai_request.NOT_DONE,
    *openai_request.PASSED_OVER,
)
_messages = st.lists(st.fixed_dictionaries({"role": _text, "content": _text}), max_size=2)
_sound = {"model": st.sampled_from(["demo/smollm2", "demo/pirate"]), "prompt": _text, "messages": _messages}
_bodies = st.fixed_dictionaries(_sound, optional={name: _values for name in _names if name not in _sound})


@given(body=_bodies | st.dictionaries(st.sampled_from(_names), _values, max_size=4))
def test_every_request_is_read_or_refused(body: dict[str, Any]) -> None:
    for read, other in ((_as_texts, "messages"), (_as_chats, "prompt")):
        encoded = json.dumps({name: value for name, value in body.items() if name != other}).encode()
        try:
            requests = read(encoded)
        except InvalidRequest:
            continue
        for request in requests:
            assert GenerateRequest.FromString(request.SerializeToString()) == request


def _as_texts(body: bytes) -> list[GenerateRequest]:
    return openai_request.text_requests(openai_request.read(body, openai_request.TextRequest), BASES)


def _as_chats(body: bytes) -> list[GenerateRequest]:
    return [openai_request.chat_request(openai_request.read(body, openai_request.ChatRequest), BASES)]


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        (openai_request.TextRequest, completion_create_params.CompletionCreateParamsNonStreaming),
        (openai_request.ChatRequest, chat_params.CompletionCreateParamsNonStreaming),
    ],
)
def test_all_that_openais_client_may_send_is_known(kind: type, theirs: type) -> None:
    known = {*kind.__struct_fields__, *openai_request.PASSED_OVER, *openai_request.NOT_DONE}  # type: ignore[attr-defined]
    assert theirs.__annotations__.keys() <= known


@pytest.mark.parametrize(
    ("model", "base", "meant"),
    [
        ("demo/smollm2", "", ("demo/smollm2", "")),
        ("demo/pirate", "", ("", "demo/pirate")),
        ("demo/pirate", "demo/smollm2", ("demo/smollm2", "demo/pirate")),
        ("demo/smollm2", "demo/smollm2", ("demo/smollm2", "")),
        ("demo/smollm2", "demo/other", ("demo/other", "demo/smollm2")),
    ],
)
def test_a_name_is_a_base_or_an_adapter(model: str, base: str, meant: tuple[str, str]) -> None:
    [request] = openai_request.text_requests(
        openai_request.TextRequest(model=model, base_model=base, prompt="Ahoy"), BASES
    )
    assert (request.base_model, request.adapter) == meant


@pytest.mark.parametrize("value", ["0", "-0.0", "1e-46", "1e-400", "1e-12"])
def test_the_likeliest_token_alone_is_asked_for_by_a_top_p_of_nought(value: str) -> None:
    """Also by values that would round to 0 in the proto, where 0 turns the filter off."""
    [request] = _as_texts(f'{{"model": "demo/pirate", "prompt": "Ahoy", "top_p": {value}}}'.encode())
    assert 0 < request.sampling.top_p < 1e-6


@pytest.mark.parametrize(("field", "value"), [("top_p", "-1e-46"), ("repetition_penalty", "1e-46")])
def test_values_out_of_bounds_do_not_turn_a_filter_off(field: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        _as_texts(f'{{"model": "demo/pirate", "prompt": "Ahoy", "{field}": {value}}}'.encode())


@pytest.mark.parametrize(("top_k", "meant"), [(-1, 0), (0, 0), (40, 40)])
def test_top_k_can_be_turned_off_as_in_vllm(top_k: int, meant: int) -> None:
    [request] = _as_texts(json.dumps({"model": "demo/pirate", "prompt": "Ahoy", "top_k": top_k}).encode())
    assert request.sampling.top_k == meant
    with pytest.raises(InvalidRequest, match="top_k"):
        _as_texts(b'{"model": "demo/pirate", "prompt": "Ahoy", "top_k": -2}')


def test_prefixes_are_salted_as_in_vllm() -> None:
    body: dict[str, object] = {"model": "demo/pirate", "prompt": ["Ahoy", "Aye"]}
    assert [each.cache_salt for each in _as_texts(json.dumps(body | {"cache_salt": "acme"}).encode())] == ["acme"] * 2
    assert [each.cache_salt for each in _as_texts(json.dumps(body | {"cache_salt": None}).encode())] == [""] * 2
    with pytest.raises(InvalidRequest, match="cache_salt"):
        _as_texts(json.dumps(body | {"cache_salt": "a" * 257}).encode())


@pytest.mark.parametrize("fields", [{}, {"max_tokens": None}, {"max_tokens": 7}, {"max_completion_tokens": 7}])
def test_a_chat_goes_on_to_its_end_unless_it_says_how_far(fields: dict[str, int | None]) -> None:
    """As with OpenAI; a text completion has the engines' default, as it has a small default there."""
    asked_for = {"model": "demo/pirate"} | fields
    [chat] = _as_chats(json.dumps(asked_for | {"messages": [{"role": "user", "content": "Ahoy"}]}).encode())
    assert chat.sampling.max_tokens == (7 if any(fields.values()) else 2**31 - 1)
    [text] = _as_texts(json.dumps({"model": "demo/pirate", "prompt": "Ahoy"}).encode())
    assert not text.sampling.HasField("max_tokens")


def test_stream_options_have_their_defaults() -> None:
    names = ("include_usage", "continuous_usage_stats", "include_obfuscation")
    for value in (None, {}, dict.fromkeys(names), dict.fromkeys(names, False)):
        body = json.dumps({"model": "demo/pirate", "prompt": "Ahoy", "stream_options": value}).encode()
        options = openai_request.read(body, openai_request.TextRequest).stream_options
        assert not any(getattr(options, name) for name in names)


@pytest.mark.parametrize(
    ("prompt", "meant"),
    [
        ("Ahoy", ["Ahoy"]),
        (["Ahoy"], ["Ahoy"]),
        (["Ahoy", "", "Ahoy"], ["Ahoy", "", "Ahoy"]),
        ([1, 2], [[1, 2]]),
        ([7], [[7]]),
        ([[1, 2]], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (["Ahoy", [1, 2]], ["Ahoy", [1, 2]]),
        ([], [[]]),
    ],
)
def test_a_prompt_is_a_text_or_tokens_and_a_list_of_such_is_several(prompt: Any, meant: list[object]) -> None:
    body = json.dumps({"model": "demo/pirate", "prompt": prompt, "seed": 3, "logprobs": 1, "n": 2}).encode()
    requests = _as_texts(body)
    assert [each.text if each.HasField("text") else list(each.tokens.ids) for each in requests] == meant
    assert {(each.sampling.seed, each.sampling.logprobs, each.sampling.n) for each in requests} == {(3, 1, 2)}


def test_what_each_of_several_prompts_gets_is_bounded_in_all() -> None:
    """One request of 4 MB, biases for 128 prompts, took three gigabytes of a gateway."""
    fields: dict[str, Any] = {"model": "demo/smollm2", "structured_outputs": {"regex": "a" * 200_000}}
    for count in (1, 80):
        asked = fields | {"prompt": ["Ahoy"] * count}
        made = openai_request.text_requests(
            openai_request.read(json.dumps(asked).encode(), openai_request.TextRequest), ()
        )
        assert [len(each.sampling.regex) for each in made] == [200_000] * count
    asked = fields | {"prompt": ["Ahoy"] * 90}
    read = openai_request.read(json.dumps(asked).encode(), openai_request.TextRequest)
    told = r"holds 90 prompts.* 17.17 MiB .* 16 MiB are allowed: send fewer.*, or make those parameters smaller"
    with pytest.raises(InvalidRequest, match=told):
        openai_request.text_requests(read, ())


def test_variables_of_a_chats_template_are_said_as_vllms_clients_say_them() -> None:
    chat: dict[str, Any] = {"model": "demo/pirate", "messages": [{"role": "user", "content": "Ahoy"}]}
    for body in (chat, chat | {"chat_template_kwargs": None}, chat | {"chat_template_kwargs": {}}):
        assert not _as_chats(json.dumps(body).encode())[0].chat.template_variables
    [asked_for] = _as_chats(json.dumps(chat | {"chat_template_kwargs": {"enable_thinking": False}}).encode())
    assert json.loads(asked_for.chat.template_variables) == {"enable_thinking": False}
    for effort in ({"reasoning_effort": "low"}, {"chat_template_kwargs": {"reasoning_effort": "low"}}):
        [asked_for] = _as_chats(json.dumps(chat | effort).encode())
        assert json.loads(asked_for.chat.template_variables) == {"reasoning_effort": "low"}
    for nothing in ("none", None):
        assert not _as_chats(json.dumps(chat | {"reasoning_effort": nothing}).encode())[0].chat.template_variables
    with pytest.raises(InvalidRequest, match="chat_template_kwargs"):
        _as_chats(json.dumps(chat | {"chat_template_kwargs": "enable_thinking"}).encode())
    with pytest.raises(InvalidRequest, match="chat_template_kwargs"):
        _as_texts(json.dumps({"model": "x", "prompt": "Ahoy", "chat_template_kwargs": {"a": 1}}).encode())


def test_what_a_developer_says_is_what_a_system_says() -> None:
    """Templates that do not know the role "developer" would skip the message."""
    messages = [{"role": role, "content": f"as {role}"} for role in ("developer", "system", "user", "tool")]
    [chat] = _as_chats(json.dumps({"model": "demo/pirate", "messages": messages}).encode())
    assert [each.role for each in chat.chat.messages] == ["system", "system", "user", "tool"]


def test_messages_of_every_role_may_have_a_name() -> None:
    """As for agents that talk with one another; whether the name is used is up to the base's template."""
    messages = [{"role": role, "content": "Ahoy", "name": f"the_{role}"} for role in ("system", "user", "assistant")]
    [chat] = _as_chats(json.dumps({"model": "demo/pirate", "messages": messages}).encode())
    assert [each.name for each in chat.chat.messages] == ["the_system", "the_user", "the_assistant"]


def test_penalties_and_biases_are_those_of_openai() -> None:
    body: dict[str, Any] = {"model": "demo/pirate", "messages": [{"role": "user", "content": "Ahoy"}]}
    body |= {
        "logit_bias": {"42": -100},
        "presence_penalty": 0.5,
        "frequency_penalty": -0.25,
        "repetition_penalty": 1.5,
    }
    [request] = _as_chats(json.dumps(body).encode())
    sampling = request.sampling
    assert dict(sampling.logit_bias) == {42: -100.0}
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.5, -0.25, 1.5)


def test_a_schemas_characters_are_told_as_they_are() -> None:
    """Engines limit their number: written as \\uXXXX, each of these would count as six."""
    schema = {"type": "object", "description": "海" * 12_000}
    chat: dict[str, Any] = {"model": "demo/pirate", "messages": [{"role": "user", "content": "Ahoy"}]}
    for fields in (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
        {"structured_outputs": {"json": schema}},
    ):
        [request] = _as_chats(json.dumps(chat | fields).encode())
        assert json.loads(request.sampling.json_schema) == schema
        assert len(request.sampling.json_schema) < 12_100


SCHEMA = {"type": "object", "properties": {"b": {"const": 10**30}, "a": {"enum": ["é", 1.5]}}, "required": ["b"]}
NAMED = {"name": "it", "description": "what it is", "strict": True, "schema": SCHEMA}


@pytest.mark.parametrize(
    ("fields", "shape", "meant"),
    [
        ({}, None, None),
        ({"response_format": None, "structured_outputs": None}, None, None),
        ({"response_format": {"type": "text"}, "structured_outputs": {}}, None, None),
        ({"response_format": {"type": "json_object"}}, "json_object", True),
        ({"structured_outputs": {"json_object": True}}, "json_object", True),
        ({"structured_outputs": {"json_object": False}}, None, None),
        ({"response_format": {"type": "json_schema", "json_schema": NAMED}}, "json_schema", SCHEMA),
        ({"response_format": {"type": "text"}, "structured_outputs": {"json": SCHEMA}}, "json_schema", SCHEMA),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "json_schema", SCHEMA),
        ({"structured_outputs": {"regex": "a|b"}}, "regex", "a|b"),
        ({"structured_outputs": {"regex": ""}}, "regex", ""),
    ],
)
def test_what_an_answer_must_be_is_said_as_openais_and_vllms_clients_say_it(
    fields: dict[str, Any], shape: str | None, meant: Any
) -> None:
    body = {"model": "demo/pirate", "max_tokens": 7} | fields
    [text] = _as_texts(json.dumps(body | {"prompt": "Ahoy"}).encode())
    [chat] = _as_chats(json.dumps(body | {"messages": [{"role": "user", "content": "Ahoy"}]}).encode())
    assert text.sampling == chat.sampling
    assert text.sampling.WhichOneof("shape") == shape
    if shape == "json_schema":
        found = json.loads(text.sampling.json_schema)
        assert found == meant
        assert list(found["properties"]) == ["b", "a"], "an answer has them in this order"
    elif shape is not None:
        assert getattr(text.sampling, shape) == meant
