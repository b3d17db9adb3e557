"""Our side of an update: all policies in one forward and backward, then one optimizer step each.

python -m tests.bench.our_update '{"base": ..., "device": "cpu", "policies": 8, "rank": 8}'
"""

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mint_contracts.training import Optimizer
from mint_engine.model.base import load_base
from mint_engine.model.device import choose_device, count_threads
from mint_engine.model.modules import find_modules
from mint_engine.training.example import Example, PolicyBatch, completion
from mint_engine.training.policy import PolicySettings
from mint_engine.training.trainer import Trainer
from tests.bench.memory import forget_peak, peak_bytes
from tests.bench.protocol import Answer, serve
from tests.bench.rollout_data import Experience
from tests.engine.training.at_once import create, step_all

_LOGPROB = -8.0  # about what the base gives random tokens; the value does not change the work
_BYTES = 18  # per number of a policy in training: weights, two moments and gradient in float32, weights in bf16


class Update:
    """A trainer with all policies."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._setup = setup
        self._names = [f"bench/{number}" for number in range(setup["policies"])]
        self._trainer: Trainer

    def start(self) -> Answer:
        """Load the base and create the policies."""
        torch.set_num_threads(count_threads())
        base = load_base(Path(self._setup["base"]), torch.bfloat16, choose_device(self._setup["device"]))
        self._trainer = Trainer(base, find_modules(base.model), max_rank=self._setup["rank"])
        for number, name in enumerate(self._names):
            create(self._trainer, name, PolicySettings(rank=self._setup["rank"], seed=number))
        return {"compute": self._trainer.compute}

    def update(self, **told: Any) -> Answer:
        """Run one update of the first policies; return its seconds and rows."""
        experience = Experience(**told)
        batches = [PolicyBatch(self._names[at], _examples(experience, at)) for at in range(experience.policies)]
        began = time.perf_counter()
        work = self._trainer.begin(batches)
        while work.advance(alone=True):
            pass
        step_all(self._trainer, {batch.policy: Optimizer() for batch in batches})
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "rows": sum(outcome.rows for outcome in work.results().values())}

    def peak(self, **told: Any) -> Answer:
        """Run one update; also return the process's peak memory, less the bytes of the policies' own numbers."""
        gc.collect()
        forget_peak()
        found = self.update(**told)
        own = sum(self._trainer.policy(name).weights.numel() * _BYTES for name in self._names)
        return {**found, "bytes": peak_bytes() - own}


def _examples(experience: Experience, policy: int) -> list[Example]:
    return [
        completion(prompt, tokens, [_LOGPROB] * len(tokens), advantage)
        for prompt, completions, advantages in experience.groups(policy)
        for tokens, advantage in zip(completions, advantages, strict=True)
    ]


if __name__ == "__main__":
    side = Update(json.loads(sys.argv[1]))
    serve({"start": side.start, "update": side.update, "peak": side.peak})
