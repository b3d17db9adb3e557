"""What a policy learns from: sequences with a weight, and where the loss needs them an advantage and the sampler's
log-probability, for each next token."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mint_contracts.errors import InvalidRequest
from mint_contracts.training import Loss

_DEFAULT = Loss()
_CHECKED = 1 << 16  # tokens between two pauses: some milliseconds


@dataclass(frozen=True)
class Example:
    """One sequence. Every array belongs to the positions of `tokens`; arrays that a loss does not read may be empty.

    `targets` are the tokens that come next; a weight of 0 leaves a position out. With `routes`, each of the M layers
    with experts takes these k for a token, as the sampler did, whatever its router says now; where they are -1 that
    chooses. Examples of one policy that follow each other and begin alike up to their first weight (completions of
    one prompt), with routes of the same tokens of it, share that beginning's compute: there the first's routes count.
    """

    tokens: Sequence[int]
    targets: Sequence[int]
    weights: Sequence[float]
    sampler_logprobs: Sequence[float] = ()
    advantages: Sequence[float] = ()
    routes: NDArray[np.integer[Any]] | None = None  # [tokens, M, k]: which experts each token went to when sampled


@dataclass(frozen=True)
class PolicyBatch:
    """What one policy is to learn from in one forward and backward."""

    policy: str
    examples: Sequence[Example]
    loss: Loss = _DEFAULT
    completion_tokens: int = 0  # most new tokens of a completion: what dr_grpo divides by
    temperature: float = 1.0  # at which completions were drawn: log-probabilities are those of logits over it


def completion(
    prompt: Sequence[int],
    tokens: Sequence[int],
    logprobs: Sequence[float],
    advantage: float,
    routes: NDArray[np.integer[Any]] | None = None,
) -> Example:
    """A sampled completion of a prompt as an example: each of its tokens weighs 1.

    `logprobs` are the sampler's own, and `routes` where they are to be replayed.
    Raises InvalidRequest without a prompt or without a token.
    """
    if not prompt or not tokens or len(logprobs) != len(tokens):
        raise InvalidRequest("completion", "needs a prompt, at least one token, and a log-probability for each")
    silent, count = len(prompt) - 1, len(tokens)
    return Example(
        tokens=[*prompt, *tokens[:-1]],
        targets=[*prompt[1:], *tokens],
        weights=[0.0] * silent + [1.0] * count,
        sampler_logprobs=[0.0] * silent + list(logprobs),
        advantages=[0.0] * silent + [advantage] * count,
        routes=routes,
    )


def check_examples(batch: PolicyBatch, vocabulary: int, context: int) -> Iterator[None]:
    """Raise InvalidRequest, naming the policy and the example, for what no loss could be computed of.

    `context` is how many tokens an example may have; 0: any number. Pauses between bounded parts of it.
    """
    if batch.loss.type == "dr_grpo" and batch.completion_tokens < 1:
        raise InvalidRequest(f"policy {batch.policy}", "dr_grpo needs completion_tokens, the most of a completion")
    tokens = 0
    for number, example in enumerate(batch.examples):
        problem = _problem(example, batch.loss, vocabulary, context)
        if problem:
            raise InvalidRequest(f"policy {batch.policy}, example {number}", problem)
        tokens += len(example.tokens)
        if tokens >= _CHECKED:
            tokens = 0
            yield


def needs_sampler(loss: Loss) -> bool:
    """Whether a loss reads advantages and the sampler's log-probabilities."""
    return loss.type != "cross_entropy"


def _problem(example: Example, loss: Loss, vocabulary: int, context: int) -> str:
    count = len(example.tokens)
    if not count or (context and count > context):
        return f"has {count} tokens; give at least 1, and no more than {context or 'the call may have'}"
    arrays = {"targets": example.targets, "weights": example.weights}
    if needs_sampler(loss):
        arrays |= {"sampler_logprobs": example.sampler_logprobs, "advantages": example.advantages}
    for name, array in arrays.items():
        if len(array) != count:
            return f"has {len(array)} {name} for {count} tokens; give one each"
    if any(min(each) < 0 or max(each) >= vocabulary for each in (example.tokens, example.targets)):
        return f"has a token that is not below {vocabulary}, the base's vocabulary"
    if example.routes is not None and len(example.routes) != count:
        return f"has routes of {len(example.routes)} tokens for {count}; give each token's"
    if not all(map(math.isfinite, example.weights)):
        return "has a weight that is not finite"
    return ""
