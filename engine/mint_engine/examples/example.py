"""One example of a data set, read from its JSON object."""

from collections.abc import Mapping
from typing import Any

import msgspec

from mint_contracts.errors import BadExample
from mint_contracts.training import Dataset

ROLES = ("system", "user", "assistant")

_TRL_NAMES = {"prompt": "messages", "answer": "completion"}  # of the usual fields, in TRL's data sets
_UNLEARNT = ("tool_calls", "reasoning_content", "reasoning", "thinking")  # of an answer's message


class Message(msgspec.Struct, frozen=True):
    """One turn of a chat."""

    role: str
    content: str


_Prompt = str | tuple[Message, ...]


class Example(msgspec.Struct, frozen=True):
    """A prompt, as text or as a chat, the answer if there is one, and the complete example as JSON."""

    prompt: _Prompt
    answer: str | None
    json: str
    variables: Mapping[str, Any] = {}  # the data set's variables for the chat template

    @property
    def text(self) -> str:
        """The prompt as a reward gets it: for a chat, its last turn."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1].content


def read_line(line: str | bytes, dataset: Dataset, subject: str) -> Example:
    """Read an example from a JSON line. Raises BadExample."""
    try:
        found = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadExample(subject, f"is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadExample(subject, f"is not a JSON object but {type(found).__name__}")
    return _read_object(found, dataset, subject)


def field_of(row: Mapping[str, Any], name: str) -> str:
    """Return a field's name in a row: TRL's if that is there, and the usual one is not.

    In a table, rows of different forms have all fields, and null for those that they lack.
    """
    other = _TRL_NAMES.get(name, name)
    return other if row.get(name) is None and row.get(other) is not None else name


def _read_object(fields: Mapping[str, Any], dataset: Dataset, subject: str) -> Example:
    name = field_of(fields, dataset.prompt_field)
    if name not in fields:
        raise BadExample(subject, f"has no field {name!r}; it has {sorted(map(str, fields))[:10]}")
    prompt, answer = _exchange(fields[name], fields.get(field_of(fields, dataset.answer_field)), subject)
    if isinstance(prompt, str) and (dataset.chat or dataset.system or dataset.template_variables):
        prompt = (Message("user", prompt),)
    if dataset.system and isinstance(prompt, tuple):
        prompt = (Message("system", dataset.system), *prompt)
    if answer is not None and not isinstance(answer, str):
        answer = msgspec.json.encode(answer).decode()
    try:
        whole = msgspec.json.encode(fields).decode()
    except (TypeError, msgspec.MsgspecError) as error:
        raise BadExample(subject, f"cannot be encoded as JSON: {error}") from None
    return Example(prompt, answer, whole, dataset.template_variables)


def _exchange(asked: Any, answer: Any, subject: str) -> tuple[_Prompt, Any]:
    """Return prompt and answer, which a chat may have at its end, as a message of the assistant."""
    prompt = _prompt(asked, subject)
    if isinstance(answer, list) and answer and all(isinstance(each, dict) for each in answer):
        turns = [_message(each, subject) for each in answer]
        if {turns[0].role, turns[-1].role} != {"assistant"}:
            raise BadExample(subject, "has an answer that does not begin and end with a message of the assistant")
        prompt = (*((Message("user", prompt),) if isinstance(prompt, str) else prompt), *turns)
        asked, answer = answer, None
    elif isinstance(answer, dict | list):
        reason = f"has an answer that is neither text, number nor chat messages: {str(answer)[:100]}"
        raise BadExample(subject, reason)
    if isinstance(prompt, str) or answer is not None or prompt[-1].role != "assistant":
        return prompt, answer
    if len(prompt) == 1:
        raise BadExample(subject, "has a chat with nothing before the assistant's message; begin with the user's")
    if lost := [name for name in _UNLEARNT if asked[-1].get(name)]:
        reason = f"has {lost[0]!r} in the message that is its answer, of which only the content is learnt"
        raise BadExample(subject, f"{reason}; write it into the content as the model does, or leave it out")
    return prompt[:-1], prompt[-1].content


def _prompt(value: Any, subject: str) -> _Prompt:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value:
        return tuple(_message(each, subject) for each in value)
    raise BadExample(subject, "has a prompt that is neither text nor a list of chat messages, or is empty")


def _message(value: Any, subject: str) -> Message:
    try:
        message = msgspec.convert(value, Message)
    except msgspec.ValidationError as error:
        raise BadExample(subject, f"has an invalid chat message: {error}") from None
    if message.role not in ROLES:
        raise BadExample(subject, f"has a message of role {message.role[:40]!r}; roles are {', '.join(ROLES)}")
    return message
