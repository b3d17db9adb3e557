"""Converts the Trainer service's messages to and from the trainer's own types, and checks their bounds."""

import copy
import hashlib
import math
from collections.abc import Sequence
from typing import cast, get_args

from mint_contracts import training_pb2 as pb
from mint_contracts.byte_counts import in_units
from mint_contracts.errors import InvalidRequest
from mint_contracts.training import SEQUENCE_LOSSES, ImportanceSamplingLevel, Loss, LossType, Optimizer
from mint_contracts.transport import MOST_ROUTE_BYTES
from mint_engine.model.routes import RouteShape
from mint_engine.requests import routed
from mint_engine.training.example import Example, PolicyBatch, needs_sampler
from mint_engine.training.policy import PolicySettings
from mint_engine.training.work import LossOutcome

MOST_EXAMPLES = 1024  # as in Tinker's chunks
MOST_TOKENS = 1 << 18

Ordered = (
    pb.ForwardBackwardRequest | pb.OptimStepRequest | pb.SaveStateRequest | pb.LoadStateRequest | pb.PublishRequest
)


def settings_of(request: pb.CreatePolicyRequest) -> PolicySettings:
    """Return a new policy's settings, with defaults filled in, so that equivalent requests compare equal."""
    targets = tuple(sorted(set(request.target_modules)))
    return PolicySettings(request.rank or 8, request.alpha or 16.0, targets, request.seed)


def batch_of_request(request: pb.ForwardBackwardRequest, routes: RouteShape | None) -> PolicyBatch:
    """Return the batch of a request; `routes` is the shape of the base's routes. Raises InvalidRequest."""
    if not 0 < len(request.examples) <= MOST_EXAMPLES:
        raise InvalidRequest("examples", f"are {len(request.examples)}; give 1 to {MOST_EXAMPLES} per call")
    tokens = sum(len(each.tokens) for each in request.examples)
    if tokens > MOST_TOKENS:
        raise InvalidRequest("examples", f"have {tokens} tokens; give at most {MOST_TOKENS} per call")
    route_bytes = sum(len(part.experts) for each in request.examples for part in each.routes)
    if route_bytes > MOST_ROUTE_BYTES:
        raise InvalidRequest(
            "examples", f"have {in_units(route_bytes)} of routes; give at most {in_units(MOST_ROUTE_BYTES)} per call"
        )
    loss = _loss_of_request(request)
    examples = [
        Example(
            tokens=list(each.tokens),
            targets=list(each.targets),
            weights=list(each.weights) or [1.0] * len(each.tokens),
            sampler_logprobs=list(each.sampler_logprobs),
            advantages=list(each.advantages),
            old_logprobs=list(each.old_logprobs),
            routes=routed.decode(each.routes, len(each.tokens), routes, f"policy {request.policy}, example {number}"),
        )
        for number, each in enumerate(request.examples)
    ]
    for number, each in enumerate(examples):
        if needs_sampler(loss) and (name := _not_finite(each)):
            subject = f"policy {request.policy}, example {number}"
            raise InvalidRequest(subject, f"has {name} that are not finite where its weights are not 0")
    longest = max(sum(weight != 0 for weight in each.weights) for each in examples)
    return PolicyBatch(request.policy, examples, loss, completion_tokens=request.completion_tokens or max(1, longest))


def _not_finite(example: Example) -> str:
    """Return the field that is not finite at a weighted token, or "": one such value would spoil the entire step."""
    for name in ("sampler_logprobs", "advantages", "old_logprobs"):
        pairs = zip(example.weights, getattr(example, name), strict=False)  # their lengths are checked later
        if any(weight and not math.isfinite(value) for weight, value in pairs):
            return name
    return ""


def _loss_of_request(request: pb.ForwardBackwardRequest) -> Loss:
    if request.loss not in get_args(LossType):
        raise InvalidRequest("loss", f"is {request.loss[:40]!r}; it is one of {', '.join(get_args(LossType))}")
    level = request.importance_sampling_level or "token"
    if level not in get_args(ImportanceSamplingLevel):
        levels = " or ".join(get_args(ImportanceSamplingLevel))
        raise InvalidRequest("loss", f"has importance_sampling_level {level[:40]!r}; it is {levels}")
    if level == "sequence" and request.loss not in SEQUENCE_LOSSES:
        message = f"is {request.loss}, which only has importance_sampling_level token; choose that, or "
        raise InvalidRequest("loss", message + f"one of {', '.join(SEQUENCE_LOSSES)}")
    _check_numbers("loss", request, ("clip_low", "clip_high", "kl_coefficient", "ratio_low", "ratio_high"))
    low, high = request.ratio_low, request.ratio_high
    if 0 < high < low:
        raise InvalidRequest("loss", f"has ratio_low {low:g} above ratio_high {high:g}, which leaves no tokens")
    return Loss(
        type=cast(LossType, request.loss),
        clip_low=request.clip_low or None,
        clip_high=request.clip_high or Loss().clip_high,
        importance_sampling_level=cast(ImportanceSamplingLevel, level),
        kl_coefficient=request.kl_coefficient,
        ratio_low=low,
        ratio_high=high,
    )


def _check_numbers(subject: str, request: Ordered, names: Sequence[str]) -> None:
    for name in names:
        value = getattr(request, name)
        if not (math.isfinite(value) and value >= 0):
            raise InvalidRequest(subject, f"has {name} {value:g}; give a finite number that is not negative")


def digest_of_request(request: Ordered) -> bytes:
    """Return a digest of what a call asks; fields that only help to find the policy do not count."""
    asked = copy.deepcopy(request)
    for name in ("life", "lease", "base_model"):
        asked.ClearField(name)
    written = asked.SerializeToString(deterministic=True)
    return hashlib.blake2b(written, key=type(request).__name__.encode(), digest_size=16).digest()


def optimizer_of_request(request: pb.OptimStepRequest) -> Optimizer:
    """Return the optimizer's settings; unset fields get Tinker's defaults. Raises InvalidRequest."""
    _check_numbers("optimizer", request, ("learning_rate", "weight_decay", "max_grad_norm", "epsilon"))
    for name, beta in (("beta1", request.beta1), ("beta2", request.beta2)):
        if not 0 <= beta < 1:
            raise InvalidRequest("optimizer", f"has {name} {beta:g}; give a number from 0 to less than 1")
    return Optimizer(
        learning_rate=request.learning_rate if request.HasField("learning_rate") else 1e-4,
        beta1=request.beta1 if request.HasField("beta1") else 0.9,
        beta2=request.beta2 if request.HasField("beta2") else 0.95,
        epsilon=request.epsilon or 1e-12,
        weight_decay=request.weight_decay,
        max_grad_norm=request.max_grad_norm,
    )


def response_of(outcome: LossOutcome) -> pb.ForwardBackwardResponse:
    """Return the response for an outcome."""
    return pb.ForwardBackwardResponse(
        loss_sum=outcome.loss_sum,
        tokens=outcome.tokens,
        logprobs=[pb.Logprobs(values=each.tolist()) for each in outcome.logprobs],
        metrics=outcome.metrics,
    )
