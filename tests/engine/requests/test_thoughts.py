"""Whether an answer begins with a thought is seen from tokenizer, template and prompt; a shape begins after it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import trl
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mint_contracts.errors import InvalidRequest
from mint_contracts.sampling_pb2 import Chat, GenerateRequest, Message, Started
from mint_engine.requests import masks
from mint_engine.requests.grammar import Grammar, Grammars, Shape
from mint_engine.requests.masks import mask
from mint_engine.requests.prompts import read_prompt
from mint_engine.requests.thoughts import Ahead, Markers, after, find_markers, read_thought
from tests.engine.running import save_tokenizer
from tests.engine.thinking import save_thinking

NOTHING, POSSIBLE, BEGUN = Started.NO_THOUGHT, Started.POSSIBLE, Started.BEGUN
USER = Message(role="user", content="Deep?")
TEMPLATES = Path(trl.__file__).parent / "chat_templates"


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(save_thinking(tmp_path))
    return loaded


def thought(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> "Started.Thought.ValueType":
    prompt = read_prompt(GenerateRequest(chat=chat), tokenizer, len(tokenizer), 4000)
    return read_thought(chat, prompt, find_markers(tokenizer), tokenizer)


@pytest.mark.parametrize(
    ("name", "variables", "found"),
    [
        ("qwen3", "", POSSIBLE),
        ("qwen3", '{"enable_thinking": false}', NOTHING),
        ("qwen3_5_think", "", BEGUN),
        ("qwen3_5_think", '{"enable_thinking": false}', NOTHING),
        ("qwen3_5_nothink", "", NOTHING),
        ("qwen3_5_nothink", '{"enable_thinking": true}', BEGUN),
        ("qwen3_instruct_2507", "", NOTHING),
        ("deepseek_r1_distill", "", BEGUN),
        ("deepseekv3", "", BEGUN),
        ("glm4moe", "", POSSIBLE),
        ("glm4moe", '{"enable_thinking": false}', NOTHING),
        ("nemotron_3_nano", "", BEGUN),
        ("nemotron_3_nano", '{"enable_thinking": false}', NOTHING),
        ("llama3_1", "", NOTHING),
        ("gptoss", "", NOTHING),
    ],
)
def test_published_templates_begin_a_thought_end_it_or_leave_it_to_the_model(
    tokenizer: PreTrainedTokenizerBase, name: str, variables: str, found: "Started.Thought.ValueType"
) -> None:
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    earlier = Message(role="assistant", content="Aye.", reasoning="Is it?")
    for messages in ([USER], [USER, earlier, USER]):
        asked = Chat(messages=messages, template_variables=variables, thoughts=True)
        assert thought(tokenizer, asked) == found
        asked.thoughts = False
        assert thought(tokenizer, asked) == NOTHING, "nobody asks"


def test_no_message_decides_how_the_answer_begins(tokenizer: PreTrainedTokenizerBase) -> None:
    """A user may write the markers, and a template may end with what the user wrote."""
    said = "{{ messages[-1].content }}"
    for template in (
        str(tokenizer.chat_template),
        "{% if add_generation_prompt %}" + said + "{% else %}<think></think>{% endif %}",
        "{% if '</think>' in messages[-1].content %} {% endif %}" + said,
    ):
        tokenizer.chat_template = template
        for written in ("<think>", "<think>\n", "</think>", "<think></think>\n\n"):
            chat = Chat(messages=[Message(role="user", content=written)], thoughts=True)
            assert thought(tokenizer, chat) == POSSIBLE


@pytest.mark.parametrize("without", ["single tokens", "tokens that are shown", "a template that has them"])
def test_a_base_without_markers_has_no_thoughts(tmp_path: Path, without: str) -> None:
    if without == "tokens that are shown":
        save_thinking(tmp_path, special=True)
    elif without == "single tokens":
        save_tokenizer(tmp_path)
    else:
        save_thinking(tmp_path)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tmp_path)
    if without == "a template that has them":
        tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert thought(tokenizer, Chat(messages=[USER], thoughts=True)) == NOTHING
    assert (find_markers(tokenizer) is None) == (without in ("single tokens", "tokens that are shown"))


def allowed(*grammars: Grammar | None) -> list[set[int]]:
    logits = torch.zeros(len(grammars), 320)
    for trouble in mask(grammars, logits).values():
        raise trouble
    return [set(torch.nonzero(row == 0).flatten().tolist()) for row in logits]


@pytest.fixture
def ahead(tokenizer: PreTrainedTokenizerBase) -> Callable[[bool], Grammar]:
    """Return a grammar of "ab", after a thought that has begun or may begin."""
    grammars, markers = Grammars(tokenizer, {0}), find_markers(tokenizer)
    assert markers
    return lambda begun: grammars.compile(Shape("regex", "ab"), Ahead(markers, begun=begun))


def test_a_shape_begins_after_a_thought_in_which_all_is_allowed_but_the_answers_end(
    tokenizer: PreTrainedTokenizerBase, ahead: Callable[[bool], Grammar]
) -> None:
    markers = find_markers(tokenizer)
    assert markers
    [a, b], every = tokenizer.encode("ab"), set(range(len(tokenizer)))
    begun, possible = ahead(True), ahead(False)
    assert allowed(begun, possible, None) == [every - {0}, {a, markers.begin}, set(range(320))]
    for token in (b, markers.begin, a):
        assert not begun.take(token)
    assert not possible.take(markers.begin)
    second = possible.copy()
    assert allowed(begun, possible, second) == [every - {0}] * 3
    assert not begun.take(markers.end)
    assert not possible.take(markers.end)
    assert allowed(begun, possible, second) == [{a}, {a}, every - {0}], "each goes its own way"
    assert (begun.take(a), begun.take(b)) == (False, True)


def test_a_thought_that_does_not_begin_at_once_does_not_begin(
    tokenizer: PreTrainedTokenizerBase, ahead: Callable[[bool], Grammar]
) -> None:
    grammar, [a, b] = ahead(False), tokenizer.encode("ab")
    assert not grammar.take(a)
    assert allowed(grammar) == [{b}]
    assert grammar.take(b)


def test_thoughts_take_no_other_rows_turn(
    ahead: Callable[[bool], Grammar], tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without time for masks, the first row that needs one still gets it."""
    monkeypatch.setattr(masks, "BUDGET_S", 0.0)
    answering = ahead(False)
    answering.take(tokenizer.encode("a")[0])
    late = ahead(False)
    late.take(tokenizer.encode("a")[0])
    assert set(mask([ahead(True), answering, late], torch.zeros(3, len(tokenizer)), [0, 1, 2])) == {2}


def test_a_slow_mask_is_paid_once_and_not_for_each_token_of_the_thought_that_follows(
    ahead: Callable[[bool], Grammar], tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "SLOW_S", 0.0)  # so that all of them are slow
    markers, paid = find_markers(tokenizer), list[bool]()
    assert markers
    grammar, [a] = ahead(False), tokenizer.encode("a")
    for token in (markers.begin, a, a, markers.end, a):
        allowed(grammar)
        paid.append(grammar.paid_s > 0)
        grammar.take(token)
    assert paid == [True, False, False, False, True]


def test_a_shape_that_cannot_be_followed_is_refused_before_the_thought(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    markers = find_markers(tokenizer)
    assert markers
    with pytest.raises(InvalidRequest, match="cannot be"):
        Grammars(tokenizer, {0}).compile(Shape("regex", "(a"), Ahead(markers, begun=True))


def test_what_follows_a_token_in_a_thought() -> None:
    markers = Markers(begin=7, end=8)
    begun, possible = Ahead(markers, begun=True), Ahead(markers, begun=False)
    assert [after(token, begun) for token in (1, 7, 8)] == [begun, begun, None]
    assert [after(token, possible) for token in (1, 7, 8)] == [None, begun, None]
    assert after(7, None) is None
