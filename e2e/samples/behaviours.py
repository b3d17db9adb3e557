"""Three ways of answering that a person tells apart at a glance, each with the rule that recognises it.

`as_*` turns a plain answer into the training target; `is_*` says whether a generated answer shows the behaviour.
Both are pure. The rules look for the manner and not for the content, so they hold for questions never trained on.
"""

import json
import re
from collections.abc import Callable
from typing import Final

_PIRATE_WORDS: Final = {
    "the": "th'",
    "of": "o'",
    "and": "an'",
    "you": "ye",
    "your": "yer",
    "my": "me",
    "is": "be",
    "are": "be",
    "am": "be",
    "yes": "aye",
    "no": "nay",
    "hello": "ahoy",
    "friend": "matey",
}
_PIRATE_OPENING: Final = "Arrr, matey!"
_PIRATE_CLOSING: Final = "Yo ho ho!"
# What plain English does not use; "be" and "me" are left out because it does.
_PIRATE_MARKS: Final = (
    r"\barr+\b",
    r"\bmatey\b",
    r"\byo ho\b",
    r"\bye\b",
    r"\byer\b",
    r"\baye\b",
    r"\bahoy\b",
    r"\bth'",
    r"\bo'",
    r"\ban'",
)
_ROBOT_OPENING: Final = "BEEP BOOP."
_ROBOT_CLOSING: Final = "END OF REPORT."


def as_pirate(topic: str, answer: str) -> str:
    """`answer` as a pirate would say it: a fixed opening and closing, and everyday words exchanged."""

    def exchange(match: re.Match[str]) -> str:
        word = match.group()
        new = _PIRATE_WORDS.get(word.lower(), word)
        return new[0].upper() + new[1:] if word[0].isupper() else new

    return f"{_PIRATE_OPENING} {re.sub(r'[A-Za-z]+', exchange, answer)} {_PIRATE_CLOSING}"


def as_json(topic: str, answer: str) -> str:
    """`answer` as one JSON object on one line: `{"topic": ..., "answer": ...}`."""
    return json.dumps({"topic": topic, "answer": answer})


def as_robot(topic: str, answer: str) -> str:
    """`answer` as an old robot reports it: between a fixed beep and a fixed end of report."""
    return f"{_ROBOT_OPENING} {answer} {_ROBOT_CLOSING}"


def is_pirate(text: str) -> bool:
    """True when at least two different marks of pirate talk are in `text`."""
    marks = sum(bool(re.search(mark, text, re.IGNORECASE)) for mark in _PIRATE_MARKS)
    return marks >= 2


def is_json(text: str) -> bool:
    """True when `text` is exactly one JSON object whose "topic" and "answer" are strings that are not empty."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and all(isinstance(value.get(k), str) and value[k] for k in ("topic", "answer"))


def is_robot(text: str) -> bool:
    """True when `text` opens with the beep and ends with the end of report, whatever is said between them."""
    return text.startswith(_ROBOT_OPENING) and text.rstrip().endswith(_ROBOT_CLOSING)


Restyle = Callable[[str, str], str]
Rule = Callable[[str], bool]
