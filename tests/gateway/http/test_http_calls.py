"""The calls read from an answer do not depend on how its text is cut, and none of the other text is lost."""

import json
import re
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mint_contracts.sampling_pb2 import Chat
from mint_gateway.http.calls import Call, Listed, Once, Reader, Single
from mint_gateway.http.runs import Runs
from mint_gateway.http.tools import Function, Tools
from tests.gateway.call_readers import cut, read

SEA = Call("sea", '{"deep": true}')
TAGGED = '<tool_call>\n{"name": "sea", "arguments": {"deep": true}}\n</tool_call>'


def tagged() -> Reader:
    return form(Chat.HERMES)


def llama() -> Reader:
    return form(Chat.LLAMA)


def mistral() -> Reader:
    return form(Chat.MISTRAL)


def form(of: "Chat.Calls.ValueType") -> Reader:
    tools = Tools([Function("sea"), Function("ship")], "auto")
    reading = tools.reading(of, tools.functions_json)
    assert reading
    return reading.reader()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("The sea is deep.\n", ["The sea is deep.\n"]),
        (TAGGED, [SEA]),
        (f"  \n{TAGGED}\n", [SEA]),
        (f"I look.\n\n{TAGGED}\n{TAGGED}", ["I look.", SEA, SEA]),
        (f"{TAGGED} and {TAGGED} so.\n", [SEA, "and", SEA, "so.\n"]),
        (TAGGED.replace("\n", ""), [SEA]),
        ('<tool_call>{"arguments": {}, "name": "ship", "id": 3}</tool_call>', [Call("ship", "{}")]),
        ('<tool_call>{"name": "ship"}</tool_call>', [Call("ship", "{}")]),
        # A JSON string stays as the model wrote it, as does a number.
        (
            '<tool_call>{"name": "sea", "arguments": {"a": "\\u00e9<tool_call>é", "b": 1.50}}</tool_call>',
            [Call("sea", '{"a": "\\u00e9<tool_call>é", "b": 1.50}')],
        ),
        # A string may contain tags, and text that looks like a call.
        (
            '<tool_call>{"name": "sea", "arguments": {"a": "}</tool_call>"}}</tool_call> so',
            [Call("sea", '{"a": "}</tool_call>"}'), "so"],
        ),
        (
            f"<tool_call>{json.dumps({'name': 'moon', 'arguments': {'a': TAGGED}})}</tool_call>",
            [f"<tool_call>{json.dumps({'name': 'moon', 'arguments': {'a': TAGGED}})}</tool_call>"],
        ),
        # An unterminated string does not hide the calls after it.
        (f'<tool_call>{{"name": "sea}}</tool_call>\n{TAGGED}', ['<tool_call>{"name": "sea}</tool_call>', SEA]),
        (f'<tool_call>{{"name": "sea}}</tool_call>{TAGGED}', ['<tool_call>{"name": "sea}</tool_call>', SEA]),
        # The closing tag may be missing.
        (f"a {TAGGED.removesuffix('</tool_call>')}", ["a", SEA]),
        # Text that is not a call stays.
        *[
            (f"a {malformed} b", [f"a {malformed} b"])
            for malformed in (
                "<tool_call></tool_call>",
                "<tool_call>{'name': 'sea'}</tool_call>",
                '<tool_call>{"name": "moon", "arguments": {}}</tool_call>',
                '<tool_call>{"name": "sea", "arguments": []}</tool_call>',
                '<tool_call>{"name": "sea", "arguments": "{}"}</tool_call>',
                '<tool_call>{"name": "sea", "arguments": {"a": "\\ud800"}}</tool_call>',
                f'<tool_call>{{"name": "sea", "arguments": {"[" * 5000}}}</tool_call>',
                "</tool_call>",
                "<tool_call",
                "<tool_call>",
            )
        ],
        (f"<tool_call>{{}}</tool_call>\n{TAGGED}", ["<tool_call>{}</tool_call>", SEA]),
        (f"<tool_call>{TAGGED}", [f"<tool_call>{TAGGED}"]),
    ],
)
def test_hermes_calls(text: str, parts: list[str | Call]) -> None:
    assert read(tagged(), [text]) == parts
    assert read(tagged(), list(text)) == parts


