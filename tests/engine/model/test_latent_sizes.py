"""The engine's own kernels compute what the generic pass does for latents of any size, however a request is cut."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DeepseekV3Config, DeepseekV32Config, PreTrainedConfig

from mint_engine.model.forward import Forward
from mint_engine.model.span import Span
from tests.engine.families import fill, make_forward

TOKENS = 150  # two of the blocks that matrix registers take at once
PAGES = list(range(1, 1 + -(-TOKENS // 16)))
SLOT = 2


@st.composite
def configs(draw: st.DrawFn) -> PreTrainedConfig:
    """One layer; direct or compressed queries, rotating neighbours or halves, sparse or not."""
    heads, rotated = draw(st.integers(1, 5)), draw(st.sampled_from([4, 8, 32]))
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "vocab_size": 96, "head_dim": rotated,
        "max_position_embeddings": 256, "initializer_range": 0.2, "first_k_dense_replace": 1,
        "num_attention_heads": heads, "num_key_value_heads": heads, "qk_rope_head_dim": rotated,
        "kv_lora_rank": draw(st.sampled_from([4, 20, 32, 64])), "qk_nope_head_dim": 2 * draw(st.integers(1, 9)),
        "v_head_dim": 2 * draw(st.integers(1, 9)), "q_lora_rank": 2 * draw(st.integers(1, 12)),
    }  # fmt: skip
    if draw(st.booleans()):
        index: dict[str, Any] = {"index_n_heads": 24, "index_head_dim": rotated + 4 * draw(st.integers(0, 3))}
        return DeepseekV32Config(**sizes, **index, index_topk=draw(st.integers(1, TOKENS + 9)))
    sizes["q_lora_rank"] = draw(st.sampled_from([None, sizes["q_lora_rank"]]))
    return DeepseekV3Config(**sizes, rope_interleave=draw(st.booleans()))


def logits(forward: Forward, pieces: list[int]) -> torch.Tensor:
    fill(forward.slots, SLOT, 3)
    found, start = [], 0
    for piece in (*pieces, TOKENS):
        stop = min(TOKENS, start + piece)
        if stop > start:
            tokens = [7 * at % 96 for at in range(start, stop)]
            span = Span(0, stop - start, start, PAGES, SLOT)
            found.append(forward.run(tokens, [span], range(stop - start)).clone())
        start = stop
    return torch.cat(found)


@settings(max_examples=25)
@given(configs(), st.lists(st.integers(1, 60), max_size=4))
def test_own_kernels_compute_what_modules_do(config: PreTrainedConfig, pieces: list[int]) -> None:
    lean, generic = make_forward(config, lean=True), make_forward(config)
    assert lean.compute.startswith("lean")
    found, expected = logits(lean, pieces), logits(generic, [])
    away = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    # Among tokens whose scores agree to float32's last digits, the passes may choose differently.
    assert (away > 1e-4).sum() <= (1 if hasattr(config, "index_topk") else 0)


@settings(max_examples=25)
@given(configs(), st.lists(st.integers(1, 60), max_size=4))
def test_a_request_gets_the_same_bits_however_it_is_cut(config: PreTrainedConfig, pieces: list[int]) -> None:
    lean = make_forward(config, dtype=torch.bfloat16, lean=True)
    assert lean.compute.startswith("lean")
    assert torch.equal(logits(lean, pieces), logits(lean, []))
