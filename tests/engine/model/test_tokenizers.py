"""A base's tokenizer splits texts as its files say, whatever class they name."""

import json
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trl
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from mint_contracts.errors import UnsupportedBase
from mint_engine.model.files import find_files, read_tokenizer
from tests.engine import ggufs
from tests.engine.families import make_model
from tests.engine.made import edit_json
from tests.engine.running import TEMPLATE, save_base

TEXTS = ["    42\n        return 100", "a  12", "  two", " ", "日本 naïve\n x", "a<|end|> b<|end|>c"]


def by_digits() -> Tokenizer:
    """As SmolLM2's and StarCoder2's: each digit is apart."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ĠĠ", "ĠĠĠĠ"]
    merges = [("Ġ", "Ġ"), ("ĠĠ", "ĠĠ")]
    tokenizer = Tokenizer(models.BPE({piece: at for at, piece in enumerate(pieces)}, merges))
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _by_pieces() -> Tokenizer:
    known = [*(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyz", "▁▁"]
    return Tokenizer(models.BPE({piece: at for at, piece in enumerate(known)}, [("▁", "▁")], byte_fallback=True))


def with_a_space_before() -> Tokenizer:
    """As Llama 2's."""
    tokenizer = _by_pieces()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def without_a_space_before() -> Tokenizer:
    """As Yi's."""
    tokenizer = _by_pieces()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


class Published(NamedTuple):
    """A tokenizer, and the class that its tokenizer_config.json names."""

    make: Callable[[], Tokenizer]
    kind: str


@pytest.mark.parametrize(
    "published",
    [
        Published(by_digits, "GPT2Tokenizer"),
        Published(by_digits, "Qwen2Tokenizer"),
        Published(with_a_space_before, "LlamaTokenizer"),
        Published(without_a_space_before, "LlamaTokenizerFast"),
    ],
    ids=lambda published: f"{published.make.__name__} {published.kind}",
)
def test_a_tokenizer_json_is_taken_as_it_is(published: Published, tmp_path: Path) -> None:
    """transformers' classes take only the vocabulary from it, and split texts in their own way."""
    save_base(tmp_path)
    written = published.make()
    written.add_special_tokens(["<|end|>"])
    written.save(str(tmp_path / "tokenizer.json"))
    edit_json(tmp_path / "tokenizer_config.json", tokenizer_class=published.kind)
    read = read_tokenizer(find_files(tmp_path))
    assert [read.encode(text) for text in TEXTS] == [written.encode(text).ids for text in TEXTS]
    assert (read.eos_token, bool(read.chat_template)) == ("<|end|>", True)


def test_a_processors_chat_template_is_used_if_there_is_no_other(tmp_path: Path) -> None:
    """As of vision-language bases: Mistral Small 3.1 has no other."""
    save_base(tmp_path)
    theirs = "{% for message in messages %}[INST]{{ message.content }}{% endfor %}"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": theirs}))
    assert read_tokenizer(find_files(tmp_path)).chat_template == TEMPLATE
    (tmp_path / "chat_template.jinja").unlink()
    assert read_tokenizer(find_files(tmp_path)).chat_template == theirs


@pytest.mark.parametrize("name", ["llava_next", "idefics3", "smolvlm"])
def test_a_processors_template_that_takes_only_parts_gets_text_as_one(name: str, tmp_path: Path) -> None:
    """Given a string, it would write nothing of it."""
    save_base(tmp_path)
    theirs = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    (tmp_path / "chat_template.jinja").write_text(theirs)
    read: Any = read_tokenizer(find_files(tmp_path))
    said = [("system", "Be brief."), ("user", "How?"), ("assistant", "So.")]
    texts = [{"role": role, "content": text} for role, text in said]
    parts = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
    written = read.apply_chat_template(texts, tokenize=False)
    assert written == read.apply_chat_template(parts, tokenize=False, chat_template=theirs)
    assert all(text in written for _, text in said)