_SEA = '{"name": "sea", "parameters": {"deep": true}}'
_SHIP = '{"name": "ship", "arguments": {"a": "]};[\\"<"}, "id": "123456789"}'


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (_SEA, [SEA]),
        (f" \n<|python_tag|> {_SEA}\n", [SEA]),
        (f"{_SEA}; {_SEA};", [SEA, SEA]),
        (f"{_SEA}\n\nThat is all; or not.", [SEA, "That is all; or not."]),
        *[
            (other, [other])
            for other in (
                f"I look. {_SEA}",
                '{"name": "moon", "parameters": {}}',
                '{"name": "sea"}',
                _SEA.replace("parameters", "arguments"),
                '{"deep": true} ',
                _SEA[:-1],
                "<|python_tag|>sea.call(deep=True)",
                "<|python",
                " {",
                "{'name'}",
                f"[{_SEA}]",
            )
        ],
    ],
)
def test_llamas_calls(text: str, parts: list[str | Call]) -> None:
    assert read(llama(), [text]) == parts
    assert read(llama(), list(text)) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (f"[TOOL_CALLS] [{_SHIP}]", [Call("ship", '{"a": "]};[\\"<"}')]),
        (f" [{_SHIP}, {_SHIP}] ", [Call("ship", '{"a": "]};[\\"<"}')] * 2),
        (f"[{_SHIP}", [Call("ship", '{"a": "]};[\\"<"}')]),
        (f"[{_SHIP}]\nThere.", [Call("ship", '{"a": "]};[\\"<"}'), "There."]),
        *[
            (other, [other])
            for other in (
                _SHIP,
                f"[TOOL_CALLS]{_SHIP}",
                "[1, 2]",
                "[]",
                "[TOOL",
                f"Well: [{_SHIP}]",
                f"[{_SEA}]",
                "[TOOL_CALLS]ship[ARGS]{}",
                f"[{_SHIP[:-1]}",
            )
        ],
    ],
)
def test_mistrals_calls(text: str, parts: list[str | Call]) -> None:
    assert read(mistral(), [text]) == parts
    assert read(mistral(), list(text)) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('[{"name": "sea", "parameters": {"deep": true}}]', [SEA]),
        (
            ' [{"parameters": {"a": "]}\\"\\\\"}, "name": "ship"},{"name": "sea", "parameters": {"deep": true}} ]\n',
            [Call("ship", '{"a": "]}\\"\\\\"}'), SEA],
        ),
        ("", []),
        ("[", []),
        ('[{"name": "sea", "par', ['[{"name": "sea", "par']),
        ('[{"name": "sea", "parameters": {"deep": true}}, {"na', [SEA]),
        ('[{"name": "sea", "parameters": {"deep": true}},\n', [SEA]),
        ("I can't ]}.", ["I can't ]}."]),
    ],
)
def test_calls_in_an_array(text: str, parts: list[str | Call]) -> None:
    assert read(Listed(), [text]) == parts
    assert read(Listed(), list(text)) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [(' {"deep": true}\n', [SEA]), ('{"deep": tr', ['{"deep": tr']), ("", []), ("[]", ["[]"])],
)
def test_the_arguments_of_one_function(text: str, parts: list[str | Call]) -> None:
    assert read(Single("sea"), [text]) == parts
    assert read(Single("sea"), list(text)) == parts


_words = st.sampled_from(
    [
        *'<>{}[]" \n\\,',
        "<tool_call>",
        "</tool_call>",
        "<tool",
        "_call>",
        "sea",
        TAGGED,
        '{"name": "sea", "parameters": {}}',
        '[{"name": "sea", "arguments": {}}',
        "[TOOL_CALLS]",
        "<|python_tag|>",
    ]
)
_texts = st.lists(_words | st.characters(exclude_categories=["Cs"]), max_size=4).map("".join)
_arguments = st.dictionaries(
    _texts,
    st.recursive(st.none() | st.integers() | _texts, lambda inner: st.lists(inner, max_size=2), max_leaves=4),
    max_size=3,
)
_calls = st.lists(st.tuples(st.sampled_from(["sea", "ship"]), _arguments), min_size=1, max_size=3)
_cuts = st.lists(st.integers(0, 200), max_size=8)


