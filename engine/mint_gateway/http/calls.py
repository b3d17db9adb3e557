"""Parsing function calls out of an answer's text as it arrives: pure.

The calls and the remaining text do not depend on how the text is cut into pieces. Anything that is not a complete
call stays text. Arguments keep the model's own characters.
"""

import re
from collections.abc import Callable, Collection
from typing import Protocol

import msgspec

from mint_gateway.http.runs import Runs

_SPACE = " \n\r\t"  # JSON's white space
_BETWEEN = f"{_SPACE},[]"  # an array's characters outside of its objects
_JSON = frozenset(f'{_SPACE}{{}}[],:"+-.0123456789eEtrufalsn')  # JSON's characters outside of strings


def _other_than(characters: str) -> re.Pattern[str]:
    return re.compile(f"[^{re.escape(characters)}]")


NO_SPACE, _NOT_BETWEEN = _other_than(_SPACE), _other_than(_BETWEEN)


class Call(msgspec.Struct, frozen=True):
    """One call: `arguments` are a JSON object, as text."""

    name: str
    arguments: str


class Reader(Protocol):
    """Parses one completion. Both methods return the text and calls that have become certain, in order."""

    def push(self, text: str) -> list[str | Call]:
        """Parse more text."""

    def finish(self) -> list[str | Call]:
        """Return the rest; no more text follows."""


class Text:
    """Reads an answer whose text has no calls."""

    def push(self, text: str) -> list[str | Call]:
        """Return the text."""
        return [text] if text else []

    def finish(self) -> list[str | Call]:
        """Return nothing, since nothing was held."""
        return []


class Reading(msgspec.Struct, frozen=True):
    """How calls are read from the answer to one request."""

    reader: Callable[[], Reader] = Text  # makes a reader for each completion
    names: frozenset[str] = frozenset()  # functions to which the messages in channels are calls
    once: bool = False  # whether what follows the first of these is dropped
    short_ids: bool = False  # call ids have nine letters and digits: Mistral's templates accept no others


class Object:
    """Finds the end of a JSON object as its text arrives; whether it is valid is found out by decoding it.

    It is `broken` as soon as a character shows that it cannot be an object.
    """

    def __init__(self) -> None:
        self.length = 0  # set once it is complete
        self.broken = False
        self.runs = Runs()  # of white space and separators before and after it
        self._read = self._depth = 0
        self._quoted = self._escaped = False

    def read(self, text: str, at: int) -> None:
        """Continue scanning; the object begins at `at`. The text must be the same as before, with more after it."""
        while not self.broken and not self.length and at + self._read < len(text):
            self._take(text[at + self._read])
            self._read += 1
            if not self._depth and not self.broken:
                self.length = self._read

    def _take(self, character: str) -> None:
        if self._quoted:
            self.broken = character < " "  # in a string it must be escaped
            self._quoted = self._escaped or character != '"'
            self._escaped = character == "\\" and not self._escaped
        else:
            self.broken = character not in _JSON or not (self._depth or character == "{")
            self._quoted = character == '"'
            self._depth += (character in "[{") - (character in "]}")