@pytest.mark.parametrize(
    ("told", "begins"),
    [({"add_bos_token": True, "tokenizer_class": "LlamaTokenizerFast"}, True),
     ({"add_bos_token": False, "tokenizer_class": "LlamaTokenizerFast"}, False),
     ({"add_bos_token": True, "tokenizer_class": "Qwen2Tokenizer"}, False)],
)  # fmt: skip
def test_texts_begin_with_bos_where_llamas_classes_added_it(
    told: dict[str, Any], begins: bool, tmp_path: Path
) -> None:
    """As DeepSeek's: nothing else says so, and transformers 5 ignores it. A chat has the template's BOS alone."""
    save_base(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", bos_token="<|start|>", **told)
    read: Any = read_tokenizer(find_files(tmp_path))
    begin = read.bos_token_id
    assert (read.encode("a")[0] == begin) == begins
    chat = read.apply_chat_template([{"role": "user", "content": "a"}], return_dict=False)
    assert chat[:2].count(begin) == 1


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer", "PreTrainedTokenizerFast"])
def test_a_base_without_a_vocabulary_is_refused(kind: str, tmp_path: Path) -> None:
    """transformers makes some tokenizers of their special tokens alone."""
    save_base(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", tokenizer_class=kind)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedBase, match=r"has no .*; put a tokenizer\.json beside its weights"):
        read_tokenizer(find_files(tmp_path))


def test_mistrals_own_file_makes_a_tokenizer_whose_texts_begin_with_its_bos(tmp_path: Path) -> None:
    """As of Mistral Small 3.2, which has no other."""
    save_base(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    edit_json(tmp_path / "config.json", model_type="mistral")
    named = ["<unk>", "<s>", "</s>", "[INST]"]
    letters = [{"rank": at, "token_bytes": b64encode(bytes([at])).decode(), "token_str": ""} for at in range(256)]
    sizes = {"num_vocab_tokens": 256, "default_vocab_size": 260, "default_num_special_tokens": len(named)}
    special = [{"rank": at, "token_str": name, "is_control": True} for at, name in enumerate(named)]
    told = {"config": sizes | {"pattern": r"\p{L}+|\p{N}| ", "version": "v13"}, "vocab": letters}
    (tmp_path / "tekken.json").write_text(json.dumps(told | {"special_tokens": special}))
    read = read_tokenizer(find_files(tmp_path))
    assert read.encode("a") == [1, len(named) + ord("a")]
    assert (read.bos_token, read.eos_token_id) == ("<s>", 2)


def read_gguf(folder: Path, told: dict[str, Any]) -> Any:
    """Read the tokenizer of a GGUF file with that metadata; its words include "a" as 0, and 1 is BOS."""
    ggufs.save(folder / "tiny.gguf", make_model(ggufs.LLAMA), "llama", told, only="token_embd")
    return read_tokenizer(find_files(folder))


@pytest.mark.parametrize(
    ("told", "pieces"),
    [
        ("gpt-2", ["a", "Ġ", "Ġ42"]),
        ("smollm", ["a", "ĠĠ", "4", "2"]),
        ("starcoder", ["a", "ĠĠ", "4", "2"]),
        ("llama-bpe", ["a", "Ġ", "Ġ", "42"]),
        ("qwen2", ["a", "Ġ", "Ġ", "4", "2"]),
    ],
)
def test_a_gguf_files_tokenizer_splits_as_the_file_says(told: str, pieces: list[str], tmp_path: Path) -> None:
    read = read_gguf(tmp_path, {"tokenizer.ggml.pre": told})
    found = read.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  42")
    assert [piece for piece, _ in found] == pieces


@pytest.mark.parametrize(
    ("told", "says"),
    [({"tokenizer.ggml.pre": "deepseek-coder"}, "splits texts by 'deepseek-coder', which is not read; give"),
     ({"tokenizer.ggml.pre": ""}, "splits texts in a way that is not told, as in old GGUF files; give the model")],
)  # fmt: skip
def test_a_gguf_files_tokenizer_that_would_split_otherwise_needs_a_tokenizer_json_beside_it(
    told: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedBase, match=says):
        read_gguf(tmp_path, told)
    by_digits().save(str(tmp_path / "tokenizer.json"))
    read = read_tokenizer(find_files(tmp_path))
    assert [read.encode(text) for text in TEXTS] == [by_digits().encode(text).ids for text in TEXTS]


@pytest.mark.parametrize("way", ["llama-bpe", "lfm2"])
@pytest.mark.parametrize(
    ("told", "tokens"), [({}, [1, 0]), ({"add_bos_token": True}, [1, 0]), ({"add_bos_token": False}, [0])]
)
def test_llama_3s_texts_begin_as_its_gguf_file_says(
    way: str, told: dict[str, Any], tokens: list[int], tmp_path: Path
) -> None:
    """Most files do not say it, and mean that they do."""
    named = {f"tokenizer.ggml.{key}": value for key, value in told.items()}
    read = read_gguf(tmp_path, {"tokenizer.ggml.pre": way} | named)
    assert (read.encode("a"), read.backend_tokenizer.model.ignore_merges) == (tokens, True)
