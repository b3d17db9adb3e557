"""How examples are rendered into tokens for the base."""

import copy
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from transformers import PreTrainedTokenizerBase

from mint_contracts.errors import BadExample
from mint_contracts.training import Dataset
from mint_engine.examples.dataset import read_dataset
from mint_engine.examples.ending import Ends, ends_of
from mint_engine.examples.example import Example, Message
from mint_engine.examples.lengths import RENDERED, check_lengths
from mint_engine.examples.render import Renderer
from mint_engine.model.base import load_base
from tests.engine.running import save_base

CONTEXT = 192
EOS = 0  # the tokenizer's own
TURNS = (
    "{% for m in messages %}<|start|>{{ m.role }}{{ '\n' + m.content }}<|eot|>{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{{ '\n' }}{% endif %}"
)
SPACED = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>"
    "{% endif %}{% endfor %}"
)  # as Mistral's and Mixtral's
TEMPLATES = Path(trl.__file__).parent / "chat_templates"


@pytest.mark.parametrize(
    ("prompt", "room", "says"),
    [
        ("z" * 8, 185, "prompt: has 8 tokens; of the context's 192, sampling.maxTokens sets aside 185 for new "
                       "tokens, which leaves 7. Lower sampling.maxTokens, shorten the prompt, or raise "
                       "spec.engine.contextLength"),
        ("z" * 8, 131072, "prompt: has 8 tokens; of the context's 192, sampling.maxTokens sets aside 131072 for new "
                          "tokens, which leaves 0"),
        ("z" * 200, 64, "This model's maximum context length is 192 tokens, .* it has 200 tokens. Shorten it by 9, "
                        ".*; sampling.maxTokens sets aside 64 of these for new tokens"),
        ("z" * 50_000, 64, "This model's maximum context length is 192 tokens, .* it has 50000 characters, far more "
                           "than that; sampling.maxTokens sets aside 64 of these for new tokens"),
    ],
)  # fmt: skip
def test_a_prompt_that_does_not_fit_is_told_by_the_contexts_and_the_answers_length(
    tokenizer: PreTrainedTokenizerBase, prompt: str, room: int, says: str
) -> None:
    with pytest.raises(BadExample, match=f"can't be asked: {says}"):
        Renderer(tokenizer, 300, CONTEXT, Ends()).prompt(Example(prompt, None, ""), room)


def test_a_prompt_may_take_all_that_its_answer_leaves_of_the_context(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(Renderer(tokenizer, 300, CONTEXT, Ends()).prompt(Example("z" * 8, None, ""), CONTEXT - 8)) == 8


def taught(
    tokenizer: PreTrainedTokenizerBase, template: str, *control: str
) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """Return a tokenizer with this chat template and its control tokens, and their token ids."""
    told = copy.deepcopy(tokenizer)
    told.add_tokens(list(control), special_tokens=True)
    told.chat_template = template
    return told, [int(told.vocab[each]) for each in control]


@pytest.mark.parametrize(
    ("template", "behind"),
    [
        ("qwen3", ["<|im_end|>"]),
        ("gemma3", ["<end_of_turn>"]),
        ("phi3", ["<|end|>"]),
        ("llama3_1", ["<|eot_id|>"]),
        ("cohere2", ["<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>"]),
    ],
)
def test_the_answer_in_a_chat_ends_with_what_the_template_puts_behind_it(
    tokenizer: PreTrainedTokenizerBase, template: str, behind: list[str]
) -> None:
    told, control = taught(tokenizer, (TEMPLATES / f"{template}.jinja").read_text(), *behind)
    assert ends_of(told, EOS, {EOS, control[-1]}) == Ends((EOS,), tuple(control))


@pytest.mark.parametrize(
    "template",
    [
        "",
        (TEMPLATES / "glm4moe.jinja").read_text(),  # puts nothing after an answer
        (TEMPLATES / "gemma3.jinja").read_text(),  # its end token is not one of this base
        "{{ messages[0].content }}",
        "{{ raise_exception('of system prompts alone') }}",
    ],
    ids=["no template", "nothing behind", "not an end", "no answers", "no such chat"],
)
def test_without_an_end_in_the_template_an_answer_ends_as_a_text_does(
    tokenizer: PreTrainedTokenizerBase, template: str
) -> None:
    told, _ = taught(tokenizer, template, "<end_of_turn>")
    assert ends_of(told, EOS, {EOS}) == Ends((EOS,), (EOS,))
    assert ends_of(told, None, {299}) == Ends()


def test_prompt_and_answer_are_the_beginning_of_the_chat_that_the_template_writes(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    told, (end,) = taught(tokenizer, TURNS, "<|eot|>")
    render = Renderer(told, 400, CONTEXT, ends_of(told, EOS, {EOS, end}))
    turn = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "the dog"}]
    for chat in (turn, [{"role": "system", "content": "be brief"}, *turn, *turn]):
        (example,) = read_dataset(Dataset(lines=[json.dumps({"messages": chat})]))
        whole: Any = told.apply_chat_template(chat, return_dict=False)
        learnt = [*render.prompt(example, 8), *render.answer(example, 8)]
        assert learnt[-1] == end
        assert learnt == whole[: len(learnt)]
        assert told.decode([*render.answer(example, 8)]) == "the dog<|eot|>"
    assert render.answer(Example("the fox", "the dog", ""), 8)[-1] == EOS


