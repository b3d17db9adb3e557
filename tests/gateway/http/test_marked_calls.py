"""Calls between marks are read in every form that models write, however the text is cut."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trl
from hypothesis import assume, example, given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from mint_contracts.sampling_pb2 import Chat
from mint_engine.requests.fitting import fit_messages
from mint_gateway.http.call_forms import CALL_FORMS
from mint_gateway.http.calls import Call
from mint_gateway.http.tags import MOST_SPACE
from mint_gateway.http.tools import Function, Tools
from tests.engine.call_templates import TEMPLATES
from tests.gateway import call_readers
from tests.gateway.call_readers import cut

PARAMETERS = {
    "type": "object",
    "properties": {
        "note": {"type": "string"},
        "depth": {"type": "integer"},
        "deep": {"type": "boolean"},
        "ports": {"type": "array", "items": {"type": "string"}},
        "where": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
}
TOOLS = Tools([Function("sea", parameters=PARAMETERS), Function("ship")], "auto")

GLM_SEA = "<tool_call>sea\n<arg_key>note</arg_key>\n<arg_value>12</arg_value>\n</tool_call>"
QWEN_SEA = "<tool_call>\n<function=sea>\n<parameter=note>\n12\n</parameter>\n</function>\n</tool_call>"
KIMI_SEA = '<|tool_call_begin|>functions.sea:0<|tool_call_argument_begin|>{"note": "12"}<|tool_call_end|>'
OLD_SEA = '<｜tool▁call▁begin｜>function<｜tool▁sep｜>sea\n```json\n{"note": "12"}\n```<｜tool▁call▁end｜>'
NEW_SEA = '<｜tool▁call▁begin｜>sea<｜tool▁sep｜>{"note": "12"}<｜tool▁call▁end｜>'
DSML_SEA = (
    '<｜DSML｜invoke name="sea">\n<｜DSML｜parameter name="note" string="true">12</｜DSML｜parameter>'
    "\n</｜DSML｜invoke>"
)
MINI_SEA = '<invoke name="sea">\n<parameter name="note">12</parameter>\n</invoke>'
TWICE = "\n%s\n%s\n"
SEA, SHIP = Call("sea", '{"note": "12"}'), Call("ship", "{}")

Form = Chat.Calls.ValueType
Parts = list[str | Call]


def section(form: int, calls: str) -> str:
    return f"{CALL_FORMS[form].opening}{calls}{CALL_FORMS[form].closing}"


def read(form: int, pieces: Sequence[str], *, parallel: bool = True) -> Parts:
    """Return everything that is read from an answer in this form, with adjacent texts joined."""
    reading = Tools(TOOLS.functions, "auto", parallel).named.reading(Form(form), TOOLS.functions_json)
    assert reading
    return call_readers.read(reading.reader(), pieces)


def no_call(form: int, text: str) -> tuple[int, str, Parts]:
    return form, f"a {text} b", [f"a {text} b"]


def noted(note: str) -> tuple[int, str, Parts]:
    text = f"<function=sea>\n<parameter=note>\n{note}\n</parameter>\n</function>"
    return Chat.QWEN_CODER, text, [Call("sea", json.dumps({"note": note}))]


CASES: list[tuple[int, str, Parts]] = [
    # GLM: the name ends with a line or, since 4.7, with what comes next.
    (Chat.GLM, GLM_SEA, [SEA]),
    (Chat.GLM, GLM_SEA.replace("\n", ""), [SEA]),
    (Chat.GLM, "<tool_call>ship</tool_call>", [SHIP]),
    (Chat.GLM, f"I look.\n{GLM_SEA}\n<tool_call>ship\n</tool_call>\nSo.", ["I look.", SEA, SHIP, "So."]),
    (
        Chat.GLM,
        "<tool_call>sea\n<arg_key>depth</arg_key>\n<arg_value>12</arg_value>\n<arg_key>note</arg_key>\n"
        '<arg_value> "a"\n</arg_value>\n<arg_key>ports</arg_key>\n<arg_value>["é", "b"]</arg_value>\n</tool_call>',
        [Call("sea", '{"depth": 12, "note": " \\"a\\"\\n", "ports": ["é", "b"]}')],
    ),
    # A value may contain marks.
    (
        Chat.GLM,
        "<tool_call>sea<arg_key>note</arg_key><arg_value>a</arg_value> b </tool_call></arg_value></tool_call>",
        ["<tool_call>sea<arg_key>note</arg_key><arg_value>a</arg_value> b </tool_call></arg_value></tool_call>"],
    ),
    (
        Chat.GLM,
        "<tool_call>sea<arg_key>note</arg_key><arg_value></tool_call></arg_value> b</arg_value></tool_call>",
        [Call("sea", '{"note": "</tool_call></arg_value> b"}')],
    ),
    # Qwen3-Coder.
    (Chat.QWEN_CODER, QWEN_SEA, [SEA]),
    (Chat.QWEN_CODER, QWEN_SEA.replace("\n", ""), [SEA]),
    (Chat.QWEN_CODER, QWEN_SEA.removesuffix("\n</tool_call>"), [SEA]),
    (Chat.QWEN_CODER, QWEN_SEA.removeprefix("<tool_call>\n"), [SEA]),
    (Chat.QWEN_CODER, f"I look.\n\n{QWEN_SEA}\n{QWEN_SEA}\n", ["I look.", SEA, SEA]),
    (Chat.QWEN_CODER, "<tool_call>\n<function=ship>\n</function>\n</tool_call>", [SHIP]),
    (
        Chat.QWEN_CODER,
        "<tool_call>\n<function=sea>\n<parameter=note>\n\n if a < b:\n\n</parameter>\n<parameter=deep>\nTrue\n"
        "</parameter>\n<parameter=where>\nNone\n</parameter>\n</function>\n</tool_call>",
        [Call("sea", '{"note": "\\n if a < b:\\n", "deep": true, "where": null}')],
    ),
    # The end of a value may be missing before another argument, as in vLLM; any other text belongs to the value.
    (
        Chat.QWEN_CODER,
        "<function=sea>\n<parameter=note>\na\n\n<parameter=depth>\n12\n</parameter>\n</function>",
        [Call("sea", '{"note": "a\\n", "depth": 12}')],
    ),
    *[
        noted(f"a{between}>\nb")
        for between in (" <parameter=depth", "\n<parameter=note", "\n<parameter=width", "\n<parameter=")
    ],
    # Kimi-K2.
    (Chat.KIMI, f"I look.{section(Chat.KIMI, KIMI_SEA)}", ["I look.", SEA]),
    (Chat.KIMI, section(Chat.KIMI, KIMI_SEA + KIMI_SEA.replace("sea:0", "sea:1")), [SEA, SEA]),
    (Chat.KIMI, section(Chat.KIMI, f"\n{KIMI_SEA.replace('functions.sea:0', 'sea')}\n"), [SEA]),
    (Chat.KIMI, section(Chat.KIMI, KIMI_SEA).removesuffix("<|tool_call_end|><|tool_calls_section_end|>"), [SEA]),
    (
        Chat.KIMI,
        section(Chat.KIMI, KIMI_SEA.replace("12", "<|tool_call_end|>")),
        [Call("sea", '{"note": "<|tool_call_end|>"}')],
    ),
    # DeepSeek-V3 and -R1, and V3.1.
    (Chat.DEEPSEEK, f"I look.\n{section(Chat.DEEPSEEK, TWICE % (OLD_SEA, OLD_SEA))}", ["I look.", SEA, SEA]),
    (Chat.DEEPSEEK_V31, f"I look.\n{section(Chat.DEEPSEEK_V31, NEW_SEA + NEW_SEA)}", ["I look.", SEA, SEA]),
    (Chat.DEEPSEEK_V31, NEW_SEA, [SEA]),
    # DeepSeek-V3.2 says of each value whether it is a text.
    (
        Chat.DEEPSEEK_V32,
        f"I look.\n\n{section(Chat.DEEPSEEK_V32, TWICE % (DSML_SEA, DSML_SEA.replace('true', 'false')))}",
        ["I look.", SEA, Call("sea", '{"note": 12}')],
    ),
    # MiniMax-M2.
    (Chat.MINIMAX, f"I look.\n{section(Chat.MINIMAX, TWICE % (MINI_SEA, MINI_SEA))}\n", ["I look.", SEA, SEA]),
    # What is not a call of a tool stays text.
    *[
        no_call(form, other)
        for form, written in (
            (Chat.GLM, GLM_SEA),
            (Chat.QWEN_CODER, QWEN_SEA),
            (Chat.KIMI, section(Chat.KIMI, KIMI_SEA)),
            (Chat.DEEPSEEK, section(Chat.DEEPSEEK, OLD_SEA)),
            (Chat.DEEPSEEK_V31, section(Chat.DEEPSEEK_V31, NEW_SEA)),
            (Chat.DEEPSEEK_V32, section(Chat.DEEPSEEK_V32, DSML_SEA)),
            (Chat.MINIMAX, section(Chat.MINIMAX, MINI_SEA)),
        )
        for other in (
            written.replace("sea", "moon"),
            written.replace("sea", "the sea"),
            written[: len(written) // 2],
            CALL_FORMS[form].begin,
            CALL_FORMS[form].end,
            CALL_FORMS[form].opening + CALL_FORMS[form].closing or "<tool_call",
        )
    ],
    (Chat.GLM, f"<tool_call>the sea</tool_call> {GLM_SEA}", ["<tool_call>the sea</tool_call>", SEA]),
    (Chat.QWEN_CODER, f"With <tool_call> one calls: {QWEN_SEA}", ["With <tool_call> one calls:", SEA]),
    (Chat.KIMI, section(Chat.KIMI, "none"), [section(Chat.KIMI, "none")]),
    (
        Chat.KIMI,
        section(Chat.KIMI, KIMI_SEA.replace("}", "") + KIMI_SEA),
        [CALL_FORMS[Chat.KIMI].opening + KIMI_SEA.replace("}", ""), SEA],
    ),
    (Chat.DEEPSEEK, section(Chat.DEEPSEEK_V31, NEW_SEA), [section(Chat.DEEPSEEK_V31, NEW_SEA)]),
    (Chat.QWEN_CODER, f"I look.{' ' * MOST_SPACE}{QWEN_SEA}", ["I look.", SEA]),
    (Chat.QWEN_CODER, f"I look.{' ' * (MOST_SPACE + 3)}{QWEN_SEA}", ["I look.   ", SEA]),
]


@pytest.mark.parametrize(("form", "text", "parts"), CASES)
def test_calls(form: int, text: str, parts: Parts) -> None:
    assert read(form, [text]) == parts
    assert read(form, list(text)) == parts


@pytest.mark.parametrize("form", CALL_FORMS)
def test_white_space_before_a_call_is_held_within_bounds(form: int) -> None:
    """A model may write nothing else, and each token takes time for all that is held."""
    reading = TOOLS.named.reading(Form(form), TOOLS.functions_json)
    assert reading
    reader = reading.reader()
    told = "".join(str(part) for _ in range(10) for part in reader.push(" " * MOST_SPACE))
    assert len(told) == 9 * MOST_SPACE


@pytest.mark.parametrize("form", TEMPLATES)
def test_one_call_at_most(form: int) -> None:
    written = rendered(form, [("sea", {"note": "12"}), ("ship", {})])
    assert read(form, [f"{written}\nSo."], parallel=False) == [SEA]
    assert read(form, list(written), parallel=False) == [SEA]


def rendered(form: int, calls: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Return calls as the form's template writes them."""
    text = render(TEMPLATES[Form(form)], [called(calls)])
    return text.removeprefix("<|start|>assistant\n").partition("<|end|>")[0]


