"""PEFT's own greedy answers, token by token, which every engine must reproduce.

Cached on disk by a hash of all inputs. Each step carries the gap between its two best logits, so that a test can
leave out near ties, which another order of summation may decide differently.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from e2e.cache import cache_folder
from e2e.samples.answering import Answer, Request
from e2e.samples.catalog import GOOD, questions
from e2e.samples.child import run_module
from e2e.samples.layout import Samples
from e2e.samples.preparation import prepare

BASE: Final = ""
"""The adapter name that stands for the bare base."""
ANSWER_TOKENS: Final = 64
"""New tokens per answer in every test that compares with these: one length, so that all share one cache."""
TIMEOUT_S: Final = 900.0  # for one adapter's prompts; eight answers of 64 tokens take about 15 s on 2 idle cores


def reference(
    samples: Samples, prompts: Sequence[str], adapters: Sequence[str], max_new_tokens: int
) -> dict[str, list[Answer]]:
    """Return what each of `adapters` (`BASE` for none) answers to each user turn of `prompts`, in their order.

    Raises `SampleError` if an answer is not cached and cannot be computed.
    """
    answers = {}
    for adapter in adapters:
        paths = {prompt: _path(samples, adapter, prompt, max_new_tokens) for prompt in prompts}
        missing = tuple(prompt for prompt, path in paths.items() if not path.exists())
        if missing:
            print(f"reference: computing {len(missing)} answers of {adapter or 'the bare base'}")
            folder = str(samples.adapters / adapter) if adapter != BASE else None
            request = Request(str(samples.base), adapter, folder, missing, max_new_tokens)
            _compute(request, paths)
        answers[adapter] = [msgspec.json.decode(paths[prompt].read_bytes(), type=Answer) for prompt in prompts]
    return answers


def without_ties(answers: Sequence[Answer], margin: float) -> list[Answer]:
    """Return the `answers` in which the best token led by more than `margin` logits at every step."""
    return [answer for answer in answers if answer.min_gap > margin]


def _path(samples: Samples, adapter: str, prompt: str, max_new_tokens: int) -> Path:
    how = hashlib.sha256(Path(__file__).with_name("answering.py").read_bytes()).hexdigest()
    inputs = json.dumps([how, samples.digest, adapter, prompt, max_new_tokens])
    return cache_folder() / "reference" / f"{hashlib.sha256(inputs.encode()).hexdigest()[:24]}.json"


def _compute(request: Request, paths: dict[str, Path]) -> None:
    def keep(line: str) -> None:
        path = paths[msgspec.json.decode(line, type=Answer).question]
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(line)
        unfinished.rename(path)

    run_module("e2e.samples.answering", msgspec.json.encode(request).decode(), say=keep, timeout_s=TIMEOUT_S)


def main() -> None:
    """Print the reference answers to the sample questions, or to those given, each with its smallest logit gap."""
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