@pytest.mark.parametrize(
    ("template", "variables", "before"),
    [
        ("llama3_1", {}, ""),
        ("gptoss", {}, "<|channel|>final<|message|>"),
        ("qwen3", {}, "<think>\n\n</think>\n\n"),
        ("qwen3", {"enable_thinking": False}, ""),
        ("qwen3_5_think", {}, "\n</think>\n\n"),
        ("qwen3_5_think", {"enable_thinking": False}, ""),
        ("nemotron_3_nano", {}, "</think>"),  # behind a line end that only its prompt has
        (SPACED, {}, ""),
        ("{{ messages | length }}{{ messages[-1].content }}", {}, ""),
    ],
)
def test_the_answer_in_a_chat_begins_with_what_the_template_puts_before_it(
    tokenizer: PreTrainedTokenizerBase, template: str, variables: dict[str, bool], before: str
) -> None:
    text = (TEMPLATES / f"{template}.jinja").read_text() if template.isidentifier() else template
    told, _ = taught(tokenizer, text, "<think>", "</think>", "<|channel|>", "<|message|>")
    render = Renderer(told, 400, CONTEXT, Ends())

    def learnt(answer: str, *, chat: bool = True) -> Any:
        prompt = (Message("user", "the fox"),) if chat else "the fox"
        return told.decode([*render.answer(Example(prompt, answer, "", variables), 64)])

    assert learnt("the dog") == f"{before}the dog"
    for own in ("so\n</think>\n\nthe dog", "<|channel|>analysis<|message|>so"):
        if any(marker in own for marker in ("</think>", "<|channel|>") if marker in before):
            assert learnt(own) == own, "an answer with a thought of its own has the markers already"
    assert learnt("the dog", chat=False) == "the dog"


@pytest.mark.parametrize(
    ("template", "refuses"),
    [("deepseek_r1_distill", True), ("deepseekv3", True), ("qwen3_5_think", False), ("qwen3", False)],
)
def test_a_plain_answer_is_refused_where_the_template_begins_a_thought_that_it_does_not_end(
    tokenizer: PreTrainedTokenizerBase, template: str, *, refuses: bool
) -> None:
    told, _ = taught(tokenizer, (TEMPLATES / f"{template}.jinja").read_text(), "<think>", "</think>")
    render = Renderer(told, 400, CONTEXT, Ends())
    asked = (Message("user", "the fox"),)
    thought, plain = (Example(asked, each, "") for each in ("so" * 9 + "\n</think>\n\nthe dog", "the dog"))
    assert "so\n</think>" in str(told.decode([*render.answer(thought, 64)]))
    says = "without a thought, .* begin answers with a thought and </think>, or turn thinking off"
    with pytest.raises(BadExample, match=says) if refuses else nullcontext():
        check_lengths(render, [*[thought] * RENDERED, plain], 64, answers=True)
    render.answer(Example("the fox", "the dog", ""), 8)


def test_a_chat_of_many_short_messages_is_among_the_longest(tokenizer: PreTrainedTokenizerBase) -> None:
    told, _ = taught(tokenizer, TURNS)
    render = Renderer(told, 400, CONTEXT, Ends())
    long, many = (Example(tuple(Message("user", "z" * n) for n in each), None, "") for each in ([80], [1] * 12))
    assert check_lengths(render, [long] * RENDERED, 64) == 103
    with pytest.raises(BadExample, match="can't be asked: prompt: has"):
        check_lengths(render, [*[long] * RENDERED, many], 64)


def test_a_plain_answer_is_learnt_where_the_prompt_itself_turns_thinking_off(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    thinking = "{% if add_generation_prompt %}<think>{% if '/no_think' in messages[0].content %}</think>{% endif %}"
    told, _ = taught(tokenizer, TURNS + thinking + "{% endif %}", "<think>", "</think>")
    render = Renderer(told, 400, CONTEXT, Ends())
    with pytest.raises(BadExample, match="without a thought"):
        render.answer(Example((Message("user", "the fox"),), "the dog", ""), 64)
    assert render.answer(Example((Message("user", "the fox /no_think"),), "the dog", ""), 64)


def test_a_chat_that_ends_with_the_user_has_nothing_to_learn(tokenizer: PreTrainedTokenizerBase) -> None:
    render = Renderer(tokenizer, 300, CONTEXT, Ends())
    (example,) = read_dataset(Dataset(lines=['{"messages": [{"role": "user", "content": "the fox"}]}']))
    with pytest.raises(BadExample, match=r"example 'the fox': has no answer to learn; set dataset\.answerField"):
        check_lengths(render, [example], 8, answers=True)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("the fox", "of 2 tokens with the one that ends it"),
        ((Message("user", "the fox"),), "of 2 tokens with what the chat template puts around it"),
    ],
)
def test_an_answer_that_does_not_fit_is_told_with_what_it_is_counted_with(
    tokenizer: PreTrainedTokenizerBase, prompt: str | tuple[Message, ...], says: str
) -> None:
    told, (end,) = taught(tokenizer, TURNS, "<|eot|>")
    render = Renderer(told, 400, CONTEXT, ends_of(told, EOS, {EOS, end}))
    with pytest.raises(BadExample, match=f"{says}; sampling.maxTokens, which bounds answers, too, is 1"):
        render.answer(Example(prompt, "z", ""), 1)


def test_a_base_whose_tokenizer_has_no_end_of_sequence_ends_texts_with_its_configs_first(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    for name, changes in (
        ("tokenizer_config.json", {"eos_token": None}), ("generation_config.json", {"eos_token_id": [7, 3]})
    ):  # fmt: skip
        told = json.loads((base / name).read_text()) | changes
        (base / name).unlink()
        (base / name).write_text(json.dumps(told))
    loaded = load_base(base, torch.float32, torch.device("cpu"))
    assert loaded.tokenizer.eos_token_id is None
    assert (loaded.end, loaded.eos) == (7, frozenset({7, 3}))
    assert ends_of(loaded.tokenizer, loaded.end, loaded.eos) == Ends((7,), (7,))
