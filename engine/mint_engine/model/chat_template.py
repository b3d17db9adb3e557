"""What a chat template writes.

Those of many processors take a message's content as a list of parts only, and get text as one: given a string,
LLaVA-NeXT's, Idefics3's and SmolVLM's write nothing of it.
"""

from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

_PROBE = "Well?"
_AS_PARTS = (
    "{%- set parted = namespace(messages=[]) %}{%- for message in messages %}"
    "{%- set part = {'type': 'text', 'text': message.content} %}"
    "{%- set parted.messages = parted.messages + [dict(message, content=[part])] %}"
    "{%- endfor %}{%- set messages = parted.messages %}"
)


def take_text(tokenizer: PreTrainedTokenizerBase) -> None:
    """Have the chat template give text as a part if it writes it only then."""
    template = tokenizer.chat_template
    if isinstance(template, str) and not _writes(tokenizer, template) and _writes(tokenizer, _AS_PARTS + template):
        tokenizer.chat_template = _AS_PARTS + template


def _writes(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    return _PROBE in written(tokenizer, [{"role": "user", "content": _PROBE}], chat_template=template)


def written(tokenizer: PreTrainedTokenizerBase, chat: list[dict[str, str]], **options: Any) -> str:
    """Return a chat as the template writes it; "" if there is none, or it refuses the chat."""
    if not tokenizer.chat_template:
        return ""
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, **options))
    except (TemplateError, ValueError, TypeError):
        return ""