class Leading:
    """Reads calls at the beginning of an answer, in an array or by themselves; everything after them is text.

    White space and separators between and around calls are dropped.
    """

    def __init__(self, names: Collection[str], opening: Collection[str], between: str, field: str) -> None:
        """`names` are the functions' names: a call of another stays text. `field` has a call's arguments.

        `opening` are texts allowed before the first call; "[" is required if it is one of them. `between` are the
        characters that separate calls.
        """
        self._names, self._opening, self._between, self._field = names, opening, f"{_SPACE}{between}", field
        self._not_between = _other_than(self._between)
        self._held = ""  # since the last call
        self._object = Object()
        self._called = self._saying = False

    def push(self, text: str) -> list[str | Call]:
        """Parse more text."""
        self._held += text
        found: list[str | Call] = []
        while not self._saying and (at := self._begins()) is not None:
            self._object.read(self._held, at)
            if not self._object.length and not self._object.broken:
                return found
            end = at + self._object.length
            call = decoded(self._held[at:end], self._field, self._names)
            self._saying = call is None
            if call is not None:
                found.append(call)
                self._held, self._object, self._called = self._held[end:], Object(), True
        return found + self._release_all() if self._saying else found

    def finish(self) -> list[str | Call]:
        """Return the rest; no more text follows."""
        return [] if self._called and not self._held.strip(self._between) else self._release_all()

    def _begins(self) -> int | None:
        """Return where an object may begin; None while that is unknown."""
        held, at, runs = self._held, 0, self._object.runs
        if self._called:
            at = runs.end(self._not_between, held, at)
            return at if at < len(held) else None
        for literal in self._opening:
            at = runs.end(NO_SPACE, held, at)
            if held.startswith(literal, at):
                at += len(literal)
            elif literal.startswith(held[at:]):
                return None
            elif literal == "[":
                self._saying = True
                return None
        at = runs.end(NO_SPACE, held, at)
        return at if at < len(held) else None

    def _release_all(self) -> list[str | Call]:
        """Return all that is held as text."""
        text, self._held = self._held, ""
        if self._called:
            text = text.lstrip(self._between)
        self._called = self._called and not text
        return [text] if text else []


class Once:
    """Reads at most one call; everything after it is dropped."""

    def __init__(self, reader: Reader) -> None:
        self._reader, self._done = reader, False

    def push(self, text: str) -> list[str | Call]:
        """Parse more text."""
        return [] if self._done else self._first(self._reader.push(text))

    def finish(self) -> list[str | Call]:
        """Return the rest; no more text follows."""
        return [] if self._done else self._first(self._reader.finish())

    def _first(self, parts: list[str | Call]) -> list[str | Call]:
        for at, part in enumerate(parts, start=1):
            if isinstance(part, Call):
                self._done = True
                return parts[:at]
        return parts


class Listed:
    """Reads an answer that is constrained to a JSON array of `{"name": ..., "parameters": {...}}`.

    A later call that was cut off is dropped, since as text it would be shown and sent back; the finish reason says
    that the answer was cut.
    """

    def __init__(self) -> None:
        self._held = ""  # since the last call
        self._object = Object()
        self._called = False

    def push(self, text: str) -> list[str | Call]:
        """Parse more text."""
        found: list[str | Call] = []
        self._held += text
        while (at := self._object.runs.end(_NOT_BETWEEN, self._held, 0)) < len(self._held):
            self._object.read(self._held, at)
            if not self._object.length:
                break
            end = at + self._object.length
            call = decoded(self._held[at:end], "parameters")
            found.append(call or self._held[:end])
            self._held, self._object = self._held[end:], Object()
            self._called = self._called or call is not None
        return found

    def finish(self) -> list[str | Call]:
        """Return the rest as text if it has more than the array's own characters and no call came before."""
        return [self._held] if self._held.strip(_BETWEEN) and not self._called else []


class Single:
    """Reads an answer that is constrained to the arguments of one function."""

    def __init__(self, name: str) -> None:
        self._name, self._held = name, ""

    def push(self, text: str) -> list[str | Call]:
        """Hold more text."""
        self._held += text
        return []

    def finish(self) -> list[str | Call]:
        """Return the call, or its text if it was cut off."""
        if is_object(self._held):
            return [Call(self._name, self._held.strip())]
        return [self._held] if self._held else []


def decoded(text: str, field: str, names: Collection[str] | None = None, none: str = "") -> Call | None:
    """Decode a JSON object as a call of one of `names`, or None. Without the field, its arguments are `none`."""
    try:
        fields = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        name = msgspec.json.decode(fields.get("name", msgspec.Raw(b"0")), type=str)
    except (msgspec.MsgspecError, RecursionError):
        return None
    arguments = bytes(fields[field]).decode() if field in fields else none
    return Call(name, arguments) if (names is None or name in names) and is_object(arguments) else None


def is_object(text: str) -> bool:
    """Return whether a text is a JSON object."""
    try:
        msgspec.json.decode(text, type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True
