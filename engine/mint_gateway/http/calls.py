"""Parsing function calls out of an answer's text as it arrives: pure.

The calls and the remaining text do not depend on how the text is cut into pieces. Anything that is not a complete
call stays text. Arguments keep the model's own characters.
"""

import re
from collections.abc import Callable, Collection
from typing import Protocol

import msgspec

from mint_gateway.http.runs import Runs
from mint_gateway.http.tags import may_begin

_BEGIN, _END = "<tool_call>", "</tool_call>"
_SPACE = " \n\r\t"  # JSON's white space
_BETWEEN = f"{_SPACE},[]"  # an array's characters outside of its objects
_JSON = frozenset(f'{_SPACE}{{}}[],:"+-.0123456789eEtrufalsn')  # JSON's characters outside of strings


def _other_than(characters: str) -> re.Pattern[str]:
    return re.compile(f"[^{re.escape(characters)}]")


_NO_SPACE, _NOT_BETWEEN = _other_than(_SPACE), _other_than(_BETWEEN)


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


class _Object:
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


class Tagged:
    """Reads Hermes' form: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, with text before and between.

    A call ends where its JSON does, even if a string contains the tag; at the answer's end the closing tag may be
    missing. White space around a call is dropped.
    """

    def __init__(self, names: Collection[str]) -> None:
        """`names` are the functions' names: a call of another stays text."""
        self._names = names
        self._held = ""  # white space and the beginning of a tag, or of a call with the space before it
        self._object: _Object | None = None  # of a call that has begun
        self._after = False  # whether only white space has come since a call

    def push(self, text: str) -> list[str | Call]:
        """Parse more text."""
        self._held += text
        return self._read(last=False)

    def finish(self) -> list[str | Call]:
        """Return the rest; no more text follows."""
        return self._read(last=True)

    def _read(self, *, last: bool) -> list[str | Call]:
        found: list[str | Call] = []
        while True:
            if self._object is None:
                at = self._held.find(_BEGIN)
                if at < 0:
                    return found + self._release(len(self._held) if last else may_begin(_BEGIN, self._held))
                found += self._release(len(self._held[:at].rstrip()))
                self._object = _Object()
            parts = self._called(self._object, last=last)
            if parts is None:
                return found
            found, self._object = found + parts, None

    def _called(self, of: _Object, *, last: bool) -> list[str | Call] | None:
        """Return the call that has begun, or its text if it is not one; None while it may be either."""
        begin = self._held.index(_BEGIN) + len(_BEGIN)
        at = of.runs.end(_NO_SPACE, self._held, begin)
        of.read(self._held, at)
        if of.length:
            end = at + of.length
            tag = of.runs.end(_NO_SPACE, self._held, end)
            if self._held.startswith(_END, tag) or (last and tag == len(self._held)):
                call, close = _decoded(self._held[at:end], "arguments", self._names, "{}"), tag + len(_END)
                if call is None:
                    return self._release(close)
                self._held, self._after = self._held[close:], True
                return [call]
            if not last and _END.startswith(self._held[tag:]):
                return None
            begin = end
        elif not of.broken and not last:
            return None
        close = self._held.find(_END, begin)
        if close < 0:
            return self._release(len(self._held)) if last else None
        return self._release(close + len(_END))

    def _release(self, end: int) -> list[str | Call]:
        """Return what is held up to `end` as text."""
        text, self._held = self._held[:end], self._held[end:]
        if self._after:
            text = text.lstrip()
        self._after = self._after and not text
        return [text] if text else []


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
        self._object = _Object()
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
            call = _decoded(self._held[at:end], self._field, self._names)
            self._saying = call is None
            if call is not None:
                found.append(call)
                self._held, self._object, self._called = self._held[end:], _Object(), True
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
            at = runs.end(_NO_SPACE, held, at)
            if held.startswith(literal, at):
                at += len(literal)
            elif literal.startswith(held[at:]):
                return None
            elif literal == "[":
                self._saying = True
                return None
        at = runs.end(_NO_SPACE, held, at)
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
        self._object = _Object()
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
            call = _decoded(self._held[at:end], "parameters")
            found.append(call or self._held[:end])
            self._held, self._object = self._held[end:], _Object()
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
        if _is_object(self._held):
            return [Call(self._name, self._held.strip())]
        return [self._held] if self._held else []


def _decoded(text: str, field: str, names: Collection[str] | None = None, none: str = "") -> Call | None:
    """Decode a JSON object as a call of one of `names`, or None. Without the field, its arguments are `none`."""
    try:
        fields = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        name = msgspec.json.decode(fields.get("name", msgspec.Raw(b"0")), type=str)
    except (msgspec.MsgspecError, RecursionError):
        return None
    arguments = bytes(fields[field]).decode() if field in fields else none
    return Call(name, arguments) if (names is None or name in names) and _is_object(arguments) else None


def _is_object(text: str) -> bool:
    try:
        msgspec.json.decode(text, type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True
