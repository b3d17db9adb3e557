"""How a GGUF file's tokenizer splits texts before it merges bytes, where transformers does not read it.

transformers knows some of the ways that files name, and splits by GPT-2's rules for all others, so that many texts
would silently become other tokens. Names mean what llama.cpp takes them to mean (src/llama-vocab.cpp).
"""

from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.integrations.gguf.reader import read_gguf_metadata

from mint_contracts.errors import UnsupportedBase

_BY_GPT2 = frozenset({"a.x-4.0", "exaone4", "gigachat", "gpt-2", "granite-docling", "jais", "mellum", "mpt", "olmo",
                      "phi-2", "trillion"})  # fmt: skip
# As GPT-2's, after each digit has been set apart.
_BY_DIGITS = frozenset({"codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder"})
# Words of the vocabulary are taken whole, not merged, and texts get a BOS token unless the file denies it.
_WHOLE_WORDS = frozenset({"falcon-h1", "falcon3", "jina-v5-nano", "lfm2", "llama-bpe", "llama-v3", "llama3",
                          "midm-2.0", "pixtral", "tekken"})  # fmt: skip


def split_as_told(tokenizer: PreTrainedTokenizerBase, path: Path, subject: str) -> None:
    """Have the tokenizer that transformers made of a file split as the file says. Raises UnsupportedBase."""
    metadata, _ = read_gguf_metadata(str(path))
    told = metadata.get("tokenizer.ggml.pre")
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        return
    if told not in GGUF_PRE_TOKENIZER_SPLITS.keys() | _BY_GPT2 | _BY_DIGITS:
        way = f"by {told!r}, which is not read" if told else "in a way that is not told, as in old GGUF files"
        raise UnsupportedBase(
            subject,
            f"has a tokenizer that splits texts {way}; give the model as safetensors or as another GGUF file, or "
            "name a folder in which the model's tokenizer.json and tokenizer_config.json lie beside the file",
        )
    made: Any = tokenizer  # of tokenizers' own type
    if told in _BY_DIGITS:
        made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if told in _WHOLE_WORDS:
        made.backend_tokenizer.model.ignore_merges = True
        made.add_bos_token = metadata.get("tokenizer.ggml.add_bos_token", True)
