"""PEFT's own greedy answers, token by token: what every engine must say too.

Computed by transformers and peft in float32, one adapter and one prompt at a time, and cached on disk by a hash of
all inputs. Each step carries the gap between its two best logits, so that a test can leave out near ties, which
another order of summation may decide differently.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from e2e.samples.catalog import GOOD, questions
from e2e.samples.preparation import Samples, cache, prepare

BASE: Final = ""
"""The adapter name that stands for the bare base."""


@dataclass(frozen=True)
class Answer:
    """One greedy answer; `gaps` has one logit gap a token, and `token_ids` ends with end-of-turn when `finished`."""

    adapter: str
    question: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    gaps: tuple[float, ...]
    finished: bool
    text: str

    @property
    def min_gap(self) -> float:
        """The closest that the second-best token came at any step, in logits."""
        return min(self.gaps)

    @property
    def content_ids(self) -> tuple[int, ...]:
        """The generated tokens without the end-of-turn token."""
        return self.token_ids[:-1] if self.finished else self.token_ids


def reference(
    samples: Samples, prompts: Sequence[str], adapters: Sequence[str], max_new_tokens: int
) -> dict[str, list[Answer]]:
    """What each of `adapters` (`BASE` for none) answers to each user turn of `prompts`, in the order of `prompts`."""
    answers = {}
    for adapter in adapters:
        paths = [_path(samples, adapter, prompt, max_new_tokens) for prompt in prompts]
        missing = [p for p, path in zip(prompts, paths, strict=True) if not path.exists()]
        if missing:
            _compute(samples, adapter, missing, max_new_tokens)
        answers[adapter] = [_read(path) for path in paths]
    return answers


def _path(samples: Samples, adapter: str, prompt: str, max_new_tokens: int) -> Path:
    own = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    inputs = json.dumps([own, samples.digest, adapter, prompt, max_new_tokens])
    return cache() / "reference" / f"{hashlib.sha256(inputs.encode()).hexdigest()[:24]}.json"


def _read(path: Path) -> Answer:
    return msgspec.json.decode(path.read_bytes(), type=Answer)


def _write(path: Path, answer: Answer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(msgspec.json.encode(answer))
    unfinished.rename(path)


def _compute(samples: Samples, adapter: str, prompts: Sequence[str], max_new_tokens: int) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from e2e.samples.preparation import two_threads

    tokenizer = AutoTokenizer.from_pretrained(samples.base)
    model: Any = AutoModelForCausalLM.from_pretrained(samples.base, dtype=torch.float32)
    if adapter != BASE:
        model = PeftModel.from_pretrained(model, samples.adapters / adapter)
    with two_threads(), torch.inference_mode():
        for prompt in prompts:
            answer = _greedy(model.eval(), tokenizer, adapter, prompt, max_new_tokens)
            _write(_path(samples, adapter, prompt, max_new_tokens), answer)


def _greedy(model: Any, tokenizer: Any, adapter: str, question: str, max_new_tokens: int) -> Answer:
    import torch

    from e2e.samples.training import chat

    prompt = chat(tokenizer, question)
    out = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    tokens = out.sequences[0, len(prompt) :].tolist()
    best = [logits[0].float().topk(2).values.tolist() for logits in out.logits]  # of each step
    return Answer(
        adapter=adapter,
        question=question,
        prompt_ids=tuple(prompt),
        token_ids=tuple(tokens),
        gaps=tuple(first - second for first, second in best),
        finished=tokens[-1] == tokenizer.eos_token_id,
        text=tokenizer.decode(tokens, skip_special_tokens=True),
    )


def main() -> None:
    """Print the reference answers to the sample questions, or to those given."""
    parser = argparse.ArgumentParser(prog="python -m e2e.samples.reference", description=main.__doc__)
    parser.add_argument("questions", nargs="*", help="user turns (default: the sample questions)")
    parser.add_argument("--adapter", action="append", help="may be repeated (default: the base and every good one)")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    args = parser.parse_args()
    adapters = args.adapter or [BASE, *(adapter.name for adapter in GOOD)]
    answers = reference(prepare(), args.questions or questions(), adapters, args.max_new_tokens)
    for adapter, rows in answers.items():
        print(f"\n{adapter or 'bare base'}")
        for row in rows:
            print(f"  [{row.min_gap:6.3f}] {row.question}\n           {row.text!r}")


if __name__ == "__main__":
    main()
