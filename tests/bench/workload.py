"""The workload: random prompts and random choices of adapters, the same for both sides and in every run.

Uses only the standard library, as the peers' own environments import it, too.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

TOGETHER = 64  # simultaneous requests
PROMPT_TOKENS = 64
NEW_TOKENS = 64
FIRST_TOKEN_ID = 100  # below lie the special tokens


@dataclass(frozen=True)
class Work:
    """One round of `requests` greedy requests to their full length, at most `together` at once.

    Request i goes to adapter `adapters[i % len(adapters)]`; without adapters, to the bare base. Rounds with different
    seeds share no prompt, so nothing that an engine caches of an earlier round helps a later one.
    """

    seed: int
    vocabulary: int
    requests: int = TOGETHER
    prompt_tokens: int = PROMPT_TOKENS
    new_tokens: int = NEW_TOKENS
    together: int = TOGETHER
    shared_tokens: int = 0  # length of the prefix that all prompts of the round share
    adapters: tuple[str, ...] = ()

    def prompts(self) -> list[list[int]]:
        """Return the prompts as token ids."""
        chance = random.Random(self.seed)
        ids = range(FIRST_TOKEN_ID, self.vocabulary)
        shared, own = chance.choices(ids, k=self.shared_tokens), self.prompt_tokens - self.shared_tokens
        return [[*shared, *chance.choices(ids, k=own)] for _ in range(self.requests)]

    def adapter(self, request: int) -> str:
        """Return the adapter of a request; empty for the bare base."""
        return self.adapters[request % len(self.adapters)] if self.adapters else ""


def draw(seed: int, names: Sequence[str], count: int) -> tuple[str, ...]:
    """Return `count` adapters drawn from `names` with equal probability."""
    return tuple(random.Random(seed).choices(names, k=count))
