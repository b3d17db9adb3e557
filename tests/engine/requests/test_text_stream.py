"""Text in pieces: complete characters only, nothing of a stop string, and together exactly the tokens' text."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mint_engine.requests.pieces import _BYTE_OF, INCOMPLETE, ByteDecoder, Pieces, WindowDecoder, choose_decoder
from mint_engine.requests.text import Decoder, TextStream


def letters(ids: list[int]) -> str:
    """One letter per token."""
    return "".join(chr(each) for each in ids)


def run(text: str, stop: tuple[str, ...]) -> tuple[list[str], bool]:
    """Push a text letter by letter, as the engine does; return the pieces and whether a stop string ended it."""
    stream, pieces = TextStream(WindowDecoder(letters, ()), stop), []
    for letter in text:
        piece, stopped = stream.push(ord(letter))
        pieces.append(piece)
        if stopped:
            return pieces, True
    return [*pieces, stream.finish()], False


@given(st.text("abc", max_size=40), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    pieces, stopped = run(text, tuple(stop))
    # The stop string that is complete first ends the text; of several at once, the one that begins first.
    ends = [(text.index(each) + len(each), text.index(each)) for each in stop if each in text]
    assert stopped == bool(ends)
    assert "".join(pieces) == (text[: min(ends)[1]] if ends else text)


@given(st.text("abc", max_size=40), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_published_pieces_of_text_never_change(text: str, stop: list[str]) -> None:
    """Whatever comes next, published text stays right: pieces of a text begin the text of any longer one."""
    for length in range(len(text)):
        stream = TextStream(WindowDecoder(letters, ()), tuple(stop))
        out = ""
        for letter in text[:length]:
            piece, stopped = stream.push(ord(letter))
            out += piece
            if stopped:
                break
        assert "".join(run(text, tuple(stop))[0]).startswith(out)


class Counted(str):
    """Counts how often a part of it is looked at."""

    looks = 0

    def __getitem__(self, at: Any) -> str:
        type(self).looks += 1
        return super().__getitem__(at)


def test_long_strings_that_nearly_come_are_not_looked_for_from_their_beginning_again() -> None:
    stop = [Counted("a" * 200 + "b"), *(Counted("ab" * 100 + letter) for letter in "cdef")]
    stream = TextStream(WindowDecoder(letters, ()), stop)
    assert [stream.push(ord("a")) for _ in range(200)] == [("", False)] * 200
    Counted.looks = 0
    assert [stream.push(ord("a")) for _ in range(100)] == [("a", False)] * 100
    assert Counted.looks <= 100 * len(stop) * 4
    assert stream.push(ord("b")) == ("", True)


def decode_with(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], str]:
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True))


@pytest.fixture(params=["by bytes", "by the tokenizer"])
def decoder(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], Decoder]:
    """The decoder of a completion after a prompt, both ways."""
    if request.param == "by bytes":
        return choose_decoder(tokenizer)
    return lambda prompt: WindowDecoder(decode_with(tokenizer), prompt)


@pytest.mark.parametrize(
    "text", ["plain", "naïve café", "日本語です", "👩‍👩‍👧 family 🎉🎉", "𐍈𐌰 gothic", "ends with 🎉"]
)
def test_characters_of_several_tokens_come_whole(
    tokenizer: PreTrainedTokenizerBase, decoder: Callable[[list[int]], Decoder], text: str
) -> None:
    prompt, tokens = tokenizer.encode("the prompt "), tokenizer.encode(text)
    stream = TextStream(decoder(prompt), ("never",))
    pieces = [stream.push(token)[0] for token in tokens] + [stream.finish()]
    assert "".join(pieces) == text
    assert not any(INCOMPLETE in piece for piece in pieces)


def test_half_a_character_at_the_end_is_dropped(
    tokenizer: PreTrainedTokenizerBase, decoder: Callable[[list[int]], Decoder]
) -> None:
    tokens = tokenizer.encode("a🎉")
    stream = TextStream(decoder([]))
    pieces = [stream.push(token)[0] for token in tokens[:-1]] + [stream.finish()]
    assert "".join(pieces) == "a"


@given(st.lists(st.integers(0, 299), max_size=30))
def test_bytes_give_what_the_tokenizer_gives(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> None:
    """For any tokens: special ones show nothing, and bytes that are no character show as the tokenizer shows them."""
    decoder = choose_decoder(tokenizer)([])
    assert isinstance(decoder, ByteDecoder)
    assert "".join(map(decoder.push, tokens)) == decode_with(tokenizer)(tokens).rstrip(INCOMPLETE)


def ends(data: bytes) -> Iterator[int]:
    """Where each character ends, counting replacements of bytes that form none."""
    at = 0
    while at < len(data):
        size = 1
        while size:
            try:
                data[at : at + size].decode()
                break
            except UnicodeDecodeError as error:
                if size == 4:
                    size = error.end
                    break
                size += 1
        at += size
        yield at


@given(st.lists(st.integers(0, 299), max_size=30))
def test_a_token_begins_where_the_characters_before_it_end(
    tokenizer: PreTrainedTokenizerBase, tokens: list[int]
) -> None:
    """A token that continues a character begins where that character begins; also while text is held back."""
    pieces, stream = Pieces(tokenizer.backend_tokenizer), TextStream(choose_decoder(tokenizer)([]), ("never",))
    written = [pieces[token] for token in tokens]
    for at, token in enumerate(tokens):
        stream.push(token)
        if written[at] and b"\xed" not in written:  # Python cannot tell early that 0xED begins no character
            before = len(b"".join(written[:at]))
            assert stream.begins == sum(end <= before for end in ends(b"".join(written)))


@pytest.mark.parametrize("text", ["plain", "naïve café 🎉"])
def test_one_that_is_not_of_the_text_begins_where_that_ends(
    tokenizer: PreTrainedTokenizerBase, decoder: Callable[[list[int]], Decoder], text: str
) -> None:
    """Also after half a character, which is never sent."""
    for left, length in ((0, len(text)), (1, len(text) - 1)):
        stream, tokens = TextStream(decoder([])), tokenizer.encode(text)
        told = "".join(stream.push(token)[0] for token in tokens[: len(tokens) - left])
        stream.skip()
        assert (stream.begins, told + stream.finish()) == (length, text[:length])


@given(st.text(max_size=20), st.sampled_from([(), (0xE2,), (0xF0, 0x9F)]))
def test_windows_place_tokens_where_bytes_do(text: str, broken: tuple[int, ...]) -> None:
    """Also after bytes that begin a character but never complete it."""
    windows, bytewise = WindowDecoder(replacing, []), ByteDecoder({byte: bytes([byte]) for byte in range(256)})
    for token in (*text.encode(), *broken, ord("a"), *text.encode()):
        windows.push(token)
        bytewise.push(token)
        assert windows.begins == bytewise.begins


@given(st.lists(st.integers(2, 299), max_size=60))
def test_windows_give_what_the_tokenizer_gives(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> None:
    decoder = WindowDecoder(decode_with(tokenizer), [])
    text = "".join(map(decoder.push, tokens)) + decoder.finish()
    assert text.rstrip(INCOMPLETE) == decode_with(tokenizer)(tokens).rstrip(INCOMPLETE)


def replacing(ids: list[int]) -> str:
    """Each token is a byte."""
    return bytes(ids).decode(errors="replace")


def falling_back(ids: list[int]) -> str:
    """Each token is a letter or a byte, as SentencePiece's tokenizers write unknown characters."""
    return str(decoders.ByteFallback().decode([chr(each) if each < 128 else f"<0x{each:02X}>" for each in ids]))


