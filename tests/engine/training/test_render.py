"""Examples as the base reads them."""

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mint_contracts.errors import BadExample
from mint_engine.examples.example import Example
from mint_engine.examples.render import Renderer
from tests.engine.running import save_base

CONTEXT = 192


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(save_base(tmp_path_factory.mktemp("base")))
    return loaded


@pytest.mark.parametrize(
    ("prompt", "room", "says"),
    [
        ("z" * 8, 185, "has 8 tokens; of the context's 192, sampling.maxTokens sets aside 185 for new tokens, which "
                       "leaves 7. Lower sampling.maxTokens, shorten the prompt, or raise spec.engine.contextLength"),
        ("z" * 8, 131072, "the context's 192, sampling.maxTokens sets aside 131072 for new tokens, which leaves 0"),
        ("z" * 200, 64, "has 200 tokens; the context holds 192 .* sampling.maxTokens sets aside 64 of these"),
        ("z" * 50_000, 64, "a context of 192 tokens holds; sampling.maxTokens sets aside 64 of these for new tokens"),
    ],
)  # fmt: skip
def test_a_prompt_that_does_not_fit_is_told_by_the_contexts_and_the_answers_length(
    tokenizer: PreTrainedTokenizerBase, prompt: str, room: int, says: str
) -> None:
    with pytest.raises(BadExample, match=f"can't be asked: prompt: .*{says}"):
        Renderer(tokenizer, 300, CONTEXT, None).prompt(Example(prompt, None, ""), room)


def test_a_prompt_may_take_all_that_its_answer_leaves_of_the_context(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(Renderer(tokenizer, 300, CONTEXT, None).prompt(Example("z" * 8, None, ""), CONTEXT - 8)) == 8
