"""Small GGUF files, made by llama.cpp's own writer."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, PreTrainedModel

from tests.engine.families import SIZES

PLAIN: dict[str, Any] = SIZES | {"hidden_size": 64}
LLAMA = LlamaConfig(**PLAIN, attention_bias=False)


def write(path: Path, *, architecture: str = "llama", layers: int = 2) -> int:
    """Write a GGUF file with 4 MB of weights; return the size of its head in bytes."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    for add in (writer.add_embedding_length, writer.add_feed_forward_length, writer.add_context_length):
        add(64)
    writer.add_head_count(4)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"word{number}" for number in range(1000)])
    writer.add_token_types([1] * 1000)
    writer.add_bool("general.file_is_whole", True)
    writer.add_tensor("token_embd.weight", np.ones((1024, 1024), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = gguf.GGUFReader(path)
    last = reader.tensors[-1].field
    return int(last.offset + sum(part.nbytes for part in last.parts))


# The converter interleaves both halves of Llama's heads, which are rotated together.
_PAIRED = ("q_proj", "k_proj")


def save(
    path: Path,
    model: PreTrainedModel,
    architecture: str,
    told: Mapping[str, Any] | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
    *,
    without: str = "",
    only: str = "",
) -> None:
    """Write a model as llama.cpp's converter does, with further metadata and tensors.

    Leaves out the tensors whose names contain `without`, and writes only those whose names contain `only`.
    """
    config: Any = model.config
    writer = gguf.GGUFWriter(path, architecture)
    _tell_sizes(writer, config)
    for key, value in ({"tokenizer.ggml.pre": "gpt-2"} | dict(told or {})).items():
        add: dict[type, Any] = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        add[type(value)](key.replace("ARCH", architecture), value)
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for key, weight in _unstacked(model.state_dict()):
        stem, _, suffix = key.rpartition(".")
        name = f"{names.get_name(stem)}.{suffix}"
        if architecture == "llama" and stem.endswith(_PAIRED):
            heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
            weight = weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
        if only in name and (not without or without not in name):
            writer.add_tensor(name, weight.float().squeeze().contiguous().numpy())
    for name, weight in (tensors or {}).items():
        writer.add_tensor(name, weight.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _unstacked(held: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a model's tensors by the names that the converter knows, with experts' gates and ups apart."""
    for key, weight in held.items():
        path, _, kind = key.rpartition(".")
        if kind == "gate_up_proj":
            gates, ups = weight.chunk(2, dim=1)
            yield from ((f"{path}.gate_proj.weight", gates), (f"{path}.up_proj.weight", ups))
        elif kind == "e_score_correction_bias":
            yield f"{path}.gate.e_score_correction.bias", weight
        else:
            yield f"{key}.weight" if kind == "down_proj" else key, weight


def _tell_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_tokenizer_model("gpt2")
    words = ["a", "b", "ab", *(f"word{number}" for number in range(config.vocab_size - 3))]
    writer.add_token_list(words)
    writer.add_token_types([1] * len(words))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(1)
