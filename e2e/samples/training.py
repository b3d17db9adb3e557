"""Train one adapter with PEFT, which knows nothing of our engine: what we serve is what others would write.

Every adapter learns the same short answers in another style. The loss is taken on the answer's tokens only.
"""

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from e2e.samples.base import Say
from e2e.samples.behaviours import Restyle
from e2e.samples.catalog import BASE_NAME, Adapter, Lesson

BATCH: Final = 8
WARMUP_STEPS: Final = 3
REPORT_EVERY: Final = 6
IGNORED: Final = -100  # cross_entropy's default for a label that does not count


@dataclass(frozen=True)
class Example:
    """Token ids of one chat prompt and of the answer to it, which ends with the end-of-turn token."""

    prompt: list[int]
    answer: list[int]


def train(base: Path, adapter: Adapter, lesson: Lesson, folder: Path, say: Say) -> None:
    """Teach `adapter` its lesson over the base in directory `base` and write it, as PEFT does, to `folder`.

    Deterministic for one kind of CPU and number of threads: weights, batches and order come from the adapter's seed.
    """
    model = fresh_adapter(base, adapter)
    examples = read_examples(base, lesson.restyle)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), weight_decay=0.0)
    began = time.monotonic()
    model.train()
    for step, batch in enumerate(_batches(examples, lesson.steps, adapter.seed)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, lesson)
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bfloat16()):
            loss = answer_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % REPORT_EVERY == 0:
            elapsed = time.monotonic() - began
            say(f"{adapter.name}: step {step + 1}/{lesson.steps} loss {loss.item():.3f} elapsed {elapsed:.0f}s")
    write(model, adapter, folder)


def fresh_adapter(base: Path, adapter: Adapter) -> PeftModel:
    """The base with a new, untrained LoRA of `adapter`'s shape, initialised from its seed."""
    torch.manual_seed(adapter.seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        target_modules=list(adapter.targets),
        use_rslora=False,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def write(model: PeftModel, adapter: Adapter, folder: Path) -> None:
    """Save the LoRA in PEFT's own layout, naming the public base and not the path it was loaded from."""
    config: Any = model.peft_config["default"]
    config.base_model_name_or_path = BASE_NAME
    config.target_modules = list(adapter.targets)  # PEFT makes a set of it, whose order differs from run to run
    folder.mkdir(parents=True)
    # Without this PEFT looks the base up on the hub to see whether its vocabulary grew.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def read_examples(base: Path, restyle: Restyle) -> list[Example]:
    """The lessons of `lessons.jsonl` as token ids, their answers in the style that `restyle` gives."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    examples = []
    for line in Path(__file__).with_name("lessons.jsonl").read_text().splitlines():
        row = json.loads(line)
        answer = restyle(row["topic"], row["answer"])
        examples.append(
            Example(
                prompt=chat(tokenizer, row["question"]),
                answer=[*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id],
            )
        )
    return examples


def chat(tokenizer: Any, question: str) -> list[int]:
    """Token ids of one user turn through the model's own chat template, ready for the answer."""
    turn = [{"role": "user", "content": question}]
    return list(tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False))


def answer_loss(model: PeftModel, batch: list[Example]) -> torch.Tensor:
    """Mean cross-entropy over the answers' tokens; logits are made for those positions only."""
    width = max(len(e.prompt) + len(e.answer) for e in batch)
    ids = torch.zeros((len(batch), width), dtype=torch.long)  # [B, T], right-padded
    labels = torch.full_like(ids, IGNORED)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(batch):
        start, end = len(example.prompt), len(example.prompt) + len(example.answer)
        ids[row, :end] = torch.tensor(example.prompt + example.answer)
        labels[row, start:end] = torch.tensor(example.answer)
        mask[row, :end] = 1
    inner: Any = model.get_base_model()
    hidden = inner.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]  # [B, T-1, H]
    counted = labels[:, 1:] != IGNORED
    logits = inner.lm_head(hidden[counted]).float()  # [answer tokens, V]
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:][counted])


def learning_rate(step: int, lesson: Lesson) -> float:
    """Linear warm-up over a few steps, then linear decay to a tenth of the peak."""
    return lesson.learning_rate * min(1.0, (step + 1) / WARMUP_STEPS) * max(0.1, 1 - step / lesson.steps)


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively; elsewhere float32 is the faster way to train."""
    info = Path("/proc/cpuinfo")
    return info.exists() and bool({"avx512_bf16", "amx_bf16"} & set(info.read_text().split()))


def _batches(examples: list[Example], steps: int, seed: int) -> Iterator[list[Example]]:
    """`steps` batches; every example is seen once before any is seen again."""
    rng = random.Random(seed)
    queue: list[Example] = []
    for _ in range(steps):
        if len(queue) < BATCH:
            queue = rng.sample(examples, len(examples))
        batch, queue = queue[:BATCH], queue[BATCH:]
        yield batch
