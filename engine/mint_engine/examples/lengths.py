"""Checks that a policy's examples fit the context when its training begins, rather than hours later in a step.

Rendering all of a large data set would take minutes, so only the examples with the longest texts are rendered; if
another one does not fit after all, the step that draws it reports that.
"""

from collections.abc import Iterable
from heapq import nlargest
from itertools import islice

from mint_engine.examples.example import Example
from mint_engine.examples.render import Renderer
from mint_engine.requests.thoughts import END

RENDERED = 64  # examples of a data set, longest first
_AROUND = 20  # characters: about what templates write around a message, most often five tokens
_AT_ONCE = 256  # examples read at once, which are in memory with all of their texts


def check_lengths(render: Renderer, examples: Iterable[Example], room: int, *, answers: bool = False) -> int:
    """Return the tokens of the longest prompt that was rendered.

    Raises BadExample if a prompt does not leave `room`, or (with `answers`) a training answer does not fit it. The
    first answer without a thought is among those rendered, as some bases could not learn it.
    """
    rest, longest, learnt, plain = iter(examples), list[Example](), list[Example](), list[Example]()
    while some := list(islice(rest, _AT_ONCE)):
        longest = nlargest(RENDERED, longest + some, key=_characters)
        if answers:
            learnt = nlargest(RENDERED, learnt + some, key=_to_learn)
            plain = plain or [each for each in some if END not in (each.answer or "")][:1]
    tokens = max((len(render.prompt(each, room)) for each in longest), default=0)
    for each in learnt + plain:
        render.answer(each, room)
    return tokens


def _characters(example: Example) -> int:
    if isinstance(example.prompt, str):
        return len(example.prompt)
    return sum(_AROUND + len(each.content) for each in example.prompt)


def _to_learn(example: Example) -> tuple[bool, int]:
    """Sort key by the answer's length; examples without an answer rank highest."""
    return not example.answer, len(example.answer or "")
