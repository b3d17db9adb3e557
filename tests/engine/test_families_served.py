"""Whole engines over frontier families, from files to gRPC: answers are PEFT's own, solo and mixed."""

import asyncio
import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from mint_engine.build import build
from mint_engine.scheduling.scheduler import Limits
from tests.engine.families import FAMILIES, make_model
from tests.engine.running import ask, peft_answer, running, save_tokenizer, settings_for

NEW_TOKENS = 8
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
LATENT = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
# What the adapters target: rank 4 on all of it, rank 3 on the attention alone.
SERVED: dict[str, dict[str, Any]] = {
    "gemma3": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    "qwen3_moe": {"target_modules": ["q_proj", "o_proj"], "target_parameters": EXPERTS},
    "gpt_oss": {"target_modules": ["q_proj", "o_proj"], "target_parameters": EXPERTS},
    "deepseek_v3": {"target_modules": LATENT, "target_parameters": EXPERTS},
    "deepseek_v32": {"target_modules": LATENT, "target_parameters": EXPERTS},
    "glm_5": {"target_modules": LATENT, "target_parameters": EXPERTS},
}


def save_base(name: str, folder: Path) -> Path:
    config = copy.deepcopy(FAMILIES[name])
    config.vocab_size = save_tokenizer(folder)
    make_model(config).save_pretrained(folder)
    return folder


def save_adapter(base: Path, folder: Path, rank: int, **options: Any) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, **options))
    torch.manual_seed(rank)
    with torch.no_grad():
        for path, each in sorted(peft.named_parameters()):
            if "lora_" in path:
                each.normal_(0, 0.15)
    peft.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("name", SERVED)
async def test_answers_are_pefts(name: str, tmp_path: Path) -> None:
    """Three tenants and the base in one batch, prompts in chunks, twice over, so that the second finds its prefix."""
    base = save_base(name, tmp_path / "base")
    few = {"target_modules": SERVED[name]["target_modules"][:2]}
    adapters = {
        "a/all": save_adapter(base, tmp_path / "all", 4, **SERVED[name]),
        "a/other": save_adapter(base, tmp_path / "other", 6, **SERVED[name]),
        "b/few": save_adapter(base, tmp_path / "few", 3, **few),
    }
    draw = random.Random(5)
    asked = [(who, [draw.randrange(2, 290) for _ in range(length)]) for who in ("", *adapters) for length in (3, 41)]
    expected = [peft_answer(base, adapters.get(who), prompt, NEW_TOKENS) for who, prompt in asked]
    assert len({tokens for tokens, _ in expected}) == len(expected)
    async with running(base, adapters, Limits(running=6, step_tokens=24)) as engine:
        for _ in range(2):
            answers = await asyncio.gather(
                *(
                    ask(engine, prompt, who, max_tokens=NEW_TOKENS, logprobs=0, ignore_eos=True)
                    for who, prompt in asked
                )
            )
            for answer, (tokens, scores) in zip(answers, expected, strict=True):
                assert answer.tokens == tokens
                assert answer.logprobs == pytest.approx(scores, abs=1e-3)


def test_kimi_k2_is_served_by_deepseeks_code(tmp_path: Path) -> None:
    """Its config.json names a model type of its own and brings code, which is not run."""
    base = save_base("kimi_k2", tmp_path)
    told = json.loads((base / "config.json").read_text())
    changes = {"model_type": "kimi_k2", "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}}
    (base / "config.json").write_text(json.dumps(told | changes))
    loaded, _, generation = build(settings_for(base), base, Limits())
    assert loaded.architecture == "DeepseekV3ForCausalLM"
    assert generation.compute == "generic"