@given(
    made=st.sampled_from([tagged, llama, mistral, lambda: Once(mistral()), Listed, lambda: Single("sea")]),
    text=st.lists(_words, max_size=12).map("".join),
    cuts=_cuts,
)
@example(made=tagged, text=f"a \n{TAGGED}", cuts=[2])
def test_calls_are_read_alike_however_an_answer_is_cut(
    made: Callable[[], Reader], text: str, cuts: list[int]
) -> None:
    assert read(made(), cut(text, cuts)) == read(made(), [text])


@given(calls=_calls, before=st.text(), escaped=st.booleans(), cuts=_cuts)
@example(calls=[("sea", {"a": "</tool_call>\n<tool_call>"})], before="", escaped=False, cuts=[])
def test_calls_that_were_written_are_read_again(
    calls: list[tuple[str, dict[str, object]]], before: str, escaped: bool, cuts: list[int]
) -> None:
    """Whatever their arguments contain, including tags."""
    texts = [(name, json.dumps(arguments, ensure_ascii=escaped)) for name, arguments in calls]
    written = [f'<tool_call>\n{{"name": "{name}", "arguments": {text}}}\n</tool_call>' for name, text in texts]
    meant = [Call(*each) for each in texts]
    assert read(tagged(), cut("\n".join([before + "<", *written]), cuts)) == [before + "<", *meant]
    written = [f'{{"name": "{name}", "parameters": {text}}}' for name, text in texts]
    assert read(Listed(), cut(f"[{', '.join(written)}]", cuts)) == meant
    assert read(llama(), cut("; ".join(written), cuts)) == meant
    written = [f'{{"name": "{name}", "arguments": {text}}}' for name, text in texts]
    assert read(mistral(), cut(f"[TOOL_CALLS] [{', '.join(written)}]", cuts)) == meant


@given(pieces=st.lists(st.sampled_from("<tool_cal> ") | st.text(max_size=3), max_size=20))
@example(pieces=["a ", "<", "<tool", "_call", "b"])
def test_text_is_told_as_soon_as_no_call_can_begin_with_it(pieces: list[str]) -> None:
    reader, shown = tagged(), ""
    for place, piece in enumerate(pieces, start=1):
        shown += "".join(part for part in reader.push(piece) if isinstance(part, str))
        if "<tool_call>" in (come := "".join(pieces[:place])):
            break
        kept = come.removeprefix(shown)
        assert "<tool_call>".startswith(kept.lstrip())


def steps(of: Callable[[], object]) -> int:
    """Return how many lines of the gateway's code it runs; anything else, such as the collector's, is not counted."""
    count, before = 0, sys.gettrace()

    def counted(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return counted if "mint_gateway" in frame.f_code.co_filename else None

    sys.settrace(counted)
    try:
        of()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    ("made", "begun"),
    [
        (llama, ""),
        (llama, "<|python_tag|>"),
        (llama, _SEA),
        (mistral, ""),
        (mistral, "[TOOL_CALLS]"),
        (mistral, "[TOOL_CALLS] ["),
        (mistral, f"[{_SHIP}"),
        (tagged, ""),
        (tagged, "<tool_call>"),
        (tagged, TAGGED.removesuffix("</tool_call>")),
        (Listed, "["),
    ],
)
def test_much_white_space_makes_more_of_it_no_slower_to_take(made: Callable[[], Reader], begun: str) -> None:
    reader = made()
    reader.push(begun + " " * 100)
    few = steps(lambda: reader.push(" \n"))
    reader.push(" " * 100_000)
    assert steps(lambda: reader.push(" \n")) == few


class Noting:
    """A pattern that records where each of its searches began."""

    def __init__(self, pattern: str) -> None:
        self._pattern, self.looked = re.compile(pattern), list[int]()

    def search(self, text: str, at: int) -> re.Match[str] | None:
        self.looked.append(at)
        return self._pattern.search(text, at)


def test_a_run_is_scanned_only_once() -> None:
    runs, other = Runs(), Noting("[^ ]")
    assert [runs.end(other, text, 1) for text in ("[", "[  ", "[   ", "[   ]", "[   ] ")] == [1, 3, 4, 4, 4]
    assert other.looked == [1, 1, 3, 4, 4]
    assert runs.end(other, "[   ] ", 5) == 6, "another run is none of that one"
