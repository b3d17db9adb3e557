"""A thought is separated from its answer alike however the text is cut, and no text is held back without need."""

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mint_contracts.sampling_pb2 import Chat, Chunk, Started
from mint_gateway.http.calls import Call
from mint_gateway.http.parsing import Parser, Parsing, Part, Piece, parsing, piece_of
from mint_gateway.http.tags import MOST_SPACE
from mint_gateway.http.thoughts import Separator, Thought
from mint_gateway.http.tools import NONE, Function, Tools
from tests.gateway.call_readers import cut

CALL = '<tool_call>\n{"name": "sea", "arguments": {"deep": true}}\n</tool_call>'
SEA = Call("sea", '{"deep": true}')
SPACE = " " * MOST_SPACE


def joined(parts: Sequence[Part]) -> tuple[str, str]:
    """Return the thought and the answer, after checking that the thought comes first."""
    kinds = [isinstance(part, Thought) for part in parts]
    assert kinds == sorted(kinds, reverse=True)
    assert all(part for part in parts)
    thought = "".join(part.text for part in parts if isinstance(part, Thought))
    return thought, "".join(part for part in parts if isinstance(part, str))


def separated(pieces: Sequence[str], *, begun: bool) -> tuple[str, str]:
    separator = Separator(begun=begun)
    return joined([part for piece in pieces for part in separator.push(piece)] + separator.finish())


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>\nIs it?\n</think>\n\nIt is.\n", "Is it?", "It is.\n"),
        ("\n <think>Is it?</think>It is.", "Is it?", "It is."),
        ("<think>\n\n</think>\n\nIt is.", "", "It is."),
        ("<think></think>", "", ""),
        ("<think>Is it?</think>\n ", "Is it?", ""),
        # Within a thought and after it, all else is text.
        (
            "<think>a <think> b</thinking> </ c</think>d</think> <think>e",
            "a <think> b</thinking> </ c",
            "d</think> <think>e",
        ),
        # An answer may end within its thought, or within a marker.
        ("<think>", "", ""),
        ("<think>Is it", "Is it", ""),
        ("<think>Is it</thi", "Is it</thi", ""),
        ("<thi", "", "<thi"),
        # What is not at the beginning is no thought, and then white space stays.
        ("", "", ""),
        (" \n", "", " \n"),
        ("\n It is.", "", "\n It is."),
        ("It is. <think>Is it?</think>", "", "It is. <think>Is it?</think>"),
        ("Is it?</think>It is.", "", "Is it?</think>It is."),
        # More white space than is held within bounds.
        (f"{SPACE} <think>Is it?</think>It is.", "", f"{SPACE} <think>Is it?</think>It is."),
        (f"{SPACE}<think>Is it?  {SPACE}</think>It is.", "Is it?  ", "It is."),
    ],
)
def test_a_thought_that_may_begin(text: str, thought: str, answer: str) -> None:
    assert separated([text], begun=False) == (thought, answer)
    assert separated(list(text), begun=False) == (thought, answer)


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("\nIs it?\n</think>\n\nIt is.", "Is it?", "It is."),
        ("</think>It is.", "", "It is."),
        ("<think>Is it?</think>It is.", "<think>Is it?", "It is."),
        ("Is it", "Is it", ""),
        ("", "", ""),
    ],
)
def test_a_thought_that_the_prompt_has_begun(text: str, thought: str, answer: str) -> None:
    assert separated([text], begun=True) == (thought, answer)
    assert separated(list(text), begun=True) == (thought, answer)


_texts = st.lists(
    st.sampled_from(["<think>", "</think>", "<think", "</thi", "nk>", *"<>/ \n\u00a0a", CALL]), max_size=8
).map("".join)
_cuts = st.lists(st.integers(0, 120), max_size=8)


def parser(thought: "Started.Thought.ValueType", *, tools: bool = False, shows: bool = True) -> Parser:
    calling = Tools([Function("sea")], "auto") if tools else NONE
    found = parsing(calling, calling.functions_json, Started(calls=Chat.HERMES, thought=thought), shows=shows)
    assert found
    return found.parser()


def told(parser: Parser, parts: Sequence[Part]) -> tuple[str, str, int, bool]:
    texts = [part for part in parts if not isinstance(part, Call)]
    return *joined(texts), len(parts) - len(texts), parser.thought


