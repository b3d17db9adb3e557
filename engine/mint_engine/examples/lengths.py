"""Whether what a policy is to learn from fits the context: checked as it begins, not hours later by its step.

To render all of a large data set would take minutes. Those of the longest texts tell of the others; where one does
not fit all the same, the step that draws it says so.
"""

from collections.abc import Iterable
from heapq import nlargest
from itertools import islice

from mint_engine.examples.example import Example
from mint_engine.examples.render import Renderer

RENDERED = 64  # of a data set, longest first
_AT_ONCE = 256  # are looked at, and in memory with all of their texts


def check_lengths(render: Renderer, examples: Iterable[Example], room: int, *, answers: bool = False) -> None:
    """Raise BadExample where a prompt does not leave `room`, or an answer that is to be learnt is not within it."""
    rest, longest, learnt = iter(examples), list[Example](), list[Example]()
    while some := list(islice(rest, _AT_ONCE)):
        longest = nlargest(RENDERED, longest + some, key=_characters)
        learnt = nlargest(RENDERED, learnt + some, key=_to_learn) if answers else []
    for each in longest:
        render.prompt(each, room)
    for each in learnt:
        render.answer(each, room)


def _characters(example: Example) -> int:
    if isinstance(example.prompt, str):
        return len(example.prompt)
    return sum(len(each.content) for each in example.prompt)


def _to_learn(example: Example) -> tuple[bool, int]:
    """Those that have none come first."""
    return not example.answer, len(example.answer or "")
