"""Where a prompt's tokens begin, in characters of the text that the client sent, however the tokenizer splits it."""

import codecs
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mint_contracts.sampling_pb2 import GenerateRequest, TokenIds
from mint_engine.requests.offsets import prompt_offsets
from mint_engine.requests.spelling import Spelling

TEXTS = ["the  sea \n  is", "naïve café", "日本語です the", "👩‍👩‍👧 the 🎉", "ends with 🎉"]


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")  # type: ignore[no-untyped-call]


def byte_level(*, trim: bool = False) -> PreTrainedTokenizerBase:
    """GPT-2's kind, with tokens that begin or end with spaces; it adds a start token."""
    known = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt", "ĊĠ", "th"]
    vocabulary = {token: at for at, token in enumerate(known)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "t"), ("Ċ", "Ġ"), ("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    begins = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=trim), begins])
    return wrapped(tokenizer)


def sentence_piece() -> PreTrainedTokenizerBase:
    """Llama 2's kind: it puts a mark before the text and splits unknown characters into bytes."""
    known = ["<s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyz\n"]
    vocabulary = {token: at for at, token in enumerate(known)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return wrapped(tokenizer)


def offsets(request: GenerateRequest, prompt: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(prompt_offsets(request, prompt, tokenizer, Spelling(tokenizer)))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [byte_level, lambda: byte_level(trim=True), sentence_piece])
def test_a_token_begins_at_the_character_that_it_begins_or_goes_on_with(
    make: Callable[[], PreTrainedTokenizerBase], text: str
) -> None:
    tokenizer = make()
    prompt = tokenizer.encode(text)
    begin, *told = offsets(GenerateRequest(text=text), prompt, tokenizer)
    written = [Spelling(tokenizer)[token] for token in prompt[1:]]
    if b"".join(written) != text.encode():  # the mark, which the text does not have
        told, written = told[1:], written[1:]
    assert b"".join(written) == text.encode()
    assert (begin, told[0]) == (0, 0)
    for at, place in enumerate(told):
        whole, _ = codecs.utf_8_decode(b"".join(written[:at]), "strict", False)
        assert place == len(whole)


def test_a_text_is_counted_as_it_was_sent() -> None:
    """A tokenizer may compose characters before splitting them."""
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    text = "e\u0301 th"
    prompt = tokenizer.encode(text)
    assert [Spelling(tokenizer)[token] for token in prompt] == [b"<s>", b"\xc3", b"\xa9", b" t", b"h"]
    assert offsets(GenerateRequest(text=text), prompt, tokenizer) == [0, 0, 0, 2, 4]


def test_tokens_are_placed_in_what_they_are_written_as() -> None:
    """Special tokens are written by name, and bytes that are not a character as their replacement character."""
    tokenizer = byte_level()
    prompt = [int(tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "th", "Ã", "©", "Ã", "th", "Ġt")]  # type: ignore[arg-type]
    assert b"".join(Spelling(tokenizer)[token] for token in prompt).decode(errors="replace") == "<s>thé\ufffdth t"
    assert offsets(GenerateRequest(tokens=TokenIds(ids=prompt)), prompt, tokenizer) == [0, 3, 5, 5, 6, 7, 9]
