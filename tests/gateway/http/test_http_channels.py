"""Messages in channels, as gpt-oss answers, are separated alike however the text is cut, and no text is lost."""

import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mint_contracts.sampling_pb2 import Chat, Started
from mint_gateway.http.calls import Call
from mint_gateway.http.channels import Channels
from mint_gateway.http.parsing import Part, Piece, parsing
from mint_gateway.http.thoughts import Thought
from mint_gateway.http.tools import Function, Tools

SEA = Call("sea", '{"deep": true}')
TOLD = "\N{PILCROW SIGN}"  # a marker in a test's text; without it, the same characters are text


def marked(text: str) -> tuple[str, list[int]]:
    """Return a text and where its markers begin."""
    parts = text.split(TOLD)
    return "".join(parts), [sum(map(len, parts[:at])) for at in range(1, len(parts))]


def answer(text: str) -> str:
    """Return a text with all its markers marked."""
    return re.sub(r"(?=<\|)", TOLD, text)


def pieces_of(text: str, cuts: Sequence[int]) -> list[Piece]:
    """Cut a text; a marker is told with the piece in which it begins."""
    plain, markers = marked(text)
    places = sorted({0, len(plain), *(each for each in cuts if each < len(plain))})
    return [
        Piece(plain[begin:end], 1, [each for each in markers if begin <= each < end])
        for begin, end in pairwise(places)
    ]


def joined(parts: Sequence[Part]) -> tuple[str, str, list[Call]]:
    assert all(parts), "nothing is told for nothing"
    thought = "".join(part.text for part in parts if isinstance(part, Thought))
    return (
        thought,
        "".join(part for part in parts if isinstance(part, str)),
        [part for part in parts if isinstance(part, Call)],
    )


def separated(pieces: Sequence[Piece], *, once: bool = False) -> tuple[str, str, list[Call]]:
    channels = Channels({"sea"}, once=once)
    return joined([part for piece in pieces for part in channels.push(*piece)] + channels.finish())


@pytest.mark.parametrize(
    ("text", "thought", "content", "calls"),
    [
        (
            "<|channel|>analysis<|message|>Is it?<|end|><|start|>assistant<|channel|>final<|message|> It is.\n",
            "Is it?",
            " It is.\n",
            [],
        ),
        ("<|channel|>final<|message|>It is.<|return|>", "", "It is.", []),
        # Calls, as the model writes them and as the template does; what is said before them is for the user.
        (
            "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.sea "
            '<|constrain|>json<|message|>{"deep": true}<|call|>',
            "I look.",
            "",
            [SEA],
        ),
        (' to=functions.sea<|channel|>commentary json<|message|>{"deep": true}<|call|>', "", "", [SEA]),
        (
            "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.sea<|channel|>commentary"
            '<|constrain|>json<|message|>{"deep": true}',
            "",
            "I look.",
            [SEA],
        ),
        ('<|channel|>analysis to=functions.sea code<|message|>{"deep": true}', "", "", [SEA]),
        ("<|channel|>commentary to=functions.sea<|message|><|call|>", "", "", [Call("sea", "{}")]),
        # No calls: cut off, of no function of the request, or for tools that the model knows from its training.
        ('<|channel|>commentary to=functions.sea<|message|>{"deep": tr', "", '{"deep": tr', []),
        ("<|channel|>commentary to=functions.sky<|message|>{}<|call|>", "", "{}", []),
        ("<|channel|>analysis to=python code<|message|>1 + 1<|call|>", "1 + 1", "", []),
        # Several messages of a kind.
        (
            "<|channel|>analysis<|message|>Is it?<|end|><|start|>assistant<|channel|>analysis<|message|>It is.<|end|>"
            "<|start|>assistant<|channel|>commentary<|message|>Well.<|end|>"
            "<|start|>assistant<|channel|>final<|message|>It is.",
            "Is it?\nIt is.",
            "Well.\nIt is.",
            [],
        ),
        # An answer may end anywhere, and an adapter may answer without any message.
        ("", "", "", []),
        ("<|channel|>ana", "", "", []),
        ("<|channel|>analysis<|message|>Is i", "Is i", "", []),
        ("It is.", "", "It is.", []),
        ("to", "", "to", []),
        (" to be", "", " to be", []),
        ("It is.<|end|><|start|>assistant<|channel|>analysis<|message|>Is it?", "Is it?", "It is.", []),
        # Malformed ones.
        ("<|channel|>finalIt is.", "", "finalIt is.", []),
        ("<|channel|>analysis It is.<|end|>It is not.", "analysis It is.", "It is not.", []),
        ("<|channel|>analysis<|channel|>final<|message|>It is.<|message|> So.", "It is. So.", "", []),
        ("<|start|>user<|message|>Is it?", "", "userIs it?", []),
        ("<|start|><|start|><|end|><|end|><|message|>It is.<|constrain|>", "", "It is.", []),
        ("<|channel|>" + "to=x" * 99, "", "to=x" * 99, []),
    ],
)
def test_messages(text: str, thought: str, content: str, calls: list[Call]) -> None:
    text = answer(text)
    assert separated(pieces_of(text, [])) == (thought, content, calls)
    assert separated(pieces_of(text, range(len(text)))) == (thought, content, calls)


