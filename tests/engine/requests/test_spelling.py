"""The bytes by which log-probabilities name tokens: those that texts consist of, for every kind of tokenizer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mint_engine.requests.spelling import Spelling
from tests.engine.running import save_tokenizer

TEXTS = ["the plain one", " begins with a space", "naïve café", "日本語です", "👩‍👩‍👧 family 🎉"]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def sentence_piece() -> PreTrainedTokenizerBase:
    """As in Llama 2 and Gemma: marks for spaces, and unknown characters byte by byte."""
    known = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"▁abcdefghijklmnopqrstuvwxyz",
        "▁t",
    ]
    tokenizer = Tokenizer(
        models.BPE({token: at for at, token in enumerate(known)}, [("▁", "t")], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="module")
def word_piece() -> PreTrainedTokenizerBase:
    """As in BERT: tokens are separate words unless they begin with ##."""
    known = ["[UNK]", "a", "sing", "##ing"]
    tokenizer = Tokenizer(models.WordPiece({token: at for at, token in enumerate(known)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, unk_token="[UNK]"
    )


@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_what_its_tokens_are_written_as(kind: str, text: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    spelling = Spelling(tokenizer)
    assert b"".join(spelling[token] for token in tokenizer.encode(text, add_special_tokens=False)).decode() == text


@given(st.lists(st.integers(2, 299), max_size=30))
def test_bytes_are_those_that_the_tokenizer_decodes(byte_level: PreTrainedTokenizerBase, tokens: list[int]) -> None:
    spelling = Spelling(byte_level)
    written = b"".join(spelling[token] for token in tokens)
    assert written.decode(errors="replace") == byte_level.decode(tokens, clean_up_tokenization_spaces=False)


def test_a_word_is_written_with_the_space_before_it(word_piece: PreTrainedTokenizerBase) -> None:
    spelling = Spelling(word_piece)
    assert [spelling[token] for token in (2, 3)] == [b" sing", b"ing"]


def test_a_special_token_is_written_by_its_name(
    byte_level: PreTrainedTokenizerBase, sentence_piece: PreTrainedTokenizerBase
) -> None:
    assert Spelling(sentence_piece)[2] == b"</s>"
    for id_ in byte_level.all_special_ids:
        assert Spelling(byte_level)[id_].decode() == byte_level.convert_ids_to_tokens(id_)


@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece"])
def test_rows_that_no_token_has_are_not_written(kind: str, request: pytest.FixtureRequest) -> None:
    """A base's vocabulary may be padded beyond its tokenizer's."""
    tokenizer = request.getfixturevalue(kind)
    assert Spelling(tokenizer)[len(tokenizer)] == b""