def called(calls: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    functions = [{"type": "function", "function": {"name": name, "arguments": each}} for name, each in calls]
    return {"role": "assistant", "content": "", "tool_calls": functions}


def render(template: str, messages: Sequence[dict[str, Any]]) -> str:
    texts: Any = render_jinja_template([fit_messages(messages, template)], chat_template=template)
    return str(texts[0][0])


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (Chat.GLM, "glm4moe"),
        (Chat.QWEN_CODER, "qwen3_6"),
        (Chat.QWEN_CODER, "nemotron_3_nano"),
        (Chat.DEEPSEEK, "deepseekv3"),
    ],
)
def test_calls_that_a_published_template_wrote_are_read_again(form: int, name: str) -> None:
    """As trl has them. Nemotron's writes true as Python does."""
    template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    calls = [("sea", {"note": "12\n<a>", "depth": 12, "deep": True, "ports": ["é"], "where": None}), ("ship", {})]
    text = render(template, [{"role": "user", "content": "Ahoy"}, called(calls)])
    found = [part for part in read(form, list(text)) if isinstance(part, Call)]
    assert [(each.name, json.loads(each.arguments)) for each in found] == calls


_FIELDS = ("opening", "begin", "named", "key", "keyed", "value", "ended", "end", "closing")


def marks(form: int) -> list[str]:
    return [getattr(CALL_FORMS[form], field) for field in _FIELDS]


