"""Regular expressions of users, matched by a process of its own (see `Checker`); `.` matches line ends too."""

import regex

from mint_contracts.errors import InvalidRequest
from mint_engine.rewards.checker import Checker

MAX_PATTERN = 4096  # characters
ANSWER = "{answer}"


def check_length(pattern: str) -> None:
    """Raises InvalidRequest for what is too long. Whether it is a pattern only that process may try: to compile a
    hundred characters may take minutes and all memory, and nobody else in a process runs meanwhile.
    """
    if len(pattern) > MAX_PATTERN:
        raise InvalidRequest("reward.regex", f"has more than {MAX_PATTERN} characters")


def pattern_for(pattern: str, answer: str) -> str:
    """The pattern with `{answer}` standing for an example's answer, literally."""
    return pattern.replace(ANSWER, regex.escape(answer))


def matches(pattern: str, text: str, *, full: bool) -> bool:
    """Whether a text, or a part of it, matches. Blocks its thread. Raises as `Checker.check`.

    A match that takes too long is an error and not a miss: a reward must not depend on how busy a machine is.
    """
    kind = "whole pattern" if full else "pattern"
    return _checker.check(f"reward.regex {pattern[:100]!r}", kind, pattern, text)


_checker = Checker("write it without nested repeats")
