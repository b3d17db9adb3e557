"""Architectures by transformers' own code: which are served as it computes them, and which are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mint_contracts.errors import UnsupportedBase
from mint_engine.build import build
from mint_engine.model.base import load_base
from mint_engine.model.files import find_files, read_config
from mint_engine.preflight import check_config
from mint_engine.scheduling.scheduler import Limits
from tests.engine.made import edit_base
from tests.engine.running import ask, peft_answer, running, save_base, save_tokenizer, settings_for

CPU = torch.device("cpu")
PROMPT = [5, 9, 200, 31, 7, 5, 88, 90, 14]
# More of them, with adapters, in test_families.
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
SERVED: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma": {},
    "gemma2": {"sliding_window": 7},
    "mistral": {"sliding_window": 7},
    "phi3": {"sliding_window": None},
    "granite": {},
    "olmo2": {},
    "smollm3": {},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gemma3_text": ({"use_bidirectional_attention": True}, "attends to later tokens too"),
    "llama4_text": ({"attention_chunk_size": 32, "layer_types": ["chunked_attention"] * 2}, "chunked_attention"),
    "qwen3_next": ({}, "linear_attention"),
}


def save_architecture(folder: Path, kind: str, changes: dict[str, Any]) -> Path:
    vocab = save_tokenizer(folder)
    torch.manual_seed(5)
    config = AutoConfig.for_model(kind, **(SMALL | {"vocab_size": vocab} | changes))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


@pytest.mark.parametrize("kind", SERVED)
async def test_architectures_served(kind: str, tmp_path: Path) -> None:
    base = save_architecture(tmp_path, kind, SERVED[kind])
    tokens, scores = peft_answer(base, None, PROMPT, 8)
    async with running(base) as engine:
        answer = await ask(engine, PROMPT, max_tokens=8, logprobs=0, ignore_eos=True)
    assert answer.tokens == tokens
    assert answer.logprobs == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("kind", REFUSED)
def test_architectures_refused(kind: str, tmp_path: Path) -> None:
    """Never silently wrong: what the attention cannot compute is refused when the base is loaded."""
    changes, why = REFUSED[kind]
    base = save_architecture(tmp_path, kind, changes)
    with pytest.raises(UnsupportedBase, match=why):
        build(settings_for(base), base, Limits())


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("mimo_v2_flash", "has keys of 192 numbers and values of 128, which is not supported"),
        ("hy_v4", "has an indexer that is not supported"),
    ],
)
def test_attention_that_is_not_computed_is_refused_before_weights_are_copied(kind: str, why: str) -> None:
    """By the configuration alone: copying the weights, and reading them, may take hours."""
    with pytest.raises(UnsupportedBase, match=f"model type {kind}: {why}"):
        check_config(settings_for(Path("none")), AutoConfig.for_model(kind), "a base")


def test_no_request_is_so_long_that_others_would_be_turned_by_it(tmp_path: Path) -> None:
    """LongRoPE has one set of angles up to a length and another beyond it, and a step can use only one of them."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    base = save_architecture(
        tmp_path, "phi3", {"original_max_position_embeddings": 64, "rope_parameters": rope, "sliding_window": None}
    )
    build(settings_for(base, context_length=64), base, Limits())
    with pytest.raises(UnsupportedBase, match=r"is 65, but beyond 64 positions .* longest one; lower it to 64"):
        build(settings_for(base, context_length=65), base, Limits())


def test_a_base_knows_as_many_positions_as_yarn_gives_it(tmp_path: Path) -> None:
    """A config may give the length that YaRN stretches, as Qwen's files do, or the length after stretching."""
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    base = save_base(tmp_path, max_position_embeddings=80, rope_parameters=rope)
    assert load_base(base, torch.float32, CPU).context_length == 256
    build(settings_for(base, context_length=256), base, Limits())
    with pytest.raises(UnsupportedBase, match="has 256 positions"):
        build(settings_for(base, context_length=257), base, Limits())
    edit_base(base, max_position_embeddings=300)
    assert load_base(base, torch.float32, CPU).context_length == 300


def test_positions_are_stretched_from_the_base_of_angles_that_the_config_gives(tmp_path: Path) -> None:
    """Qwen's model cards have people add rope_scaling, beside which transformers forgets what it has saved itself."""
    base = save_base(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    stretched = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    edit_base(base, rope_scaling=stretched)
    with pytest.raises(UnsupportedBase, match=r"rope_scaling beside rope_parameters .*; move the fields"):
        read_config(find_files(base))
    edit_base(base, rope_theta=5e5)
    assert read_config(find_files(base))[0].rope_parameters == stretched | {"rope_theta": 5e5}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, 1.1386),
        ({"attn_factor": 0.8782488562869419}, 1.0),
        ({"attn_factor": 0.5, "mscale": 1.0, "mscale_all_dim": 1.0}, 0.5),
        ({"attn_factor": 0.5, "attention_factor": 1.25}, 1.25),
    ],
)
def test_yarns_factor_of_attention_is_the_one_that_a_base_names(
    told: dict[str, float], expected: float, tmp_path: Path
) -> None:
    """As vLLM reads it: DeepSeek-R1-0528-Qwen3-8B names one by which the usual factor becomes 1."""
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    base = save_base(tmp_path, rope_parameters=rope | told)
    assert load_base(base, torch.float32, CPU).model.model.rotary_emb.attention_scaling == pytest.approx(
        expected, abs=1e-4
    )