_words = st.sampled_from(
    [*sorted(mark for form in TEMPLATES for mark in marks(form)), *'<>"\n \\', "sea", "</", "12"]
)
_cuts = st.lists(st.integers(0, 400), max_size=8)


@given(data=st.data(), form=st.sampled_from([*TEMPLATES]), cuts=_cuts)
def test_calls_and_text_do_not_depend_on_how_an_answer_is_cut(
    data: st.DataObject, form: int, cuts: list[int]
) -> None:
    """Nor is any text lost where there is no call."""
    words = st.sampled_from(
        [*marks(form), *' \n"', "sea", "note", "a", "{}", rendered(form, [("sea", {"deep": True})])]
    )
    text = data.draw(st.lists(words, max_size=14).map("".join))
    parts = read(form, [text])
    assert read(form, cut(text, cuts)) == parts
    assert read(form, list(text)) == parts
    assert any(isinstance(part, Call) for part in parts) or "".join(map(str, parts)) == text


_texts = st.lists(_words | st.characters(exclude_categories=["Cs"]), max_size=5).map("".join)
_arguments = st.fixed_dictionaries(
    {},
    optional={
        "note": _texts,
        "depth": st.integers(),
        "deep": st.booleans(),
        "ports": st.lists(_texts, max_size=2),
        "where": st.none() | _texts.filter(lambda text: text.strip() not in ("null", "None")),
    },
)


