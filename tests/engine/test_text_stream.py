"""Text in pieces: whole characters only, nothing of a stop string, and together exactly the tokens' text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mint_engine.text import TextStream
from tests.engine.running import save_tokenizer


def letters(ids: list[int]) -> str:
    """One letter a token."""
    return "".join(chr(each) for each in ids)


def run(text: str, stop: tuple[str, ...]) -> tuple[list[str], bool]:
    """Push a text letter by letter, as the engine does; returns the pieces and whether a stop string ended it."""
    stream, pieces = TextStream(letters, (), stop), []
    for letter in text:
        piece, stopped = stream.push(ord(letter))
        pieces.append(piece)
        if stopped:
            return pieces, True
    return [*pieces, stream.finish()], False


@given(st.text("abc", max_size=40), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    pieces, stopped = run(text, tuple(stop))
    # The stop string whose last letter comes first ends the text; of several there, the one that begins first.
    ends = [(text.index(each) + len(each), text.index(each)) for each in stop if each in text]
    assert stopped == bool(ends)
    assert "".join(pieces) == (text[: min(ends)[1]] if ends else text)


@given(st.text("abc", max_size=40), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_no_piece_has_to_be_taken_back(text: str, stop: list[str]) -> None:
    """Whatever comes next, what is out stays right: pieces of a text begin the text of any longer one."""
    for length in range(len(text)):
        stream = TextStream(letters, (), tuple(stop))
        out = ""
        for letter in text[:length]:
            piece, stopped = stream.push(ord(letter))
            out += piece
            if stopped:
                break
        assert "".join(run(text, tuple(stop))[0]).startswith(out)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "text", ["plain", "naïve café", "日本語です", "👩‍👩‍👧 family 🎉🎉", "𐍈𐌰 gothic", "ends with 🎉"]
)
def test_characters_of_several_tokens_come_whole(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    prompt, tokens = tokenizer.encode("the prompt "), tokenizer.encode(text)
    stream = TextStream(decode, prompt, ("never",))
    pieces = [stream.push(token)[0] for token in tokens] + [stream.finish()]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_dropped(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenizer.encode("a🎉")
    stream = TextStream(lambda ids: str(tokenizer.decode(ids)), (), ())
    pieces = [stream.push(token)[0] for token in tokens[:-1]] + [stream.finish()]
    assert "".join(pieces) == "a"
