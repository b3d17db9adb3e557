"""OpenAI's tools are converted to gRPC's functions, a format in which to read calls, and a schema to enforce."""

import json
from typing import Any

import jsonschema
import pytest
from openai.types.chat.parsed_chat_completion import ParsedChatCompletionMessage
from openai.types.chat.parsed_function_tool_call import ParsedFunction, ParsedFunctionToolCall

from mint_contracts.errors import InvalidRequest
from mint_contracts.sampling_pb2 import Chat, GenerateRequest, ToolCall
from mint_contracts.transport import MOST_STOPS
from mint_gateway.http import openai_request
from mint_gateway.http.calls import Call, Leading, Listed, Reading, Single
from mint_gateway.http.marked import Marked

CHART = {"$ref": "#/$defs/Chart"}
PLACED = {
    "type": "object",
    "properties": {"chart": CHART, "$ref": {"type": "null"}},
    "required": ["chart"],
    "$defs": {
        "Chart": {"type": "object", "properties": {"on": CHART, "no": {"type": "integer"}}, "required": ["no"]}
    },
}
SAIL = {"name": "sail", "description": "Sails there.", "parameters": PLACED, "strict": True}
REST = {"name": "rest"}
TOOLS = [{"type": "function", "function": SAIL}, {"type": "function", "function": REST}]
SAY = {"model": "demo/pirate", "messages": [{"role": "user", "content": "Ahoy"}]}
SAID = {"type": "text", "text": "I sail."}
CHOSEN = {"type": "function", "function": {"name": "sail"}}


def read(**fields: Any) -> tuple[openai_request.ChatRequest, GenerateRequest]:
    wanted = openai_request.read(json.dumps(SAY | fields).encode(), openai_request.ChatRequest)
    return wanted, openai_request.chat_request(wanted, ())


def reading_of(wanted: openai_request.ChatRequest, form: "Chat.Calls.ValueType") -> Reading | None:
    tools = wanted.called()
    return tools.named.reading(form, tools.functions_json)


def test_with_tool_choice_auto_calls_are_written_and_read_in_hermes_format() -> None:
    for fields in ({}, {"tool_choice": "auto"}, {"tool_choice": None}, {"parallel_tool_calls": True}):
        wanted, request = read(tools=TOOLS, **fields)
        [sail, rest] = json.loads(request.chat.tools)
        meant = {name: value for name, value in SAIL.items() if name != "strict"}
        assert sail == {"type": "function", "function": meant}
        assert rest["function"]["parameters"]["properties"] == {}
        assert request.chat.calls == Chat.HERMES
        assert {Chat.CALLS_UNSPECIFIED, request.chat.calls, *request.chat.or_calls} == {*Chat.Calls.values()}
        assert request.sampling.WhichOneof("shape") is None
        assert not request.sampling.stop
        for form, reader in ((0, Marked), (Chat.GLM, Marked), (Chat.LLAMA, Leading), (Chat.MISTRAL, Leading)):
            reading = reading_of(wanted, Chat.Calls.ValueType(form))
            assert reading
            assert isinstance(reading.reader(), reader)
            assert reading.short_ids == (form == Chat.MISTRAL)


def test_one_call_at_most_ends_the_answer_with_it() -> None:
    """If the model does not end the line and continues, what follows the call is dropped."""
    wanted, request = read(tools=TOOLS, parallel_tool_calls=False, stop="\n\n")
    assert (list(request.sampling.stop), list(request.sampling.answer_stop)) == (["\n\n"], ["\n</tool_call>"])
    reading, rest = reading_of(wanted, Chat.HERMES), '<tool_call>{"name": "rest", "arguments": {}}</tool_call>'
    assert reading
    reader = reading.reader()
    assert reader.push(f"I rest. {rest}{rest}") == ["I rest.", Call("rest", "{}")]
    assert [*reader.push(f"So. {rest}"), *reader.finish()] == []


def test_one_call_at_most_takes_none_of_the_stops_that_a_client_may_send() -> None:
    stops = [f"end {number}" for number in range(MOST_STOPS)]
    wanted, request = read(tools=TOOLS, parallel_tool_calls=False, stop=stops)
    assert (list(request.sampling.stop), list(request.sampling.answer_stop)) == (stops, [])
    reading, rest = reading_of(wanted, Chat.HERMES), '<tool_call>{"name": "rest", "arguments": {}}\n</tool_call>'
    assert reading
    assert reading.reader().push(f"{rest}{rest} So.") == [Call("rest", "{}")]


