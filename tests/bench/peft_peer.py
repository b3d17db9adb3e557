"""The peer transformers + peft: one batch that mixes adapters by `adapter_names`.

python -m tests.bench.peft_peer '{"base": ..., "adapters": {"name": "folder"}, "device": "cpu"}'
"""

import json
import sys
import time
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from mint_engine.model.device import choose_device, count_threads
from tests.bench.protocol import Answer, serve
from tests.bench.workload import Work


class Peer:
    """One PEFT model with all adapters loaded."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._setup = setup
        self._model: Any = None
        self._names: dict[str, str] = {}  # our names to PEFT's, which must not contain dots or slashes

    def start(self) -> Answer:
        """Load the base and its adapters, all in the base's dtype, which is the fastest."""
        began = time.perf_counter()
        torch.set_num_threads(count_threads())
        device = choose_device(self._setup["device"])
        base: Any = AutoModelForCausalLM.from_pretrained(self._setup["base"], dtype=torch.bfloat16)
        base = base.to(device)
        for number, (name, folder) in enumerate(self._setup["adapters"].items()):
            theirs = self._names[name] = f"adapter{number}"
            options: dict[str, Any] = {"adapter_name": theirs, "low_cpu_mem_usage": True}
            options["autocast_adapter_dtype"] = False
            if self._model is None:
                self._model = PeftModel.from_pretrained(base, folder, **options)
            else:
                self._model.load_adapter(folder, **options)
        self._model.eval()
        return {"seconds": time.perf_counter() - began}

    @torch.inference_mode()
    def generate(self, **work: Any) -> Answer:
        """Run one round: all requests as one batch, greedy, to the full length."""
        plan = Work(**work)
        if plan.requests > plan.together:
            raise ValueError("one batch holds no more requests than run together")
        prompts = torch.tensor(plan.prompts(), device=self._model.device)
        adapters = [self._names[plan.adapter(index)] for index in range(plan.requests)]
        count = plan.new_tokens
        began = time.perf_counter()
        tokens = self._model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            adapter_names=adapters,
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
        )
        made = tokens[:, prompts.shape[1] :].tolist()
        seconds = time.perf_counter() - began
        total = sum(map(len, made))
        return {"seconds": seconds, "tokens": total, "rate": total / seconds}


if __name__ == "__main__":
    peer = Peer(json.loads(sys.argv[1]))
    serve({"start": peer.start, "generate": peer.generate})