def test_only_tokens_are_markers_and_not_what_looks_like_one() -> None:
    """As in an answer about the format itself, or a call that writes a file about it."""
    said = "<|end|><|start|>assistant<|channel|>analysis<|message|>So."
    text = answer("<|channel|>final<|message|>") + said
    assert separated(pieces_of(text, range(len(text)))) == ("", said, [])
    written = f'{{"a": "{said}<|call|>"}}'
    text = answer("<|channel|>commentary to=functions.sea<|message|>") + written + answer("<|call|>")
    assert separated(pieces_of(text, [])) == ("", "", [Call("sea", written)])
    assert separated(pieces_of(said, range(len(said)))) == ("", said, [])


def test_a_call_that_was_cut_off_before_its_arguments_is_none() -> None:
    text = answer("<|channel|>commentary to=functions.sea<|message|>")
    for cut, calls in (False, [Call("sea", "{}")]), (True, []):
        channels = Channels({"sea"})
        found = [part for piece in pieces_of(text, []) for part in channels.push(*piece)]
        assert joined([*found, *channels.finish(cut=cut)]) == ("", "", calls)


def test_one_call_at_most_drops_what_follows_it() -> None:
    call = '<|channel|>commentary to=functions.sea<|message|>{"deep": true}<|call|>'
    text = answer(f"{call}It is.{call}<|channel|>analysis<|message|>Is it?")
    assert separated(pieces_of(text, []), once=True) == ("", "", [SEA])
    assert separated(pieces_of(text, [])) == ("Is it?", "It is.", [SEA, SEA])


_MARKERS = [f"<|{name}|>" for name in ("start", "channel", "constrain", "message", "end", "call", "return")]
_WORDS = ["assistant", "analysis", "final", "commentary", "json", " to=functions.sea", "to=", "{}", " ", "~", "ana"]
_texts = st.lists(st.sampled_from([*map(answer, _MARKERS), *_MARKERS, *_WORDS]), max_size=16).map("".join)


@given(text=_texts, cuts=st.lists(st.integers(0, 200), max_size=8), once=st.booleans())
@example(text=answer("<|channel|>analysis<|message|>~"), cuts=[0, 3, 11], once=False)
def test_nothing_depends_on_how_an_answer_is_cut(text: str, cuts: list[int], once: bool) -> None:
    assert separated(pieces_of(text, cuts), once=once) == separated(pieces_of(text, []), once=once)


@given(text=_texts)
def test_no_text_is_lost(text: str) -> None:
    """Only headers are dropped, which have none of these characters."""
    thought, content, calls = separated(pieces_of(text, []))
    told = thought + content + "".join(call.arguments for call in calls)
    assert told.count("~") == text.count("~")


@given(text=_texts, cuts=st.lists(st.integers(0, 200), max_size=8))
def test_complete_and_streamed_answers_are_the_same(text: str, cuts: list[int]) -> None:
    started = Started(calls=Chat.HARMONY, thought=Started.CHANNELS)
    how = parsing(Tools([Function("sea")], "auto"), "", started, shows=True)
    assert how
    pieces, streamed, whole = pieces_of(text, cuts), how.parser(), how.parser()
    assert joined([part for piece in pieces for part in streamed.push(piece)] + streamed.finish()) == joined(
        whole.whole(pieces)
    )
    assert (streamed.thought, streamed.thought_tokens) == (whole.thought, whole.thought_tokens)


def test_text_is_told_as_soon_as_it_cannot_be_a_header() -> None:
    channels = Channels(())
    assert channels.push("to") == []
    assert channels.push("day") == ["today"]
    assert channels.push("<|channel|>", markers=[5]) == []
    assert channels.push("analysis") == []
    assert channels.push("<|message|>", markers=[24]) == []
    assert channels.push("It") == [Thought("It")]


def test_the_tokens_of_thoughts_are_counted_with_their_markers() -> None:
    parts = [
        *("<|channel|>", "analysis", "<|message|>", "Is ", "it?", "<|end|>"),
        *("<|start|>", "assistant", "<|channel|>", "commentary", "<|message|>", "Well.", "<|end|>"),
        *("<|start|>", "assistant", "<|channel|>", "analysis", "<|message|>", "It is.", "<|end|>"),
        *("<|start|>", "assistant", "<|channel|>", "final", "<|message|>", "It is."),
    ]
    channels, at = Channels(()), 0
    for part in parts:
        channels.push(part, 1, [at] if part.startswith("<|") else [])
        at += len(part)
    assert (channels.tokens, channels.found) == (6 + 7, True)