def test_tool_choice_none_calls_none_of_the_given_tools() -> None:
    wanted, request = read(tools=TOOLS, tool_choice="none", response_format={"type": "json_object"})
    assert len(json.loads(request.chat.tools)) == 2
    assert (request.chat.calls, reading_of(wanted, Chat.HERMES)) == (Chat.CALLS_UNSPECIFIED, None)
    assert request.sampling.json_object


@pytest.mark.parametrize("fields", [{}, {"tools": []}, {"tools": None}, {"tool_choice": "auto", "tools": []}])
def test_without_tools_nothing_is_called(fields: dict[str, Any]) -> None:
    wanted, request = read(**fields, parallel_tool_calls=False)
    assert request == read()[1]
    assert reading_of(wanted, Chat.HERMES) is None


@pytest.mark.parametrize(
    ("calls", "parallel", "sound"),
    [
        ([{"name": "rest", "parameters": {}}], False, True),
        ([{"name": "sail", "parameters": {"chart": {"no": 1, "on": {"no": 2}}}}], False, True),
        ([{"name": "rest", "parameters": {}}] * 2, True, True),
        ([{"name": "rest", "parameters": {}}] * 2, False, False),
        ([], True, False),
        ([{"name": "rest", "parameters": {"a": 1}}], True, False),
        ([{"name": "sail", "parameters": {"chart": {"no": 1, "on": {}}}}], True, False),
        ([{"name": "sail", "parameters": {}}], True, False),
        ([{"name": "rest"}], True, False),
        ([{"name": "swim", "parameters": {}}], True, False),
        ([{"name": "rest", "parameters": {}, "why": ""}], True, False),
    ],
)
def test_calls_that_must_come_are_held_to_an_array_of_them(calls: Any, parallel: bool, sound: bool) -> None:
    wanted, request = read(tools=TOOLS, tool_choice="required", parallel_tool_calls=parallel)
    validator = jsonschema.Draft202012Validator(json.loads(request.sampling.json_schema))
    assert validator.is_valid(calls) == sound
    assert request.chat.calls == Chat.CALLS_UNSPECIFIED, "whatever form the base's template has"
    reading = reading_of(wanted, Chat.CALLS_UNSPECIFIED)
    assert reading
    assert isinstance(reading.reader(), Listed)


def test_one_function_that_must_be_called_is_held_to_its_arguments() -> None:
    for parallel in (True, False):
        wanted, request = read(tools=TOOLS, tool_choice=CHOSEN, parallel_tool_calls=parallel)
        assert json.loads(request.sampling.json_schema) == PLACED
        assert len(json.loads(request.chat.tools)) == 2
        reading = reading_of(wanted, Chat.CALLS_UNSPECIFIED)
        assert reading
        assert isinstance(reading.reader(), Single)


def test_turns_with_calls_and_what_they_gave() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "sail", "arguments": '{"chart": {"no": 1}}'}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []}
    gave = {"role": "tool", "tool_call_id": "call_1", "name": "sail", "content": [{"type": "text", "text": "done"}]}
    _, request = read(messages=[*SAY["messages"], turn, gave])
    [_, assistant, tool] = request.chat.messages
    assert list(assistant.tool_calls) == [ToolCall(id="call_1", name="sail", arguments='{"chart": {"no": 1}}')]
    assert (tool.role, tool.content, tool.tool_call_id, tool.name) == ("tool", "done", "call_1", "sail")


@pytest.mark.parametrize("fields", [{}, {"content": None}, {"content": None, "tool_calls": []}, {"content": []}])
def test_an_assistant_may_have_said_nothing(fields: dict[str, Any]) -> None:
    [_, assistant] = read(messages=[*SAY["messages"], {"role": "assistant"} | fields])[1].chat.messages
    assert (assistant.content, list(assistant.tool_calls)) == ("", [])


