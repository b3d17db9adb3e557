"""The training data of a GRPO step: random groups of completions, the same for both sides.

Uses only the standard library, like `workload`.
"""

import random
from dataclasses import dataclass

from tests.bench.workload import FIRST_TOKEN_ID

Group = tuple[list[int], list[list[int]], list[float]]  # a prompt, its completions, and an advantage for each


@dataclass(frozen=True)
class Experience:
    """One update of `policies` policies, each with `prompts` groups of `size` completions."""

    seed: int
    vocabulary: int
    policies: int = 8
    prompts: int = 4
    size: int = 8
    prompt_tokens: int = 64
    new_tokens: int = 64

    def groups(self, policy: int) -> list[Group]:
        """Return the groups that one policy learns from."""
        chance = random.Random(1000 * self.seed + policy)
        ids = range(FIRST_TOKEN_ID, self.vocabulary)
        return [
            (
                chance.choices(ids, k=self.prompt_tokens),
                [chance.choices(ids, k=self.new_tokens) for _ in range(self.size)],
                [chance.uniform(-1.5, 1.5) for _ in range(self.size)],
            )
            for _ in range(self.prompts)
        ]

    @property
    def tokens(self) -> int:
        """Tokens of all sequences, counting the prompt with each."""
        return self.policies * self.prompts * self.size * (self.prompt_tokens + self.new_tokens)
