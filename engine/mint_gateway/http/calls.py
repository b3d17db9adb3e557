"""Calls of functions, read out of an answer as its text comes: pure.

However the text is cut into pieces, the same calls are read and the same text is left beside them: what is no whole
call stays text. Arguments are the model's own characters.
"""

from collections.abc import Callable, Collection
from typing import Protocol

import msgspec

_BEGIN, _END = "<tool_call>", "</tool_call>"
_BETWEEN = " \n\r\t,[]"  # of an array, all that is outside of its objects


class Call(msgspec.Struct, frozen=True):
    """One call: `arguments` are a JSON object, as text."""

    name: str
    arguments: str


class Reader(Protocol):
    """Of one completion. Both tell what became certain, in order."""

    def push(self, text: str) -> list[str | Call]:
        """Take more text."""

    def finish(self) -> list[str | Call]:
        """Tell the rest: no more comes."""


Reading = Callable[[], Reader]  # makes one for each completion


class Tagged:
    """Reads Hermes' form: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, with text before and between.

    A call goes on to the first `</tool_call>`, or to the answer's end. White space around it belongs to it.
    """

    def __init__(self, names: Collection[str]) -> None:
        """`names` are those of the functions: a call of another is none."""
        self._names = names
        self._held = ""  # white space and a tag's beginning, or what has come of a call with the space before it
        self._calling = False
        self._after = False  # whether only white space has come since a call

    def push(self, text: str) -> list[str | Call]:
        """Take more text."""
        found: list[str | Call] = []
        self._held += text
        while (at := self._held.find(_END if self._calling else _BEGIN)) >= 0:
            if self._calling:
                found += self._called(at, at + len(_END))
            else:
                found += self._said(len(self._held[:at].rstrip()))
            self._calling = not self._calling
        if not self._calling:
            found += self._said(_may_begin(self._held))
        return found

    def finish(self) -> list[str | Call]:
        """Tell the rest: no more comes."""
        return self._called(len(self._held), len(self._held)) if self._calling else self._said(len(self._held))

    def _called(self, at: int, end: int) -> list[str | Call]:
        """What is held up to `end`, whose tag, if it has one, is `at`."""
        call = _tagged(self._held[self._held.index(_BEGIN) + len(_BEGIN) : at])
        if call is None or call.name not in self._names:
            return self._said(end)
        self._held, self._after = self._held[end:], True
        return [call]

    def _said(self, end: int) -> list[str | Call]:
        """What is held up to `end`, as text."""
        text, self._held = self._held[:end], self._held[end:]
        if self._after:
            text = text.lstrip()
        self._after = self._after and not text
        return [text] if text else []


class Listed:
    """Reads an answer that is held to a JSON array of `{"name": ..., "parameters": {...}}`."""

    def __init__(self) -> None:
        self._held = ""  # since the last call
        self._read = 0  # characters of it
        self._depth = 0
        self._quoted = self._escaped = False

    def push(self, text: str) -> list[str | Call]:
        """Take more text."""
        found: list[str | Call] = []
        self._held += text
        while self._read < len(self._held):
            character = self._held[self._read]
            self._read += 1
            if self._ends(character):
                found.append(_listed(self._held[: self._read].lstrip(_BETWEEN)) or self._held[: self._read])
                self._held, self._read = self._held[self._read :], 0
        return found

    def finish(self) -> list[str | Call]:
        """Tell the rest, such as of a call that was cut; the array's own characters are none."""
        return [self._held] if self._held.strip(_BETWEEN) else []

    def _ends(self, character: str) -> bool:
        """Whether an object of the array ends with it."""
        if self._quoted:
            self._quoted = self._escaped or character != '"'
            self._escaped = character == "\\" and not self._escaped
        elif character == '"':
            self._quoted = True
        elif character in "[{":
            self._depth += 1
        elif character in "]}":
            self._depth -= 1
            return self._depth == 1
        return False


class Single:
    """Reads an answer that is held to the arguments of one function."""

    def __init__(self, name: str) -> None:
        self._name, self._held = name, ""

    def push(self, text: str) -> list[str | Call]:
        """Take more text."""
        self._held += text
        return []

    def finish(self) -> list[str | Call]:
        """Tell the call, or the text of one that was cut."""
        if _is_object(self._held):
            return [Call(self._name, self._held.strip())]
        return [self._held] if self._held else []


class _Tagged(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _Listed(msgspec.Struct):
    name: str
    parameters: msgspec.Raw


def _tagged(text: str) -> Call | None:
    try:
        told = msgspec.json.decode(text, type=_Tagged)
    except (msgspec.MsgspecError, RecursionError):
        return None
    return _call(told.name, told.arguments)


def _listed(text: str) -> Call | None:
    try:
        told = msgspec.json.decode(text, type=_Listed)
    except (msgspec.MsgspecError, RecursionError):
        return None
    return _call(told.name, told.parameters)


def _call(name: str, arguments: msgspec.Raw) -> Call | None:
    text = bytes(arguments).decode()
    return Call(name, text) if _is_object(text) else None


def _is_object(text: str) -> bool:
    try:
        msgspec.json.decode(text, type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


def _may_begin(text: str) -> int:
    """From where on the white space before a tag, or its beginning, may be."""
    begun = next((n for n in range(min(len(_BEGIN), len(text)), 0, -1) if text.endswith(_BEGIN[:n])), 0)
    return len(text[: len(text) - begun].rstrip())
