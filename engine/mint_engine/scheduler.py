"""Who runs, and how many tokens of whom a step computes. No tensors, no clock, no threads.

Requests are admitted first in, first out, each with pages for all the tokens it can grow to: what was admitted always
finishes, so nothing is preempted and nothing starves. A step computes one token of every request that decodes, and
fills the rest of its budget with prompts in the order of their arrival, in chunks where they are long.
"""

from collections import deque
from collections.abc import Sequence as List
from dataclasses import dataclass

import msgspec

from mint_engine.pages import Pages, pages_for
from mint_engine.request import Sequence


class Limits(msgspec.Struct, frozen=True):
    """Bounds of one engine's work. `step_tokens` must exceed `running`, so that prompts always progress."""

    running: int = 64  # requests decoding together
    waiting: int = 256  # requests queued beside them
    step_tokens: int = 512  # tokens that one step computes at most

    def __post_init__(self) -> None:
        if not 0 < self.running < self.step_tokens:
            raise ValueError(f"step_tokens {self.step_tokens} must exceed running {self.running}, at least 1")


@dataclass(frozen=True)
class Share:
    """One request's part of a step."""

    sequence: Sequence
    length: int

    @property
    def samples(self) -> bool:
        """Whether the step reaches the sequence's end, so that a next token is chosen."""
        return self.length == self.sequence.pending


def split_budget(running: List[Sequence], step_tokens: int) -> list[Share]:
    """Every decoding request's token, then prompts in order of arrival while the budget lasts."""
    decodes = [Share(each, 1) for each in running if each.pending == 1]
    left, prompts = step_tokens - len(decodes), []
    for each in running:
        if each.pending > 1 and left > 0:
            prompts.append(Share(each, min(each.pending, left)))
            left -= prompts[-1].length
    return decodes + prompts


class Scheduler:
    """The waiting and the running, and the pages they own. Owned by the step thread."""

    def __init__(self, limits: Limits, pages: Pages) -> None:
        self.limits = limits
        self.pages = pages
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a request; the queue's bound is kept where requests come in."""
        self.waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Move requests from the queue's head to the running while places and pages last."""
        admitted = []
        while self.waiting and len(self.running) < self.limits.running:
            pages = self.pages.take(pages_for(self.waiting[0].request.most_tokens))
            if pages is None:
                break
            sequence = self.waiting.popleft()
            sequence.pages = pages
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted

    def next_step(self) -> list[Share]:
        """What the next step computes."""
        return split_budget(self.running, self.limits.step_tokens)

    def remove(self, sequence: Sequence) -> None:
        """Forget a request that ended, wherever it is; its pages are free at once."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.pages.give_back(sequence.pages)
        sequence.pages = []
