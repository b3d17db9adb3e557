"""What a policy learns from: sequences with a weight for each next token and, if the loss needs them, an advantage
and the sampler's log-probability."""

import math
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mint_contracts.errors import InvalidRequest
from mint_contracts.training import Loss

_DEFAULT = Loss()
_CHECKED = 1 << 16  # tokens between two pauses: some milliseconds


@dataclass(frozen=True)
class Example:
    """One sequence. Every array has one entry per token of `tokens`; arrays that a loss does not read may be empty.

    `targets` are the next tokens; a weight of 0 leaves a position out. With `routes`, each of the M layers with
    experts uses these k experts for a token, as the sampler did, whatever its router chooses now; at -1 the router
    chooses. Consecutive examples of one policy that are equal up to their first weighted position (completions of one
    prompt), with routes for the same of these tokens, share that part's compute; it uses the first example's routes.
    """

    tokens: Sequence[int]
    targets: Sequence[int]
    weights: Sequence[float]
    sampler_logprobs: Sequence[float] = ()
    advantages: Sequence[float] = ()
    routes: NDArray[np.integer[Any]] | None = None  # [tokens, M, k]: experts each token was routed to when sampled
    # The policy's own log-probabilities before its first step with this example, for a ratio band and for importance
    # sampling level "sequence". Empty: those that it has now, since no step was taken yet.
    old_logprobs: Sequence[float] | NDArray[np.float32] = ()


@dataclass(frozen=True)
class PolicyBatch:
    """What one policy is to learn from in one forward and backward pass."""

    policy: str
    examples: Sequence[Example]
    loss: Loss = _DEFAULT
    completion_tokens: int = 0  # most new tokens of a completion, by which dr_grpo divides
    temperature: float = 1.0  # of sampling; logits are divided by it before log-probabilities


def completion(
    prompt: Sequence[int],
    tokens: Sequence[int],
    logprobs: Sequence[float],
    advantage: float,
    routes: NDArray[np.integer[Any]] | None = None,
    weight: float = 1.0,
) -> Example:
    """Return a sampled completion of a prompt as an example in which each of its tokens has the same weight.

    `logprobs` are the sampler's own; `routes` are given if they are to be replayed. Raises InvalidRequest if the
    prompt or the completion is empty, or `logprobs` has another length.
    """
    if not prompt or not tokens or len(logprobs) != len(tokens):
        raise InvalidRequest("completion", "needs a prompt, at least one token, and a log-probability for each")
    silent, count = len(prompt) - 1, len(tokens)
    return Example(
        tokens=[*prompt, *tokens[:-1]],
        targets=[*prompt[1:], *tokens],
        weights=[0.0] * silent + [weight] * count,
        sampler_logprobs=[0.0] * silent + list(logprobs),
        advantages=[0.0] * silent + [advantage] * count,
        routes=routes,
    )


def with_old(batch: PolicyBatch, logprobs: Sequence[NDArray[np.float32]]) -> PolicyBatch:
    """Return a batch with the log-probabilities of its first epoch as old ones, where an example has none yet."""
    examples = [
        each if len(each.old_logprobs) else replace(each, old_logprobs=found)
        for each, found in zip(batch.examples, logprobs, strict=True)
    ]
    return replace(batch, examples=examples)


def check_examples(batch: PolicyBatch, vocabulary: int, context: int) -> Iterator[None]:
    """Raise InvalidRequest, naming the policy and the example, if no loss could be computed from one.

    `context` is the most tokens that an example may have; 0: any number. Yields between bounded parts of the work.
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
        most = f"{context} (the base's engine.contextLength)" if context else "the call may have"
        return f"has {count} tokens; give at least 1, and no more than {most}"
    arrays: dict[str, Sized] = {"targets": example.targets, "weights": example.weights}
    if needs_sampler(loss):
        arrays |= {"sampler_logprobs": example.sampler_logprobs, "advantages": example.advantages}
    if len(example.old_logprobs):
        arrays["old_logprobs"] = example.old_logprobs
    for name, array in arrays.items():
        if len(array) != count:
            return f"has {len(array)} {name} for {count} tokens; give one each"
    if problem := _no_token(example, vocabulary):
        return problem
    if example.routes is not None and len(example.routes) != count:
        return f"has routes of {len(example.routes)} tokens for {count}; give each token's"
    if not all(map(math.isfinite, example.weights)):
        return "has a weight that is not finite"
    return ""


def _no_token(example: Example, vocabulary: int) -> str:
    for name, array in (("tokens", example.tokens), ("targets", example.targets)):
        if min(array) < 0 or max(array) >= vocabulary:
            at = next(at for at, token in enumerate(array) if not 0 <= token < vocabulary)
            problem = f"has {array[at]} in {name}[{at}]; the base's tokens are 0 to {vocabulary - 1}"
            return problem + "; to leave a position out, give it any of them and weight 0" * (name == "targets")
    return ""
