"""What a verb is for, in its own `--help` and in the list of verbs above it."""

from typing import TypedDict


class Purpose(TypedDict):
    """Arguments of `add_parser`: the line in the list, and the sentence under the verb's own usage."""

    help: str
    description: str


def purpose(text: str, more: str = "") -> Purpose:
    """Return a purpose for a text like "list adapters"; `more` are sentences that only the verb's own help has."""
    sentence = f"{text[0].upper()}{text[1:]}."
    return Purpose(help=text, description=f"{sentence} {more}" if more else sentence)
