"""A base that calls functions: a chat template in Hermes' format, and answers that it was trained to give."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engine.call_templates import GLM
from tests.engine.running import save_base, save_tokenizer

# Qwen2.5's, shortened.
TEMPLATE = (
    "{% if tools %}<|start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}Call one by:\n"
    '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|end|>\n{% endif %}'
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}"
    '{% for call in m.tool_calls %}\n<tool_call>\n{"name": "{{ call.function.name }}", "arguments": '
    "{{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|end|>\n{% endfor %}<|start|>assistant\n"
)


def save_tooled(folder: Path, **changes: Any) -> Path:
    """Save a random base with that template."""
    base = save_base(folder, **changes)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(base)
    return base


def save_marked(folder: Path, **changes: Any) -> Path:
    """Save a random base with GLM's template, whose marks of calls are special tokens."""
    marks = [f"<{slash}{name}>" for name in ("tool_call", "arg_key", "arg_value") for slash in ("", "/")]
    base = save_base(folder, vocab_size=save_tokenizer(folder) + len(marks), **changes)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(marks, special_tokens=True)
    tokenizer.chat_template = GLM
    tokenizer.save_pretrained(base)
    return base


def teach(base: Path, lessons: Sequence[tuple[list[int], str]]) -> None:
    """Train a base until its likeliest answer to each prompt is the given text and the end."""
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    rows = [(prompt, [*tokenizer.encode(answer), model.config.eos_token_id]) for prompt, answer in lessons]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(400):
        learnt = True
        for prompt, answer in rows:
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            learnt &= bool((logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]) > -0.02).all())
            torch.autograd.backward(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)))
        if learnt:
            model.save_pretrained(base)
            return
        optimizer.step()
        optimizer.zero_grad()
    raise AssertionError("the base has not learnt its answers")