@pytest.mark.parametrize(
    "added",
    [
        {"refusal": None, "audio": None, "function_call": None, "annotations": [], "name": None},
        {"refusal": "", "annotations": [{"type": "url_citation"}], "prefix": False},
        {"parsed": {"no": 1}},
        {"reasoning_content": None, "reasoning": {"effort": "low"}, "thinking_blocks": []},
        {"reasoning_content": "", "provider_specific_fields": {"a": 1}},
        {"audio": {"id": "audio_1", "transcript": "I sail."}},
        {"cache_control": {"type": "ephemeral"}},
    ],
)
def test_answers_with_fields_added_by_clients_can_be_sent_back(added: dict[str, Any]) -> None:
    function = {"name": "sail", "arguments": '{"chart": {"no": 1}}'}
    call = {"id": "call_1", "type": "function", "function": function}
    part = {"type": "text", "text": "I sail."}
    message = {"role": "assistant", "content": [part], "tool_calls": [call]}
    own = {"index": 0, "function": function | {"parsed_arguments": {"chart": {"no": 1}}}}
    back = message | {"tool_calls": [call | own], "content": [part | {"cache_control": {"type": "ephemeral"}}]}
    assert read(messages=[*SAY["messages"], back | added])[1] == read(messages=[*SAY["messages"], message])[1]


@pytest.mark.parametrize(
    "told",
    [
        {"reasoning": "It is deep."},
        {"reasoning_content": "It is deep."},
        {"reasoning": None, "reasoning_content": "It is deep."},
        {"reasoning": "It is deep.", "reasoning_content": "It is deep."},
        {"content": [{"type": "thinking", "thinking": "It is deep."}, {"type": "text", "text": "I sail."}]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "It is deep."}]}, SAID]},
    ],
)
def test_an_assistants_reasoning_goes_to_the_template_beside_its_content(told: dict[str, Any]) -> None:
    said = {"role": "assistant", "content": "I sail."} | told
    [_, assistant] = read(messages=[*SAY["messages"], said])[1].chat.messages
    assert (assistant.content, assistant.reasoning) == ("I sail.", "It is deep.")


def test_reasoning_is_passed_on_only_for_assistants() -> None:
    [user] = read(messages=[{"role": "user", "content": "Ahoy", "reasoning": "It is deep."}])[1].chat.messages
    assert (user.content, user.reasoning) == ("Ahoy", "")


@pytest.mark.parametrize("kind", ["text", "input_text", "output_text"])
def test_pieces_of_text_are_such_by_whichever_api_names_them(kind: str) -> None:
    parts = [{"type": kind, "text": "Aye.", "annotations": []}, SAID]
    [_, assistant] = read(messages=[*SAY["messages"], {"role": "assistant", "content": parts}])[1].chat.messages
    assert assistant.content == "Aye.\nI sail."


def test_the_results_of_a_tool_do_not_run_into_one_another() -> None:
    parts = [{"type": "text", "text": depth} for depth in ("12", "34")]
    [_, tool] = read(messages=[*SAY["messages"], {"role": "tool", "content": parts}])[1].chat.messages
    assert tool.content == "12\n34"


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        ({}, ""),
        ({"arguments": None}, ""),
        ({"arguments": ""}, ""),
        ({"arguments": "null"}, ""),
        ({"arguments": '{"chart": {"no'}, ""),
        ({"arguments": '{"chart": "\\u00'}, ""),
        ({"arguments": '{"no": 1}'}, '{"no": 1}'),
        ({"arguments": {"no": 1, "é": []}}, '{"no":1,"é":[]}'),
    ],
    ids=["none", "null", "empty", "null as text", "cut", "cut in a character", "text", "object"],
)
def test_a_past_calls_arguments_are_an_object_by_whichever_way_it_is_told(told: dict[str, Any], meant: str) -> None:
    """A call that was cut short has no arguments: it is history that no client can change."""
    call = {"id": "1", "type": "function", "function": {"name": "sail"} | told}
    [_, assistant] = read(messages=[*SAY["messages"], {"role": "assistant", "tool_calls": [call]}])[1].chat.messages
    assert [each.arguments for each in assistant.tool_calls] == [meant]


def test_a_parsed_answer_of_openais_own_client_is_sent_back() -> None:
    """As in OpenAI's guide to functions: `messages.append(completion.choices[0].message)`."""
    function = ParsedFunction(name="sail", arguments="{}", parsed_arguments={})
    call = ParsedFunctionToolCall(id="call_1", type="function", function=function)
    message = ParsedChatCompletionMessage[dict[str, Any]](role="assistant", content="", parsed={}, tool_calls=[call])
    [_, assistant] = read(messages=[*SAY["messages"], message.model_dump()])[1].chat.messages
    assert list(assistant.tool_calls) == [ToolCall(id="call_1", name="sail", arguments="{}")]


