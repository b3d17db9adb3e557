"""Calls of functions, read out of an answer as its text comes: pure.

However the text is cut into pieces, the same calls are read and the same text is left beside them: what is no whole
call stays text. Arguments are the model's own characters.
"""

import re
from collections.abc import Callable, Collection
from typing import Protocol

import msgspec

from mint_gateway.http.runs import Runs

_BEGIN, _END = "<tool_call>", "</tool_call>"
_SPACE = " \n\r\t"  # of JSON
_BETWEEN = f"{_SPACE},[]"  # of an array, all that is outside of its objects
_JSON = frozenset(f'{_SPACE}{{}}[],:"+-.0123456789eEtrufalsn')  # outside of strings


def _other_than(characters: str) -> re.Pattern[str]:
    return re.compile(f"[^{re.escape(characters)}]")


_NO_SPACE, _NOT_BETWEEN = _other_than(_SPACE), _other_than(_BETWEEN)


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


class Reading(msgspec.Struct, frozen=True):
    """How calls are read out of the answer to one request."""

    reader: Callable[[], Reader]  # makes one for each completion
    short_ids: bool = False  # calls get ids of nine letters and digits: Mistral's templates take no others back


class _Object:
    """Looks for the end of a JSON object as its text comes; whoever decodes it finds out whether it is one.

    It is `broken` as soon as a character shows that it can't be.
    """

    def __init__(self) -> None:
        self.length = 0  # once it is whole
        self.broken = False
        self.runs = Runs()  # of what may come before and after it
        self._read = self._depth = 0
        self._quoted = self._escaped = False

    def read(self, text: str, at: int) -> None:
        """Look on, in the text that it begins in there: the same one as before, with more after it."""
        while not self.broken and not self.length and at + self._read < len(text):
            self._take(text[at + self._read])
            self._read += 1
            if not self._depth and not self.broken:
                self.length = self._read

    def _take(self, character: str) -> None:
        if self._quoted:
            self.broken = character < " "  # it would be escaped
            self._quoted = self._escaped or character != '"'
            self._escaped = character == "\\" and not self._escaped
        else:
            self.broken = character not in _JSON or not (self._depth or character == "{")
            self._quoted = character == '"'
            self._depth += (character in "[{") - (character in "]}")


class Tagged:
    """Reads Hermes' form: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, with text before and between.

    Whatever strings hold, a call ends where its JSON does; its tag may be missing at the answer's end. White space
    around it belongs to it.
    """

    def __init__(self, names: Collection[str]) -> None:
        """`names` are those of the functions: a call of another is none."""
        self._names = names
        self._held = ""  # white space and a tag's beginning, or what has come of a call with the space before it
        self._object: _Object | None = None  # of a call that has begun
        self._after = False  # whether only white space has come since a call

    def push(self, text: str) -> list[str | Call]:
        """Take more text."""
        self._held += text
        return self._read(last=False)

    def finish(self) -> list[str | Call]:
        """Tell the rest: no more comes."""
        return self._read(last=True)

    def _read(self, *, last: bool) -> list[str | Call]:
        found: list[str | Call] = []
        while True:
            if self._object is None:
                at = self._held.find(_BEGIN)
                if at < 0:
                    return found + self._release(len(self._held) if last else _may_begin(self._held))
                found += self._release(len(self._held[:at].rstrip()))
                self._object = _Object()
            parts = self._called(self._object, last=last)
            if parts is None:
                return found
            found, self._object = found + parts, None

    def _called(self, of: _Object, *, last: bool) -> list[str | Call] | None:
        """What comes of the call that has begun: it, or text; None while that may be either."""
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
        """What is held up to `end`, as text."""
        text, self._held = self._held[:end], self._held[end:]
        if self._after:
            text = text.lstrip()
        self._after = self._after and not text
        return [text] if text else []


class Leading:
    """Reads calls that an answer begins with, in an array or by themselves; after them there is text alone.

    White space between and around them, and what separates them, belongs to them.
    """

    def __init__(self, names: Collection[str], opening: Collection[str], between: str, field: str) -> None:
        """`names` are those of the functions: a call of another is none. `field` has the arguments of one.

        `opening` may come before the first, but "[" must where it is among them; `between` are what separates calls.
        """
        self._names, self._opening, self._between, self._field = names, opening, f"{_SPACE}{between}", field
        self._not_between = _other_than(self._between)
        self._held = ""  # since the last call
        self._object = _Object()
        self._called = self._saying = False

    def push(self, text: str) -> list[str | Call]:
        """Take more text."""
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
        """Tell the rest: no more comes."""
        return [] if self._called and not self._held.strip(self._between) else self._release_all()

    def _begins(self) -> int | None:
        """Where an object may begin; None while that is not known."""
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
        """All that is held, as text."""
        text, self._held = self._held, ""
        if self._called:
            text = text.lstrip(self._between)
        self._called = self._called and not text
        return [text] if text else []


class Once:
    """Reads one call at most: whatever comes after it is left out."""

    def __init__(self, reader: Reader) -> None:
        self._reader, self._done = reader, False

    def push(self, text: str) -> list[str | Call]:
        """Take more text."""
        return [] if self._done else self._first(self._reader.push(text))

    def finish(self) -> list[str | Call]:
        """Tell the rest: no more comes."""
        return [] if self._done else self._first(self._reader.finish())

    def _first(self, parts: list[str | Call]) -> list[str | Call]:
        for at, part in enumerate(parts, start=1):
            if isinstance(part, Call):
                self._done = True
                return parts[:at]
        return parts


class Listed:
    """Reads an answer that is held to a JSON array of `{"name": ..., "parameters": {...}}`.

    Of what was cut behind a call the answer's end tells enough: as text it would be shown, and sent back.
    """

    def __init__(self) -> None:
        self._held = ""  # since the last call
        self._object = _Object()
        self._called = False

    def push(self, text: str) -> list[str | Call]:
        """Take more text."""
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
        """Tell the rest, such as of a first call that was cut; the array's own characters are none."""
        return [self._held] if self._held.strip(_BETWEEN) and not self._called else []


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


def _decoded(text: str, field: str, names: Collection[str] | None = None, none: str = "") -> Call | None:
    """The call that a JSON object is, of one of the names; where it lacks the field it has `none`, or is no call."""
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


def _may_begin(text: str) -> int:
    """From where on the white space before a tag, or its beginning, may be."""
    begun = next((n for n in range(min(len(_BEGIN), len(text)), 0, -1) if text.endswith(_BEGIN[:n])), 0)
    return len(text[: len(text) - begun].rstrip())
