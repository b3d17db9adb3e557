"""Chat templates that take a message's content as a list of parts only, as of many processors: they get text as one.

Given a string, those of LLaVA-NeXT, Idefics3 and SmolVLM write nothing of it.
"""

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
    chat = [{"role": "user", "content": _PROBE}]
    try:
        return _PROBE in str(tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False))
    except (TemplateError, ValueError, TypeError):
        return False
