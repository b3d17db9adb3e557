"""Parsing function calls that are written between marks, in any of the forms, as an answer's text arrives: pure."""

import re
from collections.abc import Collection, Generator, Mapping

from mint_gateway.http.arguments import Types, argument, quoted
from mint_gateway.http.call_forms import CallForm
from mint_gateway.http.calls import NO_SPACE, Call, Object, decoded, is_object
from mint_gateway.http.tags import end_before, may_begin

Functions = Mapping[str, Mapping[str, Types]]  # by name, with the types of each one's parameters

_NO_NAME = re.compile(r"[^\w.:-]")
_NAME = re.compile(r"(?:functions\.)?([\w-]+)(?::\d+)?")  # Kimi-K2 names a function with its module, and its calls
_SAYS = '" string="'  # between an argument's name and whether it is a text, as DeepSeek-V3.2 says
_KEY_LINE = re.compile(r"(?<=\n)(<parameter=)([^>\n]+)>")  # in the form that has lines
_LONGEST_NAME = 128  # with all that
_PIECE = 4096  # characters read at a time: what is held is copied for each mark in it

# Takes more text whenever it is resumed, until it returns.
_Taking = Generator[None, None, str]


class _Malformed(Exception):
    """The text is not a call."""


class Marked:
    """Reads calls between a form's marks, with text before and between them. White space around a call is dropped.

    A call ends where its arguments do, even if these contain marks: as JSON, or because something else follows than
    another argument or the call's end. At the answer's end the last mark may be missing after JSON.
    """

    def __init__(self, form: CallForm, functions: Functions) -> None:
        """`functions` are those that may be called: a call of another stays text."""
        self._form, self._functions = form, functions
        self._begins = [mark for mark in (form.opening, form.begin) if mark]
        self._held = ""  # white space and the beginning of a mark, or of a call with the space before it
        self._at = 0  # how much of this is read
        self._last = False
        self._reading: Generator[None, None, Call | None] | None = None  # a call that has begun
        self._malformed = False  # whether text is passed on up to the end of what is not a call
        self._after = False  # whether only white space has come since a call

    def push(self, text: str) -> list[str | Call]:
        """Parse more text."""
        found: list[str | Call] = []
        for at in range(0, len(text), _PIECE):
            self._held += text[at : at + _PIECE]
            found += self._read()
        return found

    def finish(self) -> list[str | Call]:
        """Return the rest; no more text follows."""
        self._last = True
        return self._read()

    def _read(self) -> list[str | Call]:
        found: list[str | Call] = []
        while True:
            if self._reading is None:
                marks = [self._form.end] if self._malformed else self._begins
                at, mark = min((self._find(each), each) for each in marks)
                if at == len(self._held):
                    ends = (may_begin(each, self._held) for each in marks)
                    return found + self._release(at if self._last else min(ends))
                if self._malformed:
                    self._malformed = False
                    found += self._release(at + len(mark))
                    continue
                found += self._release(end_before(self._held, at))
                self._at = self._held.index(mark) + len(mark)
                self._reading = self._call(mark)
            try:
                next(self._reading)
                return found
            except StopIteration as ended:
                found += self._ended(ended.value)
            except _Malformed:
                self._malformed = True
            self._reading = None

    def _find(self, mark: str) -> int:
        """Return where a mark is, or the end of what is held."""
        at = self._held.find(mark, self._at)
        return len(self._held) if at < 0 else at

    def _ended(self, call: Call | None) -> list[str | Call]:
        """Return what has been read: a call, or the text of what is none."""
        if call is None:
            return self._release(self._at)
        self._held, self._at, self._after = self._held[self._at :], 0, True
        return [call]

    def _release(self, end: int) -> list[str | Call]:
        """Return what is held up to `end` as text."""
        text, self._held, self._at = self._held[:end], self._held[end:], 0
        if self._after:
            text = text.lstrip()
        self._after = self._after and not text
        return [text] if text else []

    def _call(self, mark: str) -> Generator[None, None, Call | None]:
        """Read a call after its first mark. Return None if it is text."""
        form = self._form
        if mark == form.opening and not (yield from self._mark([form.begin])):
            return None
        name = "" if form.is_named_inside else (yield from self._name())
        if form.named and not (yield from self._mark([form.named])):
            raise _Malformed
        arguments = yield from (self._arguments(name) if form.key else self._json())
        call = decoded(arguments, "arguments", self._functions, "{}") if form.is_named_inside else None
        if name in self._functions and is_object(arguments):
            call = Call(name, arguments)
        if call is not None and form.closing:
            yield from self._mark([form.closing])
        return call

    def _name(self) -> _Taking:
        end = yield from self._space()
        while (end := self._next(_NO_NAME, end)) == len(self._held):
            if self._last or end - self._at > _LONGEST_NAME:
                raise _Malformed
            yield
        name = _NAME.fullmatch(self._held, self._at, end)
        if name is None:
            raise _Malformed
        self._at = end
        return name[1]

    def _json(self) -> _Taking:
        """Read a JSON object and the call's end."""
        begin, value = (yield from self._space()), Object()
        while True:
            value.read(self._held, begin)
            if value.length:
                break
            if value.broken or self._last:
                raise _Malformed
            yield
        self._at = begin + value.length
        arguments = self._held[begin : self._at]
        if not (yield from self._mark([self._form.end])):
            if not self._last or self._held[self._at :].strip():
                raise _Malformed
            self._at = len(self._held)
        return arguments

    def _arguments(self, name: str) -> _Taking:
        """Read arguments that are written one by one, and the call's end. Return them as a JSON object."""
        form, types, values = self._form, self._functions.get(name, {}), dict[str, str]()
        marks, left = [form.key, form.end], set(types)
        mark = yield from self._mark(marks)
        while mark == form.key:
            key, _, says = (yield from self._until(form.keyed)).strip().partition(_SAYS)
            if form.value and not (yield from self._mark([form.value])):
                raise _Malformed
            left.discard(key)
            value, mark = yield from self._value(marks, left)
            value = value.removeprefix("\n").removesuffix("\n") if form.has_lines else value
            values[key] = quoted(value) if says == "true" else argument(value, () if says else types.get(key, ()))
        if mark != form.end:
            raise _Malformed
        return "{" + ", ".join(f"{quoted(key)}: {value}" for key, value in values.items()) + "}"

    def _value(self, marks: Collection[str], left: Collection[str]) -> Generator[None, None, tuple[str, str]]:
        """Read a value, which may contain what ends it, and which of the marks comes then.

        Where values have lines of their own, models may leave out a value's end before an argument that is `left`.
        """
        begin = at = self._at
        while True:
            text = yield from self._until(self._form.ended)
            lines = _KEY_LINE.finditer(text) if self._form.has_lines and at == begin else ()
            if line := next((each for each in lines if each[2] in left), None):
                self._at = begin + line.end(1)
                return self._held[begin : begin + line.start(1)], self._form.key
            if at > begin and self._form.end in text:  # a malformed call, and another one
                self._at = at
                raise _Malformed
            at = self._at
            if mark := (yield from self._mark(marks)):
                return self._held[begin : at - len(self._form.ended)], mark

    def _until(self, mark: str) -> _Taking:
        """Read a text and the mark after it."""
        begin = sought = self._at
        while (end := self._held.find(mark, sought)) < 0:
            if self._last:
                raise _Malformed
            sought = max(begin, len(self._held) - len(mark) + 1)
            yield
        self._at = end + len(mark)
        return self._held[begin:end]

    def _mark(self, marks: Collection[str]) -> _Taking:
        """Read one of the marks with the white space before it, and return it, or "" if another text follows."""
        at = self._at
        while True:
            at = self._next(NO_SPACE, at)
            for mark in marks:
                if self._held.startswith(mark, at):
                    self._at = at + len(mark)
                    return mark
            if self._last or not any(mark.startswith(self._held[at : at + len(mark)]) for mark in marks):
                return ""
            yield

    def _space(self) -> Generator[None, None, int]:
        """Read white space, and return where something else begins."""
        while (end := self._next(NO_SPACE, self._at)) == len(self._held) and not self._last:
            self._at = end
            yield
        self._at = end
        return end

    def _next(self, other: re.Pattern[str], at: int) -> int:
        """Return where the next such character is, or the end of what is held."""
        found = other.search(self._held, at)
        return found.start() if found else len(self._held)
