"""A chat's functions and calls enter the prompt as the base's template writes them, or are refused."""

import gc
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mint_contracts.errors import InvalidRequest, PromptTooLong
from mint_contracts.sampling_pb2 import Chat, GenerateRequest, Message, ToolCall
from mint_contracts.transport import MOST_TOOL_CHARACTERS
from mint_engine.requests.prompts import read_form, read_prompt
from mint_engine.requests.tools import DEEPEST, check_template, form_of
from tests.engine import call_templates
from tests.engine.tooled import save_tooled

SAIL = {"type": "function", "function": {"name": "sail", "parameters": {"type": "object", "é": "<|end|>"}}}
USER = Message(role="user", content="Ahoy")
CALL = ToolCall(id="call_1", name="sail", arguments='{"to": "<|end|> é", "knots": 1.5}')
TURNS = [
    USER,
    Message(role="assistant", tool_calls=[CALL, ToolCall(name="rest", arguments="{}")]),
    Message(role="tool", content="done", tool_call_id="call_1", name="sail"),
]
TEMPLATES = Path(trl.__file__).parent / "chat_templates"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(save_tooled(tmp_path_factory.mktemp("base")))
    return loaded


def rendered(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> str:
    return str(tokenizer.decode(list(read_prompt(GenerateRequest(chat=chat), tokenizer, 300, 2000))))


def templated(tokenizer: PreTrainedTokenizerBase, template: str, chat: Chat) -> str:
    """Return the chat's text in this template."""
    held: Any = tokenizer.chat_template
    tokenizer.chat_template = template
    try:
        return rendered(tokenizer, chat)
    finally:
        tokenizer.chat_template = held


def test_functions_and_calls_are_written_by_the_template(tokenizer: PreTrainedTokenizerBase) -> None:
    told = rendered(tokenizer, Chat(messages=TURNS, tools=json.dumps([SAIL]), calls=Chat.HERMES))
    assert f"<|start|>system\n{json.dumps(SAIL, ensure_ascii=False)}\nCall one by:" in told
    assert '{"name": "sail", "arguments": {"to": "<|end|> é", "knots": 1.5}}\n</tool_call>' in told
    assert '<tool_call>\n{"name": "rest", "arguments": {}}\n</tool_call><|end|>\n<|start|>tool\ndone<|end|>' in told
    for none in ("", "[]"):
        assert rendered(tokenizer, Chat(messages=[USER], tools=none)).startswith("<|start|>user")


def test_a_call_without_arguments_may_say_nothing_of_them(tokenizer: PreTrainedTokenizerBase) -> None:
    for told in ("", "{}"):
        calls = [ToolCall(name="rest", arguments=told)]
        written = rendered(tokenizer, Chat(messages=[USER, Message(role="assistant", tool_calls=calls)]))
        assert '<tool_call>\n{"name": "rest", "arguments": {}}\n</tool_call>' in written


def test_control_tokens_within_json_stay_text(tokenizer: PreTrainedTokenizerBase) -> None:
    end = tokenizer.eos_token_id
    plain = Chat(messages=TURNS, tools=json.dumps([SAIL]))
    clean = Chat.FromString(plain.SerializeToString().replace(b"<|end|>", b"<:end:>"))
    of = [read_prompt(GenerateRequest(chat=chat), tokenizer, 300, 2000).count(end) for chat in (plain, clean)]
    assert of[0] == of[1] == 4


CASES: list[tuple[Chat, str]] = [
    (Chat(tools="{"), r"prompt\.chat\.tools: cannot be read"),
    (Chat(tools="[" * 5000), r"prompt\.chat\.tools: cannot be read"),
    (Chat(tools="3"), r"tools: are not valid functions: Expected `array`"),
    (Chat(tools='[{"type": "custom"}]'), r"tools: are not valid functions: .*\$\[0\]\.type"),
    (Chat(tools='[{"type": "function", "function": {}}]'), r"`name` - at `\$\[0\]\.function`"),
    (Chat(tools='[{"type": "function", "function": {"name": "a b"}}]'), r"\$\[0\]\.function\.name"),
    (
        Chat(tools=f"[{' ' * MOST_TOOL_CHARACTERS}]"),
        f"tools: has {MOST_TOOL_CHARACTERS + 2} characters; at most {MOST_TOOL_CHARACTERS}",
    ),
    (Chat(tools="[" * DEEPEST + "[]" + "]" * DEEPEST), f"tools: is nested deeper than {DEEPEST} values"),
    (Chat(tools=json.dumps([SAIL | {"a<|end|>": 1}])), r"has the control token '<\|end\|>' in a name within JSON"),
    (Chat(calls=99), r"prompt\.chat\.calls: is 99"),  # type: ignore[arg-type]
]
CALLS = [
    (
        ToolCall(name="sail", arguments="{"),
        r"prompt\.chat\.messages\[1\]\.tool_calls\[1\]\.arguments: cannot be read",
    ),
    (ToolCall(name="sail", arguments="[]"), r"tool_calls\[1\]\.arguments: are not a JSON object"),
    (ToolCall(name="a b", arguments="{}"), r"tool_calls\[1\]\.name: is 'a b'"),
    (ToolCall(name="a", arguments='{"<|start|>": 1}'), r"control token '<\|start\|>' in a name"),
]
CASES += [(Chat(messages=[USER, Message(role="assistant", tool_calls=[CALL, bad])]), says) for bad, says in CALLS]


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Deeply nested values come near the stack's limit, where finalisers of other tests' objects would fail."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize(("chat", "says"), CASES)
def test_an_invalid_function_or_call_is_one_clear_error(
    tokenizer: PreTrainedTokenizerBase, chat: Chat, says: str
) -> None:
    whole = Chat(messages=chat.messages or [USER], tools=chat.tools, calls=chat.calls)
    with pytest.raises(InvalidRequest, match=says):
        read_prompt(GenerateRequest(chat=whole), tokenizer, 300, 2000)


def test_calls_count_as_messages_do(tokenizer: PreTrainedTokenizerBase) -> None:
    calls = [ToolCall(name="a", arguments="{}")] * 60
    with pytest.raises(PromptTooLong, match="61 messages and calls"):
        read_prompt(
            GenerateRequest(chat=Chat(messages=[Message(role="assistant", tool_calls=calls)])), tokenizer, 300, 50
        )
    long = Chat(messages=[USER], tools=json.dumps([SAIL | {"more": "a" * 7000}]))
    with pytest.raises(PromptTooLong, match="characters"):
        read_prompt(GenerateRequest(chat=long), tokenizer, 300, 50)


FORMS = {
    Chat.HERMES: "qwen2_5 qwen3 qwen3_instruct_2507 qwen3_vl",
    Chat.GLM: "glm4moe",
    Chat.QWEN_CODER: "qwen3_5_think qwen3_5_nothink qwen3_6 qwen3_8 nemotron_3_nano nemotron_3_super nemotron_3_ultra"
    " nemotron_3_5_lightning",
    Chat.DEEPSEEK: "deepseekv3 deepseek_r1_distill",
    Chat.LLAMA: "llama3_1 llama3_2",
    Chat.MISTRAL: "",
    Chat.HARMONY: "gptoss",
}


@pytest.mark.parametrize(("form", "names"), FORMS.items())
def test_which_published_templates_have_which_form(form: "Chat.Calls.ValueType", names: str) -> None:
    """Among all in trl."""
    published = [path for path in TEMPLATES.glob("*.jinja") if not path.stem.endswith("_training")]
    assert {path.stem for path in published if form_of(path.read_text()) == form} == set(names.split())


WRITTEN = {
    Chat.GLM: (
        "Aye.\n<tool_call>sail\n<arg_key>to</arg_key>\n<arg_value>é</arg_value>\n<arg_key>knots</arg_key>\n"
        "<arg_value>12</arg_value>\n</tool_call>\n<tool_call>rest\n</tool_call><|end|>",
    ),
    Chat.QWEN_CODER: (
        "Aye.\n<tool_call>\n<function=sail>\n<parameter=to>\né\n</parameter>\n<parameter=knots>\n12\n</parameter>\n"
        "</function>\n</tool_call>\n<tool_call>\n<function=rest>\n</function>\n</tool_call><|end|>",
    ),
    Chat.KIMI: (
        "Aye.<|tool_calls_section_begin|><|tool_call_begin|>functions.sail:0<|tool_call_argument_begin|>"
        '{"to": "é", "knots": 12}<|tool_call_end|><|tool_call_begin|>functions.rest:1<|tool_call_argument_begin|>{}'
        "<|tool_call_end|><|tool_calls_section_end|><|end|>",
        *("## Return of functions.sail:0\n", "## Return of functions.rest:1\n"),
        *("begin|>functions.sail:2<|", "begin|>functions.rest:3<|"),
        *("## Return of functions.sail:2\n", "## Return of functions.rest:3\n"),
    ),
    Chat.DEEPSEEK: (
        "Aye.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>sail\n```json\n"
        '{"to": "é", "knots": 12}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>rest\n```json\n{}\n```<｜tool▁call▁end｜>\n<｜tool▁calls▁end｜><|end|>",
    ),
    Chat.DEEPSEEK_V31: (
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>sail<｜tool▁sep｜>{"to": "é", "knots": 12}<｜tool▁call▁end｜>'
        "<｜tool▁call▁begin｜>rest<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜><|end|>",
    ),
    Chat.DEEPSEEK_V32: (
        'Aye.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="sail">\n'
        '<｜DSML｜parameter name="to" string="true">é</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="knots" string="false">12</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        '<｜DSML｜invoke name="rest">\n</｜DSML｜invoke>\n</｜DSML｜function_calls><|end|>',
    ),
    Chat.MINIMAX: (
        'Aye.\n<minimax:tool_call>\n<invoke name="sail">\n<parameter name="to">é</parameter>\n'
        '<parameter name="knots">12</parameter>\n</invoke>\n<invoke name="rest">\n</invoke>\n'
        "</minimax:tool_call><|end|>",
    ),
}


@pytest.mark.parametrize(("form", "template"), call_templates.TEMPLATES.items())
def test_calls_and_results_are_written_as_a_model_expects_them(
    tokenizer: PreTrainedTokenizerBase, form: "Chat.Calls.ValueType", template: str
) -> None:
    """Kimi-K2's ids have the function's name, and DeepSeek's templates take arguments as text."""
    assert form_of(template) == form
    calls = [
        ToolCall(id="call_1", name="sail", arguments='{"to": "é", "knots": 12}'),
        ToolCall(id="call_2", name="rest"),
    ]
    gave = [Message(role="tool", content="done", tool_call_id=call.id) for call in calls]
    turns = [USER, Message(role="assistant", content="Aye.", tool_calls=calls), *gave]
    told = templated(tokenizer, template, Chat(messages=[*turns, *turns[1:]], tools=json.dumps([SAIL])))
    for text in WRITTEN[form]:
        assert told.count(text) == (1 if re.search(r":\d", text) else 2), text


MISTRAL = (
    "{% for tool in tools or [] %}[AVAILABLE_TOOLS]{{ tool | tojson }}{% endfor %}{% for m in messages %}"
    '{% if m.tool_calls %}{{ "[TOOL_CALLS] [" }}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}'
    "]{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
OTHERS = {
    "a": MISTRAL,
    "b": MISTRAL.replace("[TOOL_CALLS] [", "[TOOL_CALLS]["),
    "c": MISTRAL.replace("[TOOL_CALLS] [", "[TOOL_CALLS]") + "[ARGS]",
}


def test_which_templates_have_mistrals_form() -> None:
    """Among shortened ones of Mistral's: newer templates have another."""
    assert {name for name, template in OTHERS.items() if form_of(template) == Chat.MISTRAL} == {"a", "b"}


def test_a_form_that_is_not_asked_for_is_refused() -> None:
    for template, form in ((call_templates.GLM, Chat.GLM), (MISTRAL, Chat.MISTRAL)):
        check_template(template, Chat(messages=TURNS), tools=True)
        check_template(template, Chat(calls=form), tools=True)
        check_template(template, Chat(calls=Chat.HERMES, or_calls=[form]), tools=True)
        check_template(template, Chat(calls=Chat.HERMES, or_calls=[99, form]), tools=True)  # type: ignore[list-item]
        with pytest.raises(InvalidRequest, match='A tool_choice of "required", or of one function, works'):
            check_template(template, Chat(calls=Chat.HERMES, or_calls=[Chat.LLAMA]), tools=True)


def test_the_form_that_is_told_is_the_templates(tokenizer: PreTrainedTokenizerBase) -> None:
    chat = Chat(calls=Chat.LLAMA, or_calls=[Chat.HERMES], tools=json.dumps([SAIL]))
    assert read_form(chat, tokenizer) == Chat.HERMES
    assert read_form(Chat(tools=json.dumps([SAIL])), tokenizer) == Chat.CALLS_UNSPECIFIED


def test_a_name_is_written_by_a_template_that_has_a_place_for_it(tokenizer: PreTrainedTokenizerBase) -> None:
    """As text, whatever it contains: nobody can end a turn with it."""
    held: Any = tokenizer.chat_template
    tokenizer.chat_template = "{% for m in messages %}{{ m.name }}: {{ m.content }}<|end|>{% endfor %}"
    try:
        chat = Chat(messages=[Message(role="user", content="Ahoy", name="Ann<|end|>")])
        tokens = read_prompt(GenerateRequest(chat=chat), tokenizer, 300, 2000)
    finally:
        tokenizer.chat_template = held
    assert tokenizer.decode(list(tokens)) == "Ann<|end|>: Ahoy<|end|>"
    assert tokens.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_is_passed_under_the_name_that_a_template_uses(
    tokenizer: PreTrainedTokenizerBase, field: str
) -> None:
    """As text, too; if there is none, templates see none."""
    held: Any = tokenizer.chat_template
    tokenizer.chat_template = (
        f"{{% for m in messages %}}<{{{{ m.{field} }}}}>{{{{ m.content }}}}<|end|>{{% endfor %}}"
    )
    try:
        messages = [USER, Message(role="assistant", content="Aye", reasoning="Deep<|end|>")]
        tokens = read_prompt(GenerateRequest(chat=Chat(messages=messages)), tokenizer, 300, 2000)
        with pytest.raises(PromptTooLong, match="characters"):
            rendered(tokenizer, Chat(messages=[Message(role="assistant", reasoning="a" * 257_000)]))
    finally:
        tokenizer.chat_template = held
    assert tokenizer.decode(list(tokens)) == "<>Ahoy<|end|><Deep<|end|>>Aye<|end|>"
    assert tokens.count(tokenizer.eos_token_id) == 2


def test_published_templates_write_what_was_thought_between_calls(tokenizer: PreTrainedTokenizerBase) -> None:
    held: Any = tokenizer.chat_template
    tokenizer.chat_template = (TEMPLATES / "qwen3.jinja").read_text()
    try:
        called = Message(role="assistant", tool_calls=[CALL], reasoning="It is deep.")
        told = rendered(tokenizer, Chat(messages=[USER, called, TURNS[2]]))
    finally:
        tokenizer.chat_template = held
    assert "<think>\nIt is deep.\n</think>" in told


def test_a_template_without_tools_gets_none(tokenizer: PreTrainedTokenizerBase) -> None:
    held: Any = tokenizer.chat_template
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    try:
        with pytest.raises(InvalidRequest, match=r"prompt\.chat\.tools: cannot be used"):
            rendered(tokenizer, Chat(messages=[USER], tools=json.dumps([SAIL])))
        with pytest.raises(
            InvalidRequest, match=r"messages: have tool calls, which this base's chat template does not"
        ):
            rendered(tokenizer, Chat(messages=TURNS))
        assert rendered(tokenizer, Chat(messages=[USER])) == "Ahoy"
    finally:
        tokenizer.chat_template = held


@pytest.mark.parametrize("name", ["gptoss", "qwen3_5_think", "qwen3_6"])
def test_system_messages_come_first_where_a_template_drops_or_refuses_others(
    tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    said = [Message(role="system", content=text) for text in ("Be brief.", "Be kind.", "In French now.")]
    chat = Chat(messages=[*said[:2], USER, Message(role="assistant", content="Aye"), said[2], USER])
    told = templated(tokenizer, (TEMPLATES / f"{name}.jinja").read_text(), chat)
    assert "Be brief.\n\nBe kind.\n\nIn French now." in told.partition("Ahoy")[0]
    assert told.count("Ahoy") == 2
    assert "French" not in told.partition("Ahoy")[2]


@pytest.mark.parametrize("name", ["llama3_1", "llama3_2"])
def test_several_calls_are_written_one_by_one_where_a_template_takes_no_more(
    tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    """A model of Llama 3 may give several calls at once, and its own template refuses them."""
    ids = ("call_1", "call_2")
    calls = [ToolCall(id=id_, name="sail", arguments=json.dumps({"to": id_})) for id_ in ids]
    gave = [Message(role="tool", content=f"of {id_}", tool_call_id=id_) for id_ in reversed(ids)]
    chat = Chat(messages=[USER, Message(role="assistant", tool_calls=calls), *gave], tools=json.dumps([SAIL]))
    told = templated(tokenizer, (TEMPLATES / f"{name}.jinja").read_text(), chat)
    places = [told.index(text) for text in ('{"to": "call_1"}', "of call_1", '{"to": "call_2"}', "of call_2")]
    assert places == sorted(places), "each result after its call"


def test_results_come_in_the_order_of_their_calls(tokenizer: PreTrainedTokenizerBase) -> None:
    """Whichever function was done first: this template, as most, does not write whose results they are."""
    ids = ("call_1", "call_2")
    called = Message(role="assistant", tool_calls=[ToolCall(id=id_, name="sail") for id_ in ids])
    gave = [Message(role="tool", content=f"of {id_}", tool_call_id=id_) for id_ in ids]
    other = Message(role="tool", content="of none")
    told = rendered(tokenizer, Chat(messages=[USER, called, other, *reversed(gave), USER, *reversed(gave)]))
    assert re.findall("of [a-z_0-9]+", told) == ["of call_1", "of call_2", "of none", "of call_2", "of call_1"]


def test_ids_of_calls_are_nine_characters_where_a_template_takes_no_others(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Whichever model they came from; Mistral's own have that length, and stay."""
    template = (
        "{% for m in messages %}{% for c in m.tool_calls %}{% if c.id is not defined or c.id|length != 9 %}"
        "{{ raise_exception('ids have length 9') }}{% endif %}call {{ c.id }} {% endfor %}"
        "{% if m.role == 'tool' %}result {{ m.tool_call_id }} {% endif %}{% endfor %}"
    )
    ids = ["call_0123456789abcdef", "x", "abcDEF123"]
    calls = [ToolCall(id=id_, name="sail") for id_ in ids]
    gave = [Message(role="tool", content="done", tool_call_id=id_) for id_ in ids]
    told = templated(tokenizer, template, Chat(messages=[USER, Message(role="assistant", tool_calls=calls), *gave]))
    words = told.split()
    assert words[1:6:2] == words[7::2]
    assert words[5] == "abcDEF123"
    assert len(set(words[1:6:2])) == 3


def test_a_function_needs_no_description(tokenizer: PreTrainedTokenizerBase) -> None:
    """Also for templates that add it to another text."""
    chat = Chat(messages=[USER], tools=json.dumps([SAIL]))
    for path in sorted(TEMPLATES.glob("*.jinja")):
        if "tools" in (template := path.read_text()):
            assert "sail" in templated(tokenizer, template, chat), path.name
    template = "{% for tool in tools %}{{ tool.function.name + ': ' + tool.function.description }}.{% endfor %}"
    assert templated(tokenizer, template, chat) == "sail: ."
