"""What a wave's policies are asked in whole steps, and what they are paid for: the same for both sides."""

import random

PROMPTS, GROUP, RANK = 4, 8, 8  # prompts a step, completions of each
TARGET = 200  # characters of a completion
_WORDS = ("river", "stone", "letter", "garden", "engine", "winter", "island", "copper", "market", "shadow")


def texts(policy: int) -> list[str]:
    """The examples of one policy: some 20 tokens each."""
    chance = random.Random(policy)
    return [" ".join(chance.choices(_WORDS, k=20)) for _ in range(64)]
