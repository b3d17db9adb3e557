"""A base that answers in channels, with markers as gpt-oss': special tokens."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tests.engine.running import save_base, save_tokenizer

# gpt-oss', shortened. The tokenizer has "<|start|>" and "<|end|>" already.
TEMPLATE = (
    "{% if tools %}<|start|>developer<|message|>{{ tools | tojson }}<|end|>{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}{% set call = m.tool_calls[0].function %}"
    "{% if m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}"
    "{{ call.arguments | tojson }}<|call|>"
    "{% elif m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}<|start|>assistant"
)
_NAMES = ("channel", "message", "constrain", "call", "return")


def save_channelled(folder: Path, **changes: Any) -> Path:
    """Save a random base with that template, of whose two ends of an answer its configuration knows one."""
    size = save_tokenizer(folder) + len(_NAMES)
    base = save_base(folder, vocab_size=size, eos_token_id=size - 1, **changes)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"<|{name}|>" for name in _NAMES], special_tokens=True)
    tokenizer.eos_token = "<|return|>"
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(base)
    return base
