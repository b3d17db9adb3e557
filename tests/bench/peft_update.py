"""The peer's side of an update: transformers + peft + torch.optim.AdamW, one policy after another.

Set up as TRL does by default: a base in bfloat16, adapters in float32 under autocast, eight sequences per backward,
logits of the completions alone, no activation checkpointing (it would be slower).

python -m tests.bench.peft_update '{"base": ..., "device": "cpu", "policies": 8, "rank": 8}'
"""

import json
import sys
import time
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl.trainer.utils import selective_log_softmax

from mint_contracts.training import Optimizer
from mint_engine.model.device import choose_device, count_threads
from tests.bench.protocol import Answer, serve
from tests.bench.rollout_data import Experience, Group

_LOGPROB = -8.0


class Update:
    """One PEFT model with an adapter and an optimizer per policy."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._setup = setup
        self._names = [f"policy{number}" for number in range(setup["policies"])]
        self._model: Any = None
        self._optimizers: dict[str, torch.optim.AdamW] = {}

    def start(self) -> Answer:
        """Load the base and create the adapters."""
        torch.set_num_threads(count_threads())
        base: Any = AutoModelForCausalLM.from_pretrained(self._setup["base"], dtype=torch.bfloat16)
        base = base.to(choose_device(self._setup["device"]))
        config = LoraConfig(r=self._setup["rank"], lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        self._model = get_peft_model(base, config, adapter_name=self._names[0])
        for name in self._names[1:]:
            self._model.add_adapter(name, config)
        settings = Optimizer()
        for name in self._names:
            self._model.set_adapter(name)
            self._optimizers[name] = torch.optim.AdamW(
                [each for each in self._model.parameters() if each.requires_grad],
                lr=settings.learning_rate,
                betas=(settings.beta1, settings.beta2),
                eps=settings.epsilon,
                weight_decay=settings.weight_decay,
            )
        return {}

    def update(self, **told: Any) -> Answer:
        """Run one update of each of the first policies."""
        experience = Experience(**told)
        groups = {self._names[at]: experience.groups(at) for at in range(experience.policies)}
        began = time.perf_counter()
        for name, mine in groups.items():
            self._model.set_adapter(name)
            optimizer = self._optimizers[name]
            tokens = sum(map(len, (each for _, completions, _ in mine for each in completions)))
            for group in mine:
                (self._loss(group) / tokens).backward()
            torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return {"seconds": time.perf_counter() - began}

    def _loss(self, group: Group) -> Any:
        """Return the dapo loss, summed over a group's tokens."""
        prompt, completions, told = group
        device = self._model.device
        given, advantages = torch.tensor(completions, device=device), torch.tensor(told, device=device)[:, None]
        ids = torch.cat([torch.tensor(prompt, device=device).expand(len(given), -1), given], dim=1)
        keep = given.shape[1]
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = self._model(input_ids=ids, logits_to_keep=keep + 1, use_cache=False).logits[:, :-1]
        ratio = torch.exp(selective_log_softmax(logits, given) - _LOGPROB)
        return -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).sum()


if __name__ == "__main__":
    side = Update(json.loads(sys.argv[1]))
    serve({"start": side.start, "update": side.update})