@given(
    form=st.sampled_from([*TEMPLATES]),
    calls=st.lists(st.tuples(st.just("sea"), _arguments), min_size=1, max_size=2),
    before=st.text(),
    cuts=_cuts,
)
@example(form=Chat.GLM, calls=[("sea", {"note": "123"})], before="", cuts=[])
@example(form=Chat.QWEN_CODER, calls=[("sea", {"note": "\n", "ports": ["</parameter>"]})], before="", cuts=[])
def test_calls_that_a_template_wrote_are_read_again(
    form: int, calls: list[tuple[str, dict[str, Any]]], before: str, cuts: list[int]
) -> None:
    """Whatever the arguments are, unless a text ends a value as the form does."""
    ended = CALL_FORMS[form].ended
    assume(not ended or not any(ended in str(each) for _, arguments in calls for each in arguments.values()))
    text = f"{before}<{rendered(form, calls)}"
    said, *found = read(form, cut(text, cuts))
    assert said == f"{before}<".rstrip()
    assert [(each.name, json.loads(each.arguments)) for each in found if isinstance(each, Call)] == calls
    assert all(isinstance(each, Call) for each in found)


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "123", '"123"'),
        ({"type": "string"}, " null\n", '" null\\n"'),
        ({"type": "string"}, '"a"', '"\\"a\\""'),
        ({"type": "integer"}, " 123\n", "123"),
        ({"type": "integer"}, "many", '"many"'),
        ({"type": "number"}, "1.50", "1.50"),
        ({"type": "number"}, "NaN", '"NaN"'),
        ({"type": "boolean"}, "True", "true"),
        ({"type": "object"}, '{"a": 1}', '{"a": 1}'),
        ({"type": "array"}, "[1, ", '"[1, "'),
        ({"type": "array"}, "[" * 5000, json.dumps("[" * 5000)),
        ({"type": ["integer", "string"]}, "12", "12"),
        ({"type": ["integer", "string"]}, "true", '"true"'),
        ({"type": ["string", "null"]}, "null", "null"),
        ({"type": ["string", "null"]}, "12", '"12"'),
        ({"type": ["null", "object"]}, "None", "null"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "12", '"12"'),
        ({"oneOf": [{"type": "integer"}, {"$ref": "#/$defs/Name"}]}, "a", '"a"'),
        ({"$ref": "#/$defs/Name"}, "12", '"12"'),
        ({"$ref": "#/$defs/Tree"}, "12", "12"),
        ({"$ref": "#/$defs/none"}, "12", "12"),
        ({"allOf": [{"$ref": "#/$defs/Name"}, {"description": "A name."}]}, "12", '"12"'),
        ({"enum": ["1", "2"]}, "1", '"1"'),
        ({"enum": [1, 2]}, "1", "1"),
        ({"const": "1"}, "1", '"1"'),
        ({}, "12", "12"),
        ({}, "a", '"a"'),
        (True, "12", "12"),
        ({"$ref": "#/$defs/0"}, "12", "12"),
        ({"type": 3, "anyOf": 3, "enum": 3}, "12", "12"),
    ],
)
def test_a_value_is_typed_by_its_schema(schema: Any, text: str, value: str) -> None:
    """What is no valid JSON, or of another type where a text is allowed, is a text."""
    defs: dict[str, Any] = {
        "Name": {"enum": ["12", "a"]},
        "Tree": {"anyOf": [{"$ref": "#/$defs/Tree"}, {"type": "string"}]},
    }
    defs |= {str(at): {"$ref": f"#/$defs/{at + 1}"} for at in range(2000)}
    whole = {"type": "object", "properties": {"a": schema}, "$defs": defs}
    tools = Tools([Function("sea", parameters=whole)], "auto")
    reading = tools.named.reading(Form(Chat.GLM), tools.functions_json)
    assert reading
    reader = reading.reader()
    [call] = reader.push(f"<tool_call>sea<arg_key>a</arg_key><arg_value>{text}</arg_value></tool_call>")
    assert call == Call("sea", f'{{"a": {value}}}')
