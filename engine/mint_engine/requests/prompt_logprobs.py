"""What the log-probabilities of prompts take together: asked for before any is computed, for they come all at once.

A client that does not read them is not waited for, but all that was made of them lies there until its call ends.
"""

from mint_contracts.room import Room
from mint_engine.requests.parameters import count_prompt_logprobs
from mint_engine.scheduling.request import Sampling

# Of one, measured with 20 likeliest of each token: 140 as it is kept, 80 in the message that tells it, and what the
# transport and the allocator have of that beside it.
_BYTES = 320
MOST_TOGETHER = 512 << 20  # of all requests, beyond what is each one's own; the most of one are 320 MiB


def room(engine: str) -> Room:
    """What the requests of an engine share."""
    return Room(MOST_TOGETHER, engine, f"holds {MOST_TOGETHER >> 20} MiB of prompts' log-probabilities")


def weigh(tokens: int, sampling: Sampling) -> int:
    """Bytes that those of a prompt of so many tokens come to."""
    return _BYTES * count_prompt_logprobs(tokens, sampling)
