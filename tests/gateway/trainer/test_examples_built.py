"""Examples that a program builds from token ids: what has weight where, and what is refused before it is sent."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mint_contracts.errors import InvalidRequest
from mint_contracts.training_pb2 import ForwardBackwardResponse, Logprobs
from mint_gateway.client import question
from mint_gateway.policy import example


def test_only_the_completion_is_learnt_and_each_number_belongs_to_the_token_that_is_predicted() -> None:
    built = example([5, 6, 7], [8, 9], advantage=0.5, sampler_logprobs=[-1.0, -2.0])
    assert (list(built.tokens), list(built.targets)) == ([5, 6, 7, 8], [6, 7, 8, 9])
    assert list(built.weights) == [0, 0, 1, 1]
    assert list(built.advantages) == [0, 0, 0.5, 0.5]
    assert list(built.sampler_logprobs) == [0, 0, -1, -2]


def test_tokens_of_a_completion_may_have_their_own_weights_and_advantages() -> None:
    built = example([5], [6, 7, 8], weights=[1, 0, 0.5], advantage=[0.5, 1, -1], sampler_logprobs=[-1, -2, -3])
    assert list(built.weights) == [1, 0, 0.5]
    assert list(built.advantages) == [0.5, 1, -1]


def test_old_logprobs_are_taken_as_forward_backward_returns_them_or_of_the_completion_alone() -> None:
    returned = ForwardBackwardResponse(logprobs=[Logprobs(values=[0.0, 0.0, -1.0, -2.0])])
    for old in (returned.logprobs[0].values, [-1.0, -2.0]):
        assert list(example([5, 6, 7], [8, 9], old_logprobs=old).old_logprobs) == [0, 0, -1, -2]


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_arrays_and_tensors_are_taken_as_lists_are(kind: Callable[[Any], Any]) -> None:
    numbers = {"weights": kind([1.0, 0.5]), "sampler_logprobs": kind([-1.0, -2.0])}
    for advantage in (kind(0.5), kind([0.5, 0.5])):
        built = example(kind([5, 6]), kind([7, 8]), advantage=advantage, **numbers)
        assert built == example([5, 6], [7, 8], weights=[1, 0.5], advantage=0.5, sampler_logprobs=[-1, -2])
    assert question(kind([5, 6])) == question([5, 6])


def test_a_question_of_token_ids_is_sent_as_they_are() -> None:
    asked = question([5, 6, 7], adapter="acme/haiku", temperature=1.0)
    assert list(asked.tokens.ids) == [5, 6, 7]


NO_IDS = {
    "str": "the prompt as text",
    "dict": {"input_ids": [5, 6]},  # as apply_chat_template returns it
    "list of float": [5.0, 6.0],
    "list of list": [[5, 6]],
    "list of str": [5, "6"],
    "NoneType": None,
}


@pytest.mark.parametrize("kind", NO_IDS)
def test_what_is_no_list_of_token_ids_is_refused_with_what_to_give(kind: str) -> None:
    prompt: Any = NO_IDS[kind]
    words = f"needs a list of token ids as prompt, not {kind}; a tokenizer returns them as input_ids"
    with pytest.raises(InvalidRequest, match=f"^example: {words}"):
        example(prompt, [7])
    if not isinstance(prompt, str):
        with pytest.raises(InvalidRequest, match=f"^question: {words}"):
            question(prompt)


@pytest.mark.parametrize("token", [-100, 2**31])
def test_a_number_that_is_no_token_id_is_refused_with_its_place(token: int) -> None:
    with pytest.raises(
        InvalidRequest, match=rf"^example: has {token} in completion\[1\], which is no token id; give"
    ):
        example([5], [7, token])


def test_numbers_that_do_not_fit_the_completion_are_refused_by_name() -> None:
    aligned: dict[str, Any] = {"advantage": [1.0, 1.0], "sampler_logprobs": [-1.0, -2.0], "weights": [1.0, 1.0]}
    for name, words in (
        ("advantage", "3 advantages"),
        ("sampler_logprobs", "3 sampler_logprobs"),
        ("weights", "3 weights"),
        ("old_logprobs", "3 old_logprobs"),
    ):
        with pytest.raises(InvalidRequest, match=f"has {words} for 2 tokens of the completion; give one each"):
            example([5], [6, 7], **aligned | {name: [1.0] * 3})
    with pytest.raises(InvalidRequest, match=r"has an advantage but no sampler_logprobs; ask for .* with logprobs=0"):
        example([5], [6, 7], advantage=1.0)
