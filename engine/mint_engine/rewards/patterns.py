"""Regular expressions of users, matched in bounded time: a pattern may need time exponential in its text."""

import threading

import regex

from mint_contracts.errors import InvalidRequest

MATCH_S = 2.0
MAX_PATTERN = 4096  # characters
ANSWER = "{answer}"


def compile_pattern(pattern: str) -> regex.Pattern[str]:
    """A user's pattern; `.` matches line ends too. Raises InvalidRequest."""
    if len(pattern) > MAX_PATTERN:
        raise InvalidRequest("reward.regex", f"has more than {MAX_PATTERN} characters")
    try:
        return regex.compile(pattern, regex.DOTALL)
    except (regex.error, RecursionError, OverflowError) as error:
        raise InvalidRequest("reward.regex", f"is no regular expression: {error}") from None


def compile_for(pattern: str, answer: str) -> regex.Pattern[str]:
    """The pattern with `{answer}` standing for an example's answer, literally."""
    return compile_pattern(pattern.replace(ANSWER, regex.escape(answer)))


def matches(compiled: regex.Pattern[str], text: str, *, full: bool) -> bool:
    """Whether a text, or a part of it, matches. Raises InvalidRequest after `MATCH_S` seconds.

    A match that takes too long is an error and not a miss: a reward must not depend on how busy a machine is.
    """
    match = compiled.fullmatch if full else compiled.search
    # The GIL is let go only off the main thread: there, nothing else could run meanwhile anyway.
    alone = threading.current_thread() is threading.main_thread()
    try:
        return match(text, timeout=MATCH_S, concurrent=not alone) is not None
    except TimeoutError:
        shown = compiled.pattern[:100]
        raise InvalidRequest(
            "reward.regex",
            f"{shown!r} takes more than {MATCH_S:g} s on {text[:100]!r}; write it without nested repeats",
        ) from None
