"""Requests over one long text: a base of mostly sliding-window layers, and the same weights with full attention."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from transformers import Gemma3TextConfig

from tests.bench.bench import Bench, Group
from tests.bench.models import write_base
from tests.bench.our_setup import Setup
from tests.bench.places import bench_cache, made_once, scratch
from tests.bench.rows import Row, measured
from tests.bench.serve import rounds
from tests.bench.side import Side

_REQUESTS, _TEXT, _OWN, _WINDOW, _LAYERS = 16, 3072, 16, 512, 12
_SLIDING = (["sliding_attention"] * 5 + ["full_attention"]) * (_LAYERS // 6)  # as Gemma 3's layers
_WHOLE = ["full_attention"] * _LAYERS


def _windows(bench: Bench) -> list[Row]:
    with ExitStack() as sides:
        turns = {}
        for name, layers in (("windows", _SLIDING), ("whole", _WHOLE)):
            cache = sides.enter_context(scratch(name))
            setup = Setup(str(_made(bench, name, layers)), str(cache), bench.device, slots=1, context=_TEXT + 256)
            side = sides.enter_context(bench.ours(sys.executable, setup, name))
            bench.start(side)
            turns[name] = _rate(bench, side)
        found = rounds(bench, turns)
    note = f"{_REQUESTS} requests over one text of {_TEXT}; ten of {_LAYERS} layers see {_WINDOW}"
    return [measured("serve.windows_over_whole", found["windows"], found["whole"], note)]


def _made(bench: Bench, name: str, layers: list[str]) -> Path:
    config = Gemma3TextConfig(
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=_LAYERS,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        vocab_size=bench.vocabulary,
        max_position_embeddings=8192,
        sliding_window=_WINDOW,
        layer_types=layers,
        dtype="bfloat16",
    )
    folder = bench_cache() / "models" / f"gemma-{name}-{bench.base_key}"
    with bench.doing(f"a random base that sees {name}"):
        return made_once(folder, lambda unfinished: write_base(config, bench.base, unfinished, bench.steps.say))


def _rate(bench: Bench, side: Side) -> Callable[[int], float]:
    def ask(number: int) -> float:
        work = bench.work(
            number, requests=_REQUESTS, together=_REQUESTS, prompt_tokens=_TEXT + _OWN, shared_tokens=_TEXT
        )
        with bench.doing(f"{side.name}: the text is read once"):
            bench.ask(side, replace(work, requests=1, new_tokens=1))
        return float(bench.round(side, work, "requests over it")["rate"])

    return ask


GROUPS = (Group(("serve.windows_over_whole",), _windows),)
