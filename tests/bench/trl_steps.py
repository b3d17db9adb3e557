"""The peer's side of complete GRPO steps: TRL's GRPOTrainer over transformers and peft, one policy.

It uses its fastest settings on this device: weights in bfloat16 with adapters in float32 under autocast (its default
for bfloat16), no activation checkpointing, no metrics of completions, nothing saved.

python -m tests.bench.trl_steps '{"base": ..., "device": "cpu", "rank": 8, "tokens": 64}'
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-untyped]
from peft import LoraConfig
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from mint_engine.model.device import count_threads
from tests.bench.prompts import GROUP, PROMPTS, TARGET, texts
from tests.bench.protocol import requests

MOST_STEPS = 1000


class Turns(TrainerCallback):
    """Makes the trainer take a step per request, and answers with the step's seconds."""

    def __init__(self) -> None:
        self._asked = requests()
        self._began = 0.0
        self._send = next(self._asked)[1]  # "start", answered when the trainer is ready for its first step

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Wait for a request."""
        if not self._began:
            self._send({"ok": {}})
        try:
            self._send = next(self._asked)[1]
        except StopIteration:
            sys.exit(0)  # there are no more requests
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Answer with the step's seconds."""
        self._send({"ok": {"seconds": time.perf_counter() - self._began}})


def length_reward(completions: Sequence[str], **_: Any) -> list[float | None]:
    """Reward lengths near TARGET characters, as our side's reward does."""
    return [max(0.0, 1.0 - abs(len(each) - TARGET) / TARGET) for each in completions]


def main(setup: dict[str, Any]) -> None:
    """Train, one step per request."""
    turns = Turns()
    torch.set_num_threads(count_threads())
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(setup["base"])
    model: Any = AutoModelForCausalLM.from_pretrained(setup["base"], dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=length_reward,
            args=_settings(setup, folder),
            train_dataset=Dataset.from_dict({"prompt": texts(0)}),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=setup["rank"], lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[turns],
        )
        trainer.train()


def _settings(setup: dict[str, Any], folder: str) -> GRPOConfig:
    tokens = setup["tokens"]
    return GRPOConfig(
        output_dir=folder,
        use_cpu=setup["device"] == "cpu",
        bf16=True,
        gradient_checkpointing=False,
        per_device_train_batch_size=GROUP,  # one group per backward is faster than all at once
        gradient_accumulation_steps=PROMPTS,
        num_generations=GROUP,
        max_completion_length=tokens,
        generation_kwargs={"min_new_tokens": tokens},  # our side ignores the end token, too
        learning_rate=1e-4,
        adam_beta2=0.95,
        lr_scheduler_type="constant",
        max_steps=MOST_STEPS,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
