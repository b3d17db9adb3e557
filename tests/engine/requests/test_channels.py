"""Answers in channels are seen from tokenizer, template and prompt; a shape is that of the last message alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mint_contracts.sampling_pb2 import Chat, GenerateRequest, Message, Started, ToolCall
from mint_engine.model.base import load_base
from mint_engine.requests.channels import find_channels, read_channels
from mint_engine.requests.grammar import Grammars, Shape
from mint_engine.requests.masks import mask
from mint_engine.requests.prompts import read_form, read_prompt
from mint_engine.requests.thoughts import find_markers
from tests.engine.channelled import save_channelled
from tests.engine.thinking import save_thinking

USER = Message(role="user", content="Deep?")
PUBLISHED = (Path(trl.__file__).parent / "chat_templates" / "gptoss.jinja").read_text()
TOOLS = json.dumps(
    [
        {"type": "function", "function": {"name": name, "description": "Looks.", "parameters": {"type": "object"}}}
        for name in ("sea", "sky")
    ]
)


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(save_channelled(tmp_path))
    return loaded


def begins(tokenizer: PreTrainedTokenizerBase, said: str = "Deep?", **chat: Any) -> "Started.Thought.ValueType":
    asked = Chat(messages=[Message(role="user", content=said)], **{"channels": True} | chat)
    prompt = read_prompt(GenerateRequest(chat=asked), tokenizer, len(tokenizer), 4000)
    return read_channels(asked, prompt, find_channels(tokenizer), tokenizer)


def written(tokenizer: PreTrainedTokenizerBase, *messages: Message) -> str:
    """Return the text of the prompt from the first of these messages on, in gpt-oss' own template."""
    tokenizer.chat_template = PUBLISHED
    request = GenerateRequest(chat=Chat(messages=[USER, *messages]))
    text = str(tokenizer.decode(list(read_prompt(request, tokenizer, len(tokenizer), 4000))))
    return text.partition("Deep?<|end|>")[2].removesuffix("<|start|>assistant")


def called(*names: str) -> list[ToolCall]:
    return [ToolCall(id=f"call {name}", name=name, arguments='{"a": 1}') for name in names]


def gave(name: str) -> Message:
    return Message(role="tool", content=f"of the {name}", tool_call_id=f"call {name}")


def test_gpt_oss_template_is_recognised(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    for template in (str(tokenizer.chat_template), PUBLISHED):
        tokenizer.chat_template = template
        assert begins(tokenizer) == Started.CHANNELS
        assert begins(tokenizer, tools=TOOLS) == Started.CHANNELS
        assert begins(tokenizer, channels=False) == Started.NO_THOUGHT, "nobody asks"
        assert read_form(Chat(calls=Chat.HERMES, or_calls=[Chat.HARMONY]), tokenizer) == Chat.HARMONY
    assert begins(tokenizer, template_variables='{"reasoning_effort": "low"}') == Started.CHANNELS
    tokenizer.add_tokens(["assistant", "user"])  # in gpt-oss' tokenizer these are single tokens, too
    assert begins(tokenizer, "?") == Started.CHANNELS
    assert find_markers(tokenizer) is None
    thinking = AutoTokenizer.from_pretrained(save_thinking(tmp_path / "thinking"))
    assert find_channels(thinking) is None
    assert begins(thinking) == Started.NO_THOUGHT


def test_an_answer_that_the_prompt_has_begun_otherwise_is_text(tokenizer: PreTrainedTokenizerBase) -> None:
    template = str(tokenizer.chat_template)
    for end in ("<|channel|>final<|message|>", "<|end|>", "assistant"):
        tokenizer.chat_template = template + end
        assert begins(tokenizer) == Started.NO_THOUGHT
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if 0 %}" + template + "{% endif %}"
    )
    assert begins(tokenizer, "<|start|>assistant") == Started.NO_THOUGHT, "a user's marker is text"
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}<|start|>assistant"
    assert begins(tokenizer) == Started.NO_THOUGHT, "a template without channels"


def test_a_turn_goes_back_as_the_template_takes_it(tokenizer: PreTrainedTokenizerBase) -> None:
    thought = "<|start|>assistant<|channel|>analysis<|message|>"
    sea, sky = (
        f'<|start|>assistant to=functions.{name}<|channel|>commentary json<|message|>{{"a": 1}}<|call|>'
        f'<|start|>functions.{name} to=assistant<|channel|>commentary<|message|>"of the {name}"<|end|>'
        for name in ("sea", "sky")
    )
    turn = Message(role="assistant", reasoning="I look.", tool_calls=called("sea"))
    assert written(tokenizer, turn, gave("sea")) == f"{thought}I look.<|end|>{sea}"
    turn.content = "A moment."
    assert written(tokenizer, turn, gave("sea")) == f"{thought}I look.\nA moment.<|end|>{sea}"
    turn = Message(role="assistant", content="A moment.", tool_calls=called("sea", "sky"))
    for results in (("sea", "sky"), ("sky", "sea")):
        rendered = written(tokenizer, turn, *map(gave, results))
        assert rendered == f"{thought}A moment.<|end|>{sea}{sky}", "each result after its call"
    said = Message(role="assistant", content="It is.", reasoning="Is it?")
    assert written(tokenizer, said) == "<|start|>assistant<|channel|>final<|message|>It is.<|end|>"


def test_a_shape_is_that_of_the_final_message(tokenizer: PreTrainedTokenizerBase) -> None:
    """Before it come any number of thoughts, in which every text is allowed but no other marker."""
    channels = find_channels(tokenizer)
    assert channels
    grammar = Grammars(tokenizer, set(channels.ends)).compile(Shape("json_schema", '{"const": "ab"}'), channels)

    def allowed() -> set[int]:
        logits = torch.zeros(1, len(tokenizer))
        assert not mask([grammar], logits)
        return set(torch.nonzero(logits[0] == 0).flatten().tolist())

    thought = '<|channel|>analysis<|message|>Shall I say {"a" <'
    for token in tokenizer.encode(thought + "<|end|><|start|>assistant" + thought):
        assert token in allowed()
        assert not grammar.take(token)
    assert allowed() & {*channels, *tokenizer.all_special_ids} == {channels.end}
    assert allowed() >= set(tokenizer.encode('{"~ \n'))
    for token in tokenizer.encode("<|end|><|start|>assistant<|channel|>final<|message|>"):
        assert token in allowed()
        assert not grammar.take(token)
    assert allowed() == {tokenizer.encode('"')[0]}
    *most, last = tokenizer.encode('"ab"')
    assert not any(map(grammar.take, most))
    assert grammar.take(last), "nothing may follow"


def test_an_answer_ends_after_a_call_even_if_its_configuration_does_not_say_so(tmp_path: Path) -> None:
    base = load_base(save_channelled(tmp_path), torch.float32, torch.device("cpu"))
    channels = find_channels(base.tokenizer)
    assert channels
    assert base.end == channels.final
    assert base.eos == {channels.final, channels.call}
