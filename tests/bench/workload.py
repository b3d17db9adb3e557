"""What is asked: random prompts and random choices of adapters, the same for both sides and in every run.

Standard library alone: the peers' own environments read it too.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

TOGETHER = 64  # requests at once
PROMPT_TOKENS = 64
NEW_TOKENS = 64
FIRST_TOKEN_ID = 100  # below lie the special tokens


@dataclass(frozen=True)
class Work:
    """One round: so many requests, greedy, to their full length, at most `together` at once.

    Request i asks adapter `adapters[i % len(adapters)]`; without adapters it asks the bare base. Rounds of different
    seeds share no prompt, so nothing that an engine remembers of an earlier round answers a later one.
    """

    seed: int
    vocabulary: int
    requests: int = TOGETHER
    prompt_tokens: int = PROMPT_TOKENS
    new_tokens: int = NEW_TOKENS
    together: int = TOGETHER
    shared_tokens: int = 0  # that all prompts of the round begin with
    adapters: tuple[str, ...] = ()

    def prompts(self) -> list[list[int]]:
        """The prompts as token ids."""
        chance = random.Random(self.seed)
        ids = range(FIRST_TOKEN_ID, self.vocabulary)
        shared, own = chance.choices(ids, k=self.shared_tokens), self.prompt_tokens - self.shared_tokens
        return [[*shared, *chance.choices(ids, k=own)] for _ in range(self.requests)]

    def adapter(self, request: int) -> str:
        """Whom a request asks; empty: the bare base."""
        return self.adapters[request % len(self.adapters)] if self.adapters else ""


def draw(seed: int, names: Sequence[str], count: int) -> tuple[str, ...]:
    """`count` adapters drawn from `names`, each as likely as any other."""
    return tuple(random.Random(seed).choices(names, k=count))
