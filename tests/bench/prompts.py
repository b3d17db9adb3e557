"""The prompts and the reward target of a wave's policies in complete steps: the same for both sides."""

import random

PROMPTS, GROUP, RANK = 4, 8, 8  # prompts per step, completions per prompt, adapter rank
TARGET = 200  # characters per completion
_WORDS = ("river", "stone", "letter", "garden", "engine", "winter", "island", "copper", "market", "shadow")


def texts(policy: int) -> list[str]:
    """Return the examples of one policy, about 20 tokens each."""
    chance = random.Random(policy)
    return [" ".join(chance.choices(_WORDS, k=20)) for _ in range(64)]