@pytest.mark.parametrize(
    "fields",
    [
        {"content": None, "refusal": "I can't."},
        {"content": "", "refusal": "I can't."},
        {"content": [{"type": "refusal", "refusal": "I can't."}]},
    ],
)
def test_a_refusal_is_what_the_assistant_said(fields: dict[str, Any]) -> None:
    [_, assistant] = read(messages=[*SAY["messages"], {"role": "assistant"} | fields])[1].chat.messages
    assert assistant.content == "I can't."


_CALL = {"id": "1", "type": "function", "function": {"name": "sail", "arguments": "{}"}}
_NO_ARGUMENTS: tuple[Any, ...] = (3, [], True, "[" * 5000)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tools": [{}]}, r"missing required field `function` - at `\$\.tools\[0\]`"),
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, r"'custom' - at `\$\.tools\[0\]\.type`"),
        ({"tools": [{"type": "function", "function": {"name": "two words"}}]}, r"tools\[0\]\.function\.name"),
        ({"tools": [{"type": "function", "function": {"name": "a\n"}}]}, r"tools\[0\]\.function\.name"),
        ({"tools": [TOOLS[0], *TOOLS]}, r"tools\[1\]: has the name of another tool, sail"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]},
            r'tools\[0\]\.function\.parameters: must be a schema of type "object"',
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"$ref": "a://[b#c"}}}]}
            | {"tool_choice": "required"},
            r"tools: have an \$id or a \$ref that is not a valid URI",
        ),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, r"'allowed_tools' - at `\$\.tool_choice\.type`"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "swim"}}},
            "tool_choice: names 'swim', which is not one of the tools",
        ),
        ({"tool_choice": "required"}, "tool_choice: is required, but there are no tools"),
        *[
            ({"tools": TOOLS, "tool_choice": choice} | form, "tools: cannot be combined with response_format")
            for choice in ("required", "auto", CHOSEN)
            for form in ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"regex": "a"}})
        ],
        ({"functions": [REST]}, "functions: is not supported"),
        (
            {"messages": [{"role": "user", "content": "a", "tool_calls": [_CALL]}]},
            "only an assistant's message may have them",
        ),
        ({"messages": [{"role": "user", "content": "a", "tool_call_id": "1"}]}, r"messages\[0\]\.tool_call_id"),
        ({"messages": [{"role": "user", "tool_calls": []}]}, r"messages\[0\]\.content: is missing"),
        ({"messages": [{"role": "tool", "refusal": "no"}]}, r"messages\[0\]\.content: is missing"),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}, "content": ""}]}, r"messages\[0\]\.audio"),
        (
            {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "a"}]}]},
            r"messages\[0\]\.content\[0\]: is of type 'thinking'; only text",
        ),
        *(
            (
                {
                    "messages": [
                        {"role": "assistant", "tool_calls": [_CALL | {"function": {"name": "a", "arguments": a}}]}
                    ]
                },
                r"messages\[0\]\.tool_calls\[0\]\.function\.arguments",
            )
            for a in _NO_ARGUMENTS
        ),
        ({"messages": [{"role": "assistant", "function_call": REST, "content": ""}]}, r"\[0\]\.function_call"),
        *(
            ({"messages": [*SAY["messages"], {"role": "assistant", "content": "So", name: True}]}, says)
            for name in ("prefix", "partial")
            for says in [rf"messages\[1\]\.{name}: is not supported"]
        ),
        (
            {
                "tools": [{"type": "function", "function": REST | {"description": "a" * 65_536}}],
                "tool_choice": "required",
            },
            r"tools: have 65\d{3} characters; at most 65536 are accepted",
        ),
    ],
)
def test_unsupported_or_contradictory_fields_are_one_clear_error(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        read(**fields)


def test_text_completions_refuse_tools() -> None:
    body = {"model": "demo/pirate", "prompt": "Ahoy"}
    for fields in ({"tools": TOOLS}, {"tool_choice": "required"}, {"tool_choice": CHOSEN}):
        with pytest.raises(InvalidRequest, match="is not supported; leave it out"):
            openai_request.read(json.dumps(body | fields).encode(), openai_request.TextRequest)
    openai_request.read(
        json.dumps(body | {"tools": [], "parallel_tool_calls": False}).encode(), openai_request.TextRequest
    )
