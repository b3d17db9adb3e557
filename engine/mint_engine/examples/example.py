"""One example of a data set, read from its JSON object."""

from collections.abc import Mapping
from typing import Any

import msgspec

from mint_contracts.errors import BadExample
from mint_contracts.training import Dataset

ROLES = ("system", "user", "assistant")


class Message(msgspec.Struct, frozen=True):
    """One turn of a chat."""

    role: str
    content: str


class Example(msgspec.Struct, frozen=True):
    """A prompt, as text or as a chat, the answer if there is one, and the complete example as JSON."""

    prompt: str | tuple[Message, ...]
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


def _read_object(fields: Mapping[str, Any], dataset: Dataset, subject: str) -> Example:
    if dataset.prompt_field not in fields:
        raise BadExample(subject, f"has no field {dataset.prompt_field!r}; it has {sorted(map(str, fields))[:10]}")
    prompt = _prompt(fields[dataset.prompt_field], subject)
    if isinstance(prompt, str) and (dataset.chat or dataset.system or dataset.template_variables):
        prompt = (Message("user", prompt),)
    if dataset.system and isinstance(prompt, tuple):
        prompt = (Message("system", dataset.system), *prompt)
    answer = fields.get(dataset.answer_field)
    if isinstance(answer, dict | list):
        raise BadExample(subject, f"has an answer that is neither text nor number: {str(answer)[:100]}")
    if answer is not None and not isinstance(answer, str):
        answer = msgspec.json.encode(answer).decode()
    try:
        whole = msgspec.json.encode(fields).decode()
    except (TypeError, msgspec.MsgspecError) as error:
        raise BadExample(subject, f"cannot be encoded as JSON: {error}") from None
    return Example(prompt, answer, whole, dataset.template_variables)


def _prompt(value: Any, subject: str) -> str | tuple[Message, ...]:
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
