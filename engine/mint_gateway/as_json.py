"""Messages as JSON for programs: the web page's, and what `mint` prints."""

from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

_LONG = frozenset((FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64))


def as_json(message: Message) -> dict[str, Any]:
    """Return a message as JSON's types, by its own fields' names.

    Unlike in proto3's JSON mapping, 64-bit integers are numbers, as kubectl prints them: texts compare by characters.
    Zeros, false and empty lists are included; a field with presence is left out while it is unknown.
    """
    found = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return _fields(cast(Descriptor, message.DESCRIPTOR), found)


def _fields(of: Descriptor, found: dict[str, Any]) -> dict[str, Any]:
    return {name: _value(of.fields_by_name[name], value) for name, value in found.items()}


def _value(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, list):
        return [_value(field, each) for each in value]
    if field.cpp_type in _LONG:
        return int(value)
    kind = field.message_type
    if kind is None:
        return value
    if kind.GetOptions().map_entry:
        return {key: _value(kind.fields_by_name["value"], each) for key, each in value.items()}
    return _fields(kind, value)
