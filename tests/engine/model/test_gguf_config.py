"""Metadata of GGUF files that transformers ignores is applied, or refused with one clear error."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    MiniMaxM2Config,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from mint_contracts.errors import UnsupportedBase
from mint_engine.model.base import load_base
from mint_engine.model.files import find_files, read_config
from tests.engine.families import CPU, MOE, make_model
from tests.engine.ggufs import LLAMA, PLAIN, save

QWEN = Qwen2Config(**PLAIN)
MOES: dict[str, Any] = {"qwen2moe": Qwen2MoeConfig, "qwen3moe": Qwen3MoeConfig}
ROTATED = {"rope_type": "default", "rope_theta": 10000.0}
TOKENS = torch.tensor([[(7 * at + 1) % 96 for at in range(90)]])
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return found


@pytest.mark.parametrize(
    ("told", "rope"),
    [
        ({}, {"rope_type": "default"}),
        ({"type": "none", "factor": 4.0}, {"rope_type": "default"}),
        ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 64},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
    ],
)
def test_positions_are_stretched_as_the_file_says(told: dict[str, Any], rope: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(Qwen2Config(**PLAIN, rope_parameters=rope | {"rope_theta": 10000.0}))
    save(tmp_path / "tiny.gguf", model, "qwen2", {f"ARCH.rope.scaling.{key}": value for key, value in told.items()})
    read = load_base(tmp_path, torch.float32, CPU).model
    torch.testing.assert_close(logits(read), logits(model))


def test_llama_3s_frequencies_are_those_of_the_file(tmp_path: Path) -> None:
    model = make_model(LlamaConfig(**PLAIN, rope_parameters=LLAMA3))
    divisors = make_model(LLAMA).model.rotary_emb.inv_freq / model.model.rotary_emb.inv_freq
    save(tmp_path / "tiny.gguf", model, "llama", tensors={"rope_freqs.weight": divisors})
    read = load_base(tmp_path, torch.float32, CPU).model
    torch.testing.assert_close(logits(read), logits(model))


@pytest.mark.parametrize("family", ["starcoder2", "qwen2"])
def test_positions_are_rotated_by_the_files_base(family: str, tmp_path: Path) -> None:
    """transformers passes it over for some families, whose own is 10,000."""
    save(tmp_path / "tiny.gguf", make_model(QWEN), family, {"ARCH.rope.freq_base": 999999.4375}, only="token_embd")
    assert read_config(find_files(tmp_path))[0].rope_parameters["rope_theta"] == 999999.4375


def test_a_turn_of_a_chat_ends_a_completion(tmp_path: Path) -> None:
    save(tmp_path / "tiny.gguf", make_model(QWEN), "qwen2", {"tokenizer.ggml.eot_token_id": 7})
    assert load_base(tmp_path, torch.float32, CPU).eos == {0, 7}


@pytest.mark.parametrize(
    ("told", "tensors", "without", "says"),
    [
        ({}, {}, "ffn_gate", "lacks 3 weights, the first model.layers.0.mlp.gate_proj.weight"),
        ({}, {"blk.1.attn_q.bias": torch.ones(64)}, "", r"has blk\.1\.attn_q\.bias, which its family does not use"),
        ({}, {"rope_freqs.weight": torch.ones(3)}, "", r"has rope_freqs\.weight of \[3\]"),
        ({}, {"rope_factors_long.weight": torch.ones(8)}, "", r"by rope_factors_long\.weight, which is not read"),
        ({"ARCH.rope.scaling.type": "longrope", "ARCH.rope.scaling.factor": 4.0}, {}, "", "by longrope, which"),
        (
            {"ARCH.rope.scaling.type": "yarn", "ARCH.rope.scaling.factor": 4.0, "ARCH.rope.scaling.attn_factor": 2.0},
            {}, "", r"by rope\.scaling\.attn_factor, which is not read",
        ),
        ({"ARCH.attention.sliding_window": 64}, {}, "", "has a window of 64 tokens, but its family has none"),
    ],
)  # fmt: skip
def test_gguf_files_that_would_be_computed_wrongly_are_refused(
    told: dict[str, Any], tensors: dict[str, torch.Tensor], without: str, says: str, tmp_path: Path
) -> None:
    save(tmp_path / "tiny.gguf", make_model(LLAMA), "llama", told, tensors, without=without)
    with pytest.raises(UnsupportedBase, match=says):
        load_base(tmp_path, torch.float32, CPU)


@pytest.mark.parametrize(
    ("architecture", "says"),
    [("gpt-oss", "give the model as OpenAI's own files in MXFP4"), ("llama", "as safetensors")],
)
def test_experts_that_are_not_read_are_refused_by_the_head(architecture: str, says: str, tmp_path: Path) -> None:
    """gpt-oss as llama.cpp writes it, with YaRN, and Mixtral."""
    scaling: dict[str, Any] = {"type": "yarn", "factor": 32.0, "original_context_length": 4096}
    told: dict[str, Any] = {"ARCH.expert_count": 6, "ARCH.expert_used_count": 2}
    told |= {f"ARCH.rope.scaling.{key}": value for key, value in scaling.items()}
    save(tmp_path / "tiny.gguf", make_model(LLAMA), architecture, told, only="token_embd")
    with pytest.raises(UnsupportedBase, match=f"routes to experts as '{architecture}', which is not read .*{says}"):
        read_config(find_files(tmp_path))


@pytest.mark.parametrize("family", ["qwen2moe", "qwen3moe"])
def test_experts_have_the_sizes_that_the_file_says(family: str, tmp_path: Path) -> None:
    """transformers takes those of one base, Qwen3-30B-A3B, for those of all, such as Qwen3-235B-A22B."""
    shared = {"shared_expert_intermediate_size": 56} if family == "qwen2moe" else {"norm_topk_prob": True}
    model = make_model(MOES[family](**PLAIN, **MOE, **shared, rope_parameters=ROTATED))
    told = {"expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 40}
    told |= {"expert_shared_feed_forward_length": 56} if family == "qwen2moe" else {"attention.key_length": 16}
    save(tmp_path / "tiny.gguf", model, family, {f"ARCH.{key}": value for key, value in told.items()})
    read = load_base(tmp_path, torch.float32, CPU).model
    torch.testing.assert_close(logits(read), logits(model))
    assert {each.dtype for each in load_base(tmp_path, torch.bfloat16, CPU).model.parameters()} == {torch.bfloat16}


def test_what_corrects_the_choice_of_experts_is_not_rounded(tmp_path: Path) -> None:
    """Numbers of about 8 that differ by hundredths would all be the same in bfloat16."""
    model = make_model(MiniMaxM2Config(**PLAIN, num_local_experts=8, num_experts_per_tok=3, rotary_dim=16))  # type: ignore[call-arg]
    corrections = {name: each for name, each in model.named_buffers() if name.endswith("e_score_correction_bias")}
    for each in corrections.values():
        each.mul_(0.01).add_(8.6)
    told = {"expert_count": 8, "expert_used_count": 3, "attention.key_length": 16}
    save(tmp_path / "tiny.gguf", model, "minimax-m2", {f"ARCH.{key}": value for key, value in told.items()})
    read = dict(load_base(tmp_path, torch.bfloat16, CPU).model.named_buffers())
    assert len(corrections) == PLAIN["num_hidden_layers"]
    for name, each in corrections.items():
        assert torch.equal(read[name], each)


@pytest.mark.parametrize(
    ("key", "size", "field"),
    [
        ("expert_feed_forward_length", 0, "moe_intermediate_size"),
        ("expert_shared_feed_forward_length", 1 << 30, "shared_expert_intermediate_size"),
    ],
)
def test_experts_of_no_possible_size_are_refused_by_the_head(key: str, size: int, field: str, tmp_path: Path) -> None:
    told = {"ARCH.expert_count": 6, "ARCH.expert_used_count": 2, f"ARCH.{key}": size}
    save(tmp_path / "tiny.gguf", make_model(LLAMA), "qwen2moe", told, only="token_embd")
    with pytest.raises(UnsupportedBase, match=f"has metadata where `{field}` is {size}; it may be from"):
        read_config(find_files(tmp_path))


def test_a_head_of_far_more_than_the_file_holds_is_refused_before_memory_is_taken_for_it(tmp_path: Path) -> None:
    model = make_model(Qwen3MoeConfig(**PLAIN, **MOE, norm_topk_prob=True, rope_parameters=ROTATED))
    told = {"expert_count": 6, "expert_used_count": 2, "attention.key_length": 16, "expert_feed_forward_length": 4096}
    save(tmp_path / "tiny.gguf", model, "qwen3moe", {f"ARCH.{key}": value for key, value in told.items()})
    with pytest.raises(
        UnsupportedBase, match=r"has metadata of [\d,]+ numbers, but weights of [\d,]+; one of them is"
    ):
        load_base(tmp_path, torch.float32, CPU)


def test_a_part_of_a_base_is_refused_by_its_head(tmp_path: Path) -> None:
    """As llama.cpp splits large files; only the first part has all metadata."""
    save(tmp_path / "tiny.gguf", make_model(LLAMA), "llama", {"split.no": 0, "split.count": 3}, only="token_embd")
    with pytest.raises(UnsupportedBase, match="is one of 3 parts of a base; join them with llama-gguf-split --merge"):
        read_config(find_files(tmp_path))


def test_a_partly_rotated_head_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "tiny.gguf", make_model(QWEN), "qwen2", {"ARCH.rope.dimension_count": 8})
    with pytest.raises(UnsupportedBase, match="rotates 8 numbers of each head, but its family rotates 16"):
        read_config(find_files(tmp_path))


def test_phi_3_slides_over_the_files_window(tmp_path: Path) -> None:
    save(tmp_path / "tiny.gguf", make_model(Phi3Config(**PLAIN)), "phi3", {"ARCH.attention.sliding_window": 47})
    assert read_config(find_files(tmp_path))[0].sliding_window == 47


@pytest.mark.parametrize(
    ("architecture", "layers", "told", "expected"),
    [
        ("gemma2", 2, {}, {"query_pre_attn_scalar": 32}),
        ("gemma2", 46, {}, {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 50.0}),
        ("gemma2", 2, {"ARCH.attn_logit_softcapping": 20.0}, {"attn_logit_softcapping": 20.0}),
        ("gemma3", 46, {}, {"query_pre_attn_scalar": 32}),
        ("gemma3", 62, {}, {"query_pre_attn_scalar": 16}),
    ],
)
def test_gemmas_scores_are_scaled_as_their_sizes_want_it(
    architecture: str, layers: int, told: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    model = make_model(LlamaConfig(**(PLAIN | {"num_hidden_layers": layers})))
    heads = {"ARCH.attention.key_length": 32, "ARCH.rope.dimension_count": 32}
    save(tmp_path / "tiny.gguf", model, architecture, heads | told)
    config, _ = read_config(find_files(tmp_path))
    assert {field: getattr(config, field) for field in expected} == expected


def test_gemma_3_stretches_those_layers_alone_that_see_all(tmp_path: Path) -> None:
    told = {"ARCH.rope.scaling.type": "linear", "ARCH.rope.scaling.factor": 8.0}
    save(tmp_path / "tiny.gguf", make_model(LLAMA), "gemma3", told)
    rope = read_config(find_files(tmp_path))[0].rope_parameters
    assert (rope["full_attention"]["rope_type"], rope["full_attention"]["factor"]) == ("linear", 8.0)
    assert rope["sliding_attention"]["rope_type"] == "default"