@pytest.mark.parametrize("prompt", ["🎉🎉", "日éé日", "ab🎉éé"])
def test_a_character_of_bytes_comes_whole_after_a_prompt_of_such_characters(prompt: str) -> None:
    """Also if the last few of the prompt's tokens begin within one of them: SentencePiece then shows none of them."""
    decoder = WindowDecoder(falling_back, prompt.encode())
    assert "".join(map(decoder.push, "🎉".encode())) == "🎉"


def shown(ids: list[int]) -> str:
    """Each token is a word, as in Llama 2: a text's first space is not shown; 0 is a special token."""
    words = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return str(words.decode([f"▁{chr(each)}" for each in ids if each]))


def test_a_word_keeps_its_space_after_tokens_that_show_nothing() -> None:
    decoder, tokens = WindowDecoder(shown, []), [*b"a", 0, *b"bc", 0, 0, *b"d"]
    assert "".join(map(decoder.push, tokens)) == shown(tokens) == "a b c d"


@pytest.mark.parametrize("decode", [replacing, falling_back])
@pytest.mark.parametrize("broken", [b"\xff", b"\x80", b"\xf0", b"\xe4\xb8", b"\xf0\x9f\x98"])
def test_bytes_that_never_form_a_character_cost_no_more_than_others(
    decode: Callable[[list[int]], str], broken: bytes
) -> None:
    longest = 0

    def watched(ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids)

    decoder = WindowDecoder(watched, ())
    data = broken * (1000 // len(broken))
    pieces = [decoder.push(byte) for byte in data]
    assert "".join(pieces) == "", "nothing is shown that may be the end"
    pieces += [decoder.push(byte) for byte in b"ok"] + [decoder.finish()]
    assert longest <= 12
    assert "".join(pieces) == decode(list(data)) + "ok"


def test_every_byte_has_its_letter() -> None:
    assert set(_BYTE_OF) == set(ByteLevel.alphabet())
    assert sorted(_BYTE_OF.values()) == list(range(256))


def test_another_kind_of_tokenizer_decodes_itself(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """A tokenizer with another decoder (here one that turns marks into spaces) is not taken for byte-level."""
    tokenizer.save_pretrained(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path)
    other.backend_tokenizer.decoder = decoders.Metaspace()
    assert isinstance(choose_decoder(other)([1]), WindowDecoder)


def test_marks_of_calls_are_text_even_as_special_tokens(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path)
    other.add_tokens(["<tool_call>", "<|pad|>"], special_tokens=True)
    tokens = other.encode("a<tool_call>b<|pad|>c")
    assert len(tokens) == 5
    for kind in (ByteDecoder, WindowDecoder):
        decoder = choose_decoder(other)([])
        assert isinstance(decoder, kind)
        assert "".join(map(decoder.push, tokens)) == "a<tool_call>bc"
        other.backend_tokenizer.decoder = decoders.Metaspace()
