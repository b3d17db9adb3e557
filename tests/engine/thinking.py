"""A base that thinks before it answers, with markers as Qwen3's: added tokens that are not special."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import AutoTokenizer

from tests.engine.running import save_base, save_tokenizer

# Qwen3's, shortened: the model begins the thought itself, unless `begins` does or `enable_thinking` is false.
TEMPLATE = (
    "{% if tools %}<|start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}Call one by:\n"
    '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|end|>\n{% endif %}'
    "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
    '{% for call in m.tool_calls %}\n<tool_call>\n{"name": "{{ call.function.name }}", "arguments": '
    "{{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|end|>\n{% endfor %}<|start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% elif begins %}<think>\n{% endif %}"
)


def save_thinking(folder: Path, *, special: bool = False, **changes: Any) -> Path:
    """Save a random base with that template; as `special` tokens, its markers would not be shown."""
    base = save_base(folder, vocab_size=save_tokenizer(folder) + 2, **changes)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([AddedToken(marker, special=special) for marker in ("<think>", "</think>")])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(base)
    return base
