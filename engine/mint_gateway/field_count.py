"""What a message takes once it is parsed: an empty element arrives in two bytes, and then takes up to 170.

Reads protobuf's wire format (https://protobuf.dev/programming-guides/encoding) only as far as it has to.
"""

from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from mint_contracts.errors import InvalidRequest
from mint_contracts.shared_threads import SharedThreads
from mint_gateway.security.keys import sharer

MOST_FIELDS = 65_536  # of a message, with those of its elements
BRIEF_FIELDS = 2048  # counted in two milliseconds, so at once
MOST_BYTES = 64 << 10  # of a message, except where there may be many elements or long texts:
_LONG = frozenset(f"mint.v1.{call}Request" for call in ("Generate", "ForwardBackward", "Register", "Retire"))
ELEMENT_BYTES = 170  # the most memory of one, as measured: an element of a catalog with a label counts as two

# Of the current request, as counted before this was set.
elements: ContextVar[int] = ContextVar("elements", default=0)

_threads = SharedThreads(1, "count")

_VARINT, _FIXED64, _DELIMITED, _START_GROUP, _END_GROUP, _FIXED32 = range(6)
_FIXED = {_FIXED64: 8, _START_GROUP: 0, _END_GROUP: 0, _FIXED32: 4}
_VARINT_BYTES = 10
_TEXTS = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


async def parsed(parse: Callable[[bytes], Any], data: bytes) -> Any:
    """Return what a message class's `FromString` makes of the data, with its elements noted for `memory`.

    Others take turns meanwhile. Raises InvalidRequest, before it is parsed, beyond MOST_FIELDS, or its MOST_BYTES.
    """
    kind: Descriptor = parse.__self__.DESCRIPTOR  # type: ignore[attr-defined]
    if len(data) > MOST_BYTES and kind.full_name not in _LONG:
        problem = f"has {len(data):,} bytes, and a {kind.name} may have {MOST_BYTES:,}"
        raise InvalidRequest("request", f"{problem}; shorten its texts")
    try:
        found = count(data, kind, BRIEF_FIELDS)
    except InvalidRequest:
        found = await _threads.run(sharer.get(), lambda: count(data, kind))
    elements.set(found)
    return parse(data)


def count(data: bytes, kind: Descriptor, most: int = MOST_FIELDS) -> int:
    """Return the elements of a message of this kind. Raises InvalidRequest if it has more than `most` fields."""
    counting = _Count(data, most)
    counting.add(0, len(data), kind, "")
    return counting.elements


def elements_of(message: Message) -> int:
    """Return the elements of a message that did not arrive as one. Raises InvalidRequest for too many fields."""
    return count(message.SerializeToString(), cast("Descriptor", message.DESCRIPTOR))


def memory(request: Message) -> int:
    """Return about how many bytes the current request takes, except that each of many integers may take ten."""
    return request.ByteSize() + ELEMENT_BYTES * elements.get()


class _Count:
    """A count of a message's fields, and of the elements among them: messages, and texts of lists.

    It follows whatever a parser may accept; from anything else on, the parser refuses the message.
    """

    def __init__(self, data: bytes, most: int) -> None:
        self._data, self._most = data, most
        self.fields = self.elements = 0

    def add(self, at: int, end: int, kind: Descriptor, path: str) -> None:
        """Count the fields between two offsets, where a message of this kind is. Raises InvalidRequest."""
        elements = _elements(kind)
        while at < end:
            tag, at = self._varint(at)
            wire, number = tag & 7, tag >> 3
            self.fields += 1
            if self.fields > self._most:
                raise self._too_many(kind, number, path)
            if wire == _VARINT:
                _, at = self._varint(at)
            elif wire == _DELIMITED:
                size, at = self._varint(at)
                if number in elements:
                    self.elements += 1
                    if (inner := elements[number]) is not None:
                        name = kind.fields_by_number[number].name
                        self.add(at, min(at + size, end), inner, f"{path}{name}.")
                at += size
            elif wire in _FIXED:
                at += _FIXED[wire]
            else:
                return

    def _varint(self, at: int) -> tuple[int, int]:
        """Return the number at an offset and where it ends, or the data's end if it does not end as it should."""
        value = 0
        for shift, byte in enumerate(self._data[at : at + _VARINT_BYTES]):
            value |= (byte & 0x7F) << 7 * shift
            if byte < 0x80:
                return value, at + shift + 1
        return value, len(self._data)

    def _too_many(self, kind: Descriptor, number: int, path: str) -> InvalidRequest:
        field = kind.fields_by_number.get(number)
        subject = f"{path}{field.name}" if field is not None else path.rstrip(".") or "request"
        problem = f"are too many: with them, the message has more than {self._most:,} fields"
        return InvalidRequest(subject, f"{problem}; send fewer in one message")


@cache
def _elements(kind: Descriptor) -> dict[int, Descriptor | None]:
    """Return by number the fields that are elements, with the kind of those that may have elements themselves."""
    found = dict[int, Descriptor | None]()
    for field in kind.fields:
        if field.message_type is not None:
            found[field.number] = field.message_type if _elements(field.message_type) else None
        elif field.is_repeated and field.type in _TEXTS:
            found[field.number] = None
    return found
