"""Answers of an engine over a base of any family, compared with PEFT's."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from mint_engine.scheduling.scheduler import Limits
from tests.engine.running import ask, peft_answer, running
from tests.engine.saved_families import SERVED, save_adapter

NEW_TOKENS = 8


async def check_answers(name: str, served: Path, base: Path, tmp_path: Path, ranks: int, **told: Any) -> None:
    """Check answers of three adapters and the base in one batch, prompts in chunks; twice, to reuse prefixes.

    The served base and the one that PEFT loads may be two copies of the same weights.
    """
    few = {"target_modules": SERVED[name]["target_modules"][:2]}
    adapters = {
        "a/all": save_adapter(base, tmp_path / "all", 4, **SERVED[name]),
        "a/other": save_adapter(base, tmp_path / "other", 6, **SERVED[name]),
        "b/few": save_adapter(base, tmp_path / "few", 3, **few),
    }
    draw = random.Random(5)
    asked = [(who, [draw.randrange(2, 290) for _ in range(length)]) for who in ("", *adapters) for length in (3, 41)]
    expected = [peft_answer(base, adapters.get(who), prompt, NEW_TOKENS) for who, prompt in asked]
    assert len({tokens for tokens, _ in expected}) == len(expected)
    limits = Limits(running=6, step_tokens=24)
    async with running(served, adapters, limits, tensor_parallel_size=ranks, **told) as engine:
        for _ in range(2):
            answers = await asyncio.gather(
                *(
                    ask(engine, prompt, who, max_tokens=NEW_TOKENS, logprobs=0, ignore_eos=True)
                    for who, prompt in asked
                )
            )
            for answer, (tokens, scores) in zip(answers, expected, strict=True):
                assert answer.tokens == tokens
                assert answer.logprobs == pytest.approx(scores, abs=1e-3)
