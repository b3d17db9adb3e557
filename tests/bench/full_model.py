"""The handoff without adapters: merge the adapter into the base, save it, load it into an engine, send a request.

python -m tests.bench.full_model '{"base": ..., "small": ..., "adapter": ..., "merged": ..., "device": ..., ...}'
"""

import gc
import json
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from structlog.testing import capture_logs
from transformers import AutoModelForCausalLM

from mint_contracts.settings import EngineSettings
from mint_contracts.source import Source
from mint_engine.build import build
from mint_engine.model.device import choose_device, count_threads
from mint_engine.requests.events import Done, Event, Failed
from mint_engine.requests.parameters import Sampling
from mint_engine.scheduling.generation import Generation
from mint_engine.scheduling.request import Request
from mint_engine.scheduling.scheduler import Limits
from mint_engine.scheduling.stepper import Stepper
from tests.bench.merging import merge
from tests.bench.protocol import Answer, serve

_FIRST_S = 300.0
_SHARD = "4GB"


class Full:
    """Holds the trained model in memory, as a trainer would, until it is handed over."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._setup = setup
        self._model: Any = None

    def start(self) -> Answer:
        """Load the base and the adapter into memory, and import and warm every library that the handoff needs."""
        torch.set_num_threads(count_threads())
        self._warm(Path(self._setup["small"]))
        base: Any = AutoModelForCausalLM.from_pretrained(self._setup["base"], dtype=torch.bfloat16)
        self._model = base.to(choose_device(self._setup["device"]))
        if not self._setup["experts"]:
            self._model = PeftModel.from_pretrained(base, self._setup["adapter"], autocast_adapter_dtype=False)
        return {}

    def hand_over(self) -> Answer:
        """Merge, save, load and request a token; return the seconds of each part, and in total."""
        merged = Path(self._setup["merged"])
        began = time.perf_counter()
        model = self._merged()
        at_merge = time.perf_counter()
        model.save_pretrained(merged, max_shard_size=_SHARD)  # a shard is held twice while it is saved
        at_save = time.perf_counter()
        self._model = model = None
        gc.collect()  # two models may not fit into memory; not counted
        for file in Path(self._setup["base"]).iterdir():
            if file.name.startswith(("tokenizer", "chat_template", "special_tokens")):
                shutil.copy(file, merged / file.name)
        freed = time.perf_counter()
        with capture_logs() as told:
            generation = self._load(merged)
        at_load = time.perf_counter()
        _ask(generation, tuple(self._setup["prompt"]))
        done = time.perf_counter()
        (proof_s,) = [each["proof_s"] for each in told if each["event"] == "pass_chosen"]  # no engine need do that
        parts = {
            "merge": at_merge - began,
            "save": at_save - at_merge,
            "load": at_load - freed - proof_s,
            "first": done - at_load,
        }
        return {"seconds": sum(parts.values()), **parts}

    def _merged(self) -> Any:
        """Merge with PEFT; for experts, which PEFT cannot merge, with our own code."""
        if not self._setup["experts"]:
            return self._model.merge_and_unload()
        merge(self._model, Path(self._setup["adapter"]))
        return self._model

    def _warm(self, small: Path) -> None:
        """Hand a small model over once, so that first-use costs do not count against the large one."""
        model: Any = AutoModelForCausalLM.from_pretrained(small, dtype=torch.bfloat16)
        get_peft_model(model, LoraConfig(r=1, target_modules="all-linear")).merge_and_unload()
        _ask(self._load(small), tuple(self._setup["prompt"]))

    def _load(self, merged: Path) -> Generation:
        settings = EngineSettings(
            base_model="bench/full",
            source=Source(f"file://{merged}"),
            device=self._setup["device"],
            dtype="bfloat16",
            context_length=256,
            kv_cache_bytes=256 << 20,
            max_rank=1,
            device_slots=1,
            host_bytes=1 << 20,
            disk_bytes=1 << 20,
        )
        return build(settings, merged, Limits())[2]


def _ask(generation: Generation, prompt: tuple[int, ...]) -> None:
    """Request one token. Raises the request's failure, or TimeoutError."""
    ended = threading.Event()
    events: list[Event] = []

    def sink(event: Event) -> None:
        events.append(event)
        if isinstance(event, Done | Failed):
            ended.set()

    stepper = Stepper(generation, lambda deliver: deliver())
    stepper.start()
    stepper.submit(Request(prompt, Sampling(max_tokens=1, seed=0, ignore_eos=True)), sink)
    if not ended.wait(_FIRST_S):
        raise TimeoutError(f"no token in {_FIRST_S:.0f} s")
    stepper.stop(_FIRST_S)
    if isinstance(events[-1], Failed):
        raise events[-1].error


if __name__ == "__main__":
    full = Full(json.loads(sys.argv[1]))
    serve({"start": full.start, "hand_over": full.hand_over})
