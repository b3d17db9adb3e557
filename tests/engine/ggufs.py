"""GGUF files as llama.cpp's own writer makes them, small ones."""

from pathlib import Path

import gguf
import numpy as np


def write(path: Path, *, architecture: str = "llama", layers: int = 2) -> int:
    """A GGUF file with 4 MB of weights; the bytes of its head."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    for add in (writer.add_embedding_length, writer.add_feed_forward_length, writer.add_context_length):
        add(64)
    writer.add_head_count(4)
    writer.add_tokenizer_model("gpt2")
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
