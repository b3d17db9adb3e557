"""Bounds the memory of prompts' log-probabilities. It is reserved before any is computed, as all arrive at once.

A client that does not read them is not waited for, but they stay in memory until its call ends.
"""

from mint_contracts.byte_budget import ByteBudget
from mint_engine.requests.parameters import Sampling, count_prompt_logprobs

# Per log-probability, measured with 20 alternatives per token: 140 in memory, 80 in the message, and the rest in the
# transport and the allocator.
_BYTES = 320
MOST_TOGETHER = 512 << 20  # for all requests, beyond each one's own allowance; one request takes at most 320 MiB


def budget(engine: str) -> ByteBudget:
    """Return the memory budget that the requests of an engine share."""
    return ByteBudget(MOST_TOGETHER, engine, f"holds {MOST_TOGETHER >> 20} MiB of prompts' log-probabilities")


def weigh(tokens: int, sampling: Sampling) -> int:
    """Return the bytes that the log-probabilities of a prompt of `tokens` tokens take."""
    return _BYTES * count_prompt_logprobs(tokens, sampling)
