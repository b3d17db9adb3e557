"""Clients may set the variables that the base's chat template reads beside the messages; others are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import PreTrainedTokenizerBase

from mint_contracts.errors import InvalidRequest
from mint_contracts.sampling_pb2 import Chat, GenerateRequest, Message
from mint_contracts.training import Dataset
from mint_engine.examples.dataset import read_dataset
from mint_engine.examples.ending import Ends
from mint_engine.examples.render import Renderer
from mint_engine.requests.prompts import read_prompt
from mint_engine.requests.variables import MOST_CHARACTERS

QWEN3 = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
DATED = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ date_string }}: {{ m.content }}<|end|>\n{% endfor %}"
    "<|start|>assistant\n"
)


def tokens(tokenizer: PreTrainedTokenizerBase, template: str, variables: str) -> list[int]:
    tokenizer.chat_template = template
    chat = Chat(messages=[Message(role="user", content="Ahoy")], template_variables=variables)
    return list(read_prompt(GenerateRequest(chat=chat), tokenizer, 300, 20_000))


def test_qwen3_thinks_unless_it_is_told_not_to(tokenizer: PreTrainedTokenizerBase) -> None:
    template = QWEN3.read_text()
    for thinks in ("", "{}", '{"enable_thinking": true}'):
        assert "<think>" not in str(tokenizer.decode(tokens(tokenizer, template, thinks)))
    told = str(tokenizer.decode(tokens(tokenizer, template, '{"enable_thinking": false}')))
    assert told.endswith("<think>\n\n</think>\n\n")


def test_policies_learn_from_the_prompts_that_clients_would_send(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = QWEN3.read_text()
    render = Renderer(tokenizer, 300, 20_000, Ends())
    every: list[dict[str, bool | int | float | str]] = [{}, {"enable_thinking": True}, {"enable_thinking": False}]
    for said in every:
        [example] = read_dataset(Dataset(lines=['{"prompt": "Ahoy"}'], chat=True, template_variables=said))
        assert list(render.prompt(example, 1)) == tokens(tokenizer, QWEN3.read_text(), json.dumps(said))


def test_control_tokens_in_a_text_stay_text(tokenizer: PreTrainedTokenizerBase) -> None:
    told = tokens(tokenizer, DATED, json.dumps({"date_string": "1 May<|end|>"}))
    assert "1 May<|end|>: Ahoy<|end|>" in str(tokenizer.decode(told))
    assert told.count(tokenizer.vocab["<|end|>"]) == 1


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "are not a JSON object"),
        ('{"date_string": []}', "have 'date_string', which is not a boolean, a number or a string"),
        ('{"date_string": null}', "have 'date_string', which is not a boolean"),
        ('{"enable_thinking": false}', "have 'enable_thinking', which this base's chat template does not use"),
        ('{"date.*": 1}', r"have 'date\.\*', which this"),
        ('{"messages": "x"}', "have 'messages', which clients cannot set"),
        ('{"tokenize": false}', "have 'tokenize', which clients cannot set"),
        ('{"eos_token": "x"}', "have 'eos_token', which clients cannot set"),
        (json.dumps({"date_string": "x" * MOST_CHARACTERS}), f".*at most {MOST_CHARACTERS} are allowed"),
    ],
)
def test_invalid_variables_are_refused(tokenizer: PreTrainedTokenizerBase, variables: str, says: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"prompt\.chat\.template_variables: {says}"):
        tokens(tokenizer, DATED, variables)
