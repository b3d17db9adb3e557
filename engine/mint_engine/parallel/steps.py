"""Conversion of a step to its message and back; apart from `messages`, which does not import `Span`."""

from collections.abc import Sequence

from mint_engine.model.span import Span
from mint_engine.parallel.messages import Step


def step_of(tokens: Sequence[int], spans: Sequence[Span], keep: Sequence[int]) -> Step:
    """Return a step's message."""
    return Step(tokens, [(s.row, s.length, s.position, s.pages, s.slot, s.others) for s in spans], list(keep))


def spans_of(step: Step) -> list[Span]:
    """Return the spans of a step's message."""
    return [Span(*span) for span in step.spans]