@given(text=_texts, cuts=_cuts, begun=st.booleans(), tools=st.booleans())
@example(text="a \u00a0</think>\u00a0b", cuts=[2, 3, 11, 12], begun=True, tools=False)
def test_answers_are_parsed_alike_however_they_are_cut(text: str, cuts: list[int], begun: bool, tools: bool) -> None:
    state = Started.BEGUN if begun else Started.POSSIBLE
    once, streamed, whole = (parser(state, tools=tools) for _ in range(3))
    expected = told(once, [*once.push(Piece(text, 1)), *once.finish()])
    pieces = [Piece(each, 1) for each in cut(text, cuts)]
    assert told(streamed, [part for piece in pieces for part in streamed.push(piece)] + streamed.finish()) == expected
    assert told(whole, whole.whole(pieces)) == expected
    assert whole.thought_tokens == streamed.thought_tokens


@given(pieces=st.lists(st.sampled_from([*"</think> \n", "think", "a"]), max_size=20), begun=st.booleans())
@example(pieces=["a ", "<", "/think", "b"], begun=True)
def test_text_is_told_as_soon_as_no_marker_can_begin_with_it(pieces: list[str], begun: bool) -> None:
    separator, shown = Separator(begun=begun), ""
    for place, piece in enumerate(pieces, start=1):
        shown += "".join(part.text if isinstance(part, Thought) else part for part in separator.push(piece))
        come = "".join(pieces[:place]).lstrip() if begun else "".join(pieces[:place])
        if "<think>" in come or "</think>" in come:
            break
        assert come.startswith(shown)
        kept = come[len(shown) :].lstrip()
        assert ("</think>" if begun else "<think>").startswith(kept)
        assert not kept or begun or not shown, "only what the answer begins with may begin a thought"


@pytest.mark.parametrize("begins", ["", "<think>a"])
def test_white_space_is_held_within_bounds(begins: str) -> None:
    separator = Separator(begun=False)
    separator.push(begins)
    told = joined([part for _ in range(10) for part in separator.push(SPACE)])
    assert len("".join(told)) >= 9 * MOST_SPACE


def test_a_part_of_a_marker_is_never_told() -> None:
    for begun, text in ((False, "<think>a</think>b"), (True, "a</think>b")):
        separator = Separator(begun=begun)
        parts = [part for letter in text for part in separator.push(letter)]
        assert parts == [Thought("a"), "b"]


def test_calls_are_read_only_outside_a_thought() -> None:
    text = f"<think>Shall I write {CALL}?</think>\n\nI look.\n{CALL}"
    calling = parser(Started.POSSIBLE, tools=True)
    parts = calling.whole([Piece(letter, 1) for letter in text])
    assert [part for part in parts if isinstance(part, Call)] == [SEA]
    assert joined([part for part in parts if not isinstance(part, Call)]) == (f"Shall I write {CALL}?", "I look.")


def test_the_tokens_of_a_thought_are_counted_with_its_markers() -> None:
    texts = [("<think>", 1), ("Is ", 1), ("", 1), ("it?", 2), ("</think>", 1), ("\n\n", 1), ("It is.", 3)]
    pieces = [Piece(*each) for each in texts]
    for shows in (True, False):
        thinking = parser(Started.POSSIBLE, shows=shows)
        assert joined(thinking.whole(pieces)) == ("Is it?" if shows else "", "It is.")
        assert (thinking.thought_tokens, thinking.thought) == (6, True)
    cut_off, answering = parser(Started.BEGUN), parser(Started.POSSIBLE)
    cut_off.whole(pieces[1:3])
    answering.whole(pieces[5:])
    assert (cut_off.thought_tokens, answering.thought_tokens, answering.thought) == (2, 0, False)


def test_a_piece_of_an_answer_does_not_keep_its_chunk() -> None:
    """A list of protobuf's would: 660,000 tokens took 700 MB while a complete answer was put together."""
    piece = piece_of(Chunk(text="deep", token_ids=[7], markers=[3, 9]))
    assert piece == Piece("deep", 1, (3, 9))
    assert type(piece.markers) is tuple


def test_nothing_is_parsed_where_there_is_neither_a_thought_nor_a_call() -> None:
    assert parsing(NONE, "", Started(), shows=True) is None
    assert parsing(NONE, "", Started(thought=Started.BEGUN), shows=False) == Parsing(
        thought=Started.BEGUN, shows=False
    )
