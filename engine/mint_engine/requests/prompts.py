"""Reads a client's prompt (text, token ids or a chat) into token ids that fit the context."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from mint_contracts.errors import InvalidRequest
from mint_contracts.sampling_pb2 import Chat, GenerateRequest, Message
from mint_engine.requests.fitting import fit_messages, fit_tools
from mint_engine.requests.length import check_characters, check_tokens, is_doubtful, too_long
from mint_engine.requests.tools import check_template, form_of, names, read_call, read_tools
from mint_engine.requests.variables import read_variables


def read_prompt(
    request: GenerateRequest, tokenizer: PreTrainedTokenizerBase, vocab_size: int, context_length: int
) -> tuple[int, ...]:
    """Return the prompt's token ids: at least one, and fewer than the context holds.

    Text gets the tokenizer's own special tokens (for example a beginning of sequence), a chat those of the base's
    template. Raises InvalidRequest or PromptTooLong.
    """
    kind = request.WhichOneof("prompt")
    if kind == "text":
        check_characters(len(request.text), context_length)
        check_tokens(request.text, tokenizer, context_length)
        tokens = list(tokenizer.encode(request.text))
    elif kind == "chat":
        tokens = _render(request.chat, tokenizer, context_length)
    elif kind == "tokens":
        tokens = list(request.tokens.ids)
    else:
        raise InvalidRequest("prompt", "is missing; set text, tokens or chat")
    if not tokens:
        raise InvalidRequest("prompt", "is empty; give at least one token")
    if len(tokens) >= context_length:
        raise too_long(
            context_length,
            f"has {len(tokens)} tokens. Shorten it by {len(tokens) - context_length + 1}, or raise "
            "spec.engine.contextLength",
        )
    # Checked for every kind of prompt: a tokenizer may have added tokens for which the base has no embedding.
    if outside := [token for token in tokens if not 0 <= token < vocab_size]:
        raise InvalidRequest("prompt", f"has token {outside[0]}; this base has tokens 0 to {vocab_size - 1}")
    return tuple(map(_vocabulary(vocab_size).__getitem__, tokens))


@lru_cache(maxsize=1)
def _vocabulary(size: int) -> tuple[int, ...]:
    """Return all tokens. Prompts share them: with integers of its own, each token would take 40 bytes and not 8."""
    return tuple(range(size))


def read_form(chat: Chat, tokenizer: PreTrainedTokenizerBase) -> "Chat.Calls.ValueType":
    """Return the form of tool calls that an already checked chat asks for and gets."""
    if not chat.calls:
        return Chat.CALLS_UNSPECIFIED
    return form_of(tokenizer.get_chat_template(tools=read_tools(chat.tools) or None))


def _render(chat: Chat, tokenizer: PreTrainedTokenizerBase, context_length: int) -> list[int]:
    if not chat.messages:
        raise InvalidRequest("prompt.chat", "has no messages")
    if not tokenizer.chat_template:
        raise InvalidRequest("prompt.chat", "cannot be used: this base has no chat template. Send text or tokens")
    count = sum(1 + len(message.tool_calls) for message in chat.messages)
    if count > context_length:  # each takes at least a token; a huge number could take minutes
        raise too_long(context_length, f"has {count} messages and calls, each of a token at least")
    written = _written(chat)
    check_characters(written, context_length)
    tools = read_tools(chat.tools)
    messages = [_message(message, f"prompt.chat.messages[{at}]") for at, message in enumerate(chat.messages)]
    try:
        template = tokenizer.get_chat_template(tools=tools or None)
        check_template(template, chat, tools=bool(tools))
        _check_names([*tools, *_arguments(messages)], tokenizer, template)
        messages, tools = fit_messages(messages, template), fit_tools(tools, template)
        variables = read_variables(chat.template_variables, template, tokenizer.special_tokens_map)
        if is_doubtful(written, context_length):
            # Check the rendered text, since a template may omit parts of a chat.
            plain: Any = tokenizer.apply_chat_template(
                messages, tools=tools or None, tokenize=False, add_generation_prompt=True, **variables
            )
            check_tokens(plain, tokenizer, context_length)
        # Control tokens in a message's text stay text, so that no user can forge another speaker's turn.
        rendered: Any = tokenizer.apply_chat_template(
            messages,
            tools=tools or None,
            add_generation_prompt=True,
            return_dict=False,
            sanitize_control_tokens=True,
            **variables,
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise InvalidRequest("prompt.chat", f"was rejected by the base's chat template: {error}") from None
    return [int(token) for token in rendered]


def _written(chat: Chat) -> int:
    """Return the number of characters of a chat."""
    calls = sum(
        len(call.id) + len(call.name) + len(call.arguments)
        for message in chat.messages
        for call in message.tool_calls
    )
    characters = sum(
        len(each.role) + len(each.content) + len(each.reasoning) + len(each.tool_call_id) + len(each.name)
        for each in chat.messages
    )
    return characters + calls + len(chat.tools)


def _message(message: Message, place: str) -> dict[str, Any]:
    """Return a message as templates take it, without the fields that it does not have."""
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        fields["tool_calls"] = [
            read_call(call, f"{place}.tool_calls[{at}]") for at, call in enumerate(message.tool_calls)
        ]
    if message.reasoning:  # by all names: templates use one of them
        fields |= dict.fromkeys(("reasoning_content", "reasoning", "thinking"), message.reasoning)
    fields |= {"tool_call_id": message.tool_call_id} if message.tool_call_id else {}
    return fields | ({"name": message.name} if message.name else {})


def _arguments(messages: Sequence[dict[str, Any]]) -> list[Any]:
    return [call["function"]["arguments"] for message in messages for call in message.get("tool_calls", ())]


def _check_names(values: list[Any], tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Raise InvalidRequest for control tokens in names within JSON, which transformers does not sanitize."""
    every = "\n".join({*names(values)})
    for token in tokenizer.added_tokens_decoder.values() if every else ():
        is_control = token.special or (token.content in template and not token.content.isspace())
        if is_control and token.content in every:
            raise InvalidRequest(
                "prompt.chat", f"has the control token {token.content[:100]!r} in a name within JSON"
            )
