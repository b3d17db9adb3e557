"""Users' regular expressions, matched in a separate process (see `Checker`); `.` also matches line ends."""

import regex

from mint_contracts.errors import InvalidRequest
from mint_engine.rewards.checker import Checker

MAX_PATTERN = 4096  # characters
ANSWER = "{answer}"


def check_length(pattern: str) -> None:
    """Raise InvalidRequest if a pattern is too long. Only the checking process may compile it.

    Compiling a hundred characters may take minutes and all memory, and blocks all other threads of a process.
    """
    if len(pattern) > MAX_PATTERN:
        raise InvalidRequest("reward.regex", f"has more than {MAX_PATTERN} characters")


def pattern_for(pattern: str, answer: str) -> str:
    """Return the pattern with `{answer}` replaced by the example's answer, escaped."""
    return pattern.replace(ANSWER, regex.escape(answer))


def matches(pattern: str, text: str, *, full: bool) -> bool:
    """Whether the text (with `full`), or any part of it, matches. Blocks its thread. Raises as `Checker.check`.

    A match that takes too long is an error, not a miss: a reward must not depend on how busy a machine is.
    """
    kind = "whole pattern" if full else "pattern"
    return _checker.check(f"reward.regex {pattern[:100]!r}", kind, pattern, text)


_checker = Checker("write it without nested repeats")
