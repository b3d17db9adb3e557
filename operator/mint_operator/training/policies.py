"""Completes the policies of a training wave: omitted settings come from the template, or from the policy's index."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from mint_contracts.errors import InvalidRequest, RankTooLarge, UnknownTargetModules
from mint_contracts.names import check_adapter
from mint_contracts.resources import AdapterLimits
from mint_contracts.targets import beyond
from mint_contracts.training import SEQUENCE_LOSSES, Policy, PolicyTemplate, Train

MOST_NAMED = 5


def expand(namespace: str, wave: str, train: Train, manifest: Sequence[Policy]) -> tuple[Policy, ...]:
    """Return every policy of the wave of this name; `manifest` are those of its manifest, if it has one.

    Raises InvalidRequest for no policies, or a name that is given twice or is invalid.
    """
    given, template = train.policies.list or tuple(manifest), train.policies.template
    if not given and not train.policies.manifest:
        prefix = template.name_prefix or wave
        given = tuple(Policy(name=f"{namespace}/{prefix}-{index}") for index in range(train.policies.count))
    if not given:
        raise InvalidRequest("spec.train.policies", "has no policies; set count, list, or a manifest that has some")
    twice = sorted(name for name, count in Counter(policy.name for policy in given).items() if count > 1)
    if twice:
        named = ", ".join(twice[:MOST_NAMED])
        raise InvalidRequest("spec.train.policies", f"names {named} more than once; name each policy once")
    return tuple(_complete(policy, template, index) for index, policy in enumerate(given))


def check(policies: Sequence[Policy], limits: AdapterLimits) -> None:
    """Check that a base with these limits can hold every policy. Raises RankTooLarge or UnknownTargetModules."""
    for policy in policies:
        if policy.rank > limits.max_rank:
            raise RankTooLarge(
                f"policy {policy.name}",
                f"has rank {policy.rank}, but the base's slots take at most {limits.max_rank}; lower its rank, or "
                "raise spec.adapters.maxRank of the BaseModel",
            )
        unknown = beyond(policy.target_modules, limits.target_modules) if limits.target_modules else []
        if unknown:
            raise UnknownTargetModules(
                f"policy {policy.name}",
                f"targets {', '.join(unknown)}, which the base does not offer; choose from "
                f"{', '.join(sorted(limits.target_modules))}",
            )


def check_losses(policies: Sequence[Policy], train: Train) -> None:
    """Check that the wave's algorithm can use each policy's own loss. Raises InvalidRequest.

    The API server has checked this for a list, but nobody has for a manifest.
    """
    for policy in policies:
        loss, subject = policy.loss, f"policy {policy.name}"
        if loss is None:
            continue
        if train.algorithm == "SFT":
            raise InvalidRequest(subject, "has a loss, but SFT uses its own; remove it, or choose algorithm GRPO")
        if loss.type == "cross_entropy":
            message = "has loss cross_entropy, which GRPO does not support; choose another type, or algorithm: SFT"
            raise InvalidRequest(subject, message)
        if 0 < loss.ratio_high < loss.ratio_low:
            message = f"has loss.ratioLow {loss.ratio_low:g} above ratioHigh {loss.ratio_high:g}; lower it, or set "
            raise InvalidRequest(subject, message + "ratioHigh to 0 for no upper bound")
        if loss.by_sequence and loss.type not in SEQUENCE_LOSSES:
            message = f"has loss.importanceSamplingLevel sequence with type {loss.type}, which only has level token; "
            raise InvalidRequest(subject, message + f"choose type {', '.join(SEQUENCE_LOSSES)}, or level token")


def _complete(policy: Policy, template: PolicyTemplate, index: int) -> Policy:
    check_adapter(policy.name)
    return msgspec.structs.replace(
        policy,
        rank=policy.rank or template.rank,
        alpha=policy.alpha or template.alpha,
        target_modules=policy.target_modules or template.target_modules,
        seed=template.seed + index if policy.seed is None else policy.seed,
        start_from=policy.start_from or template.start_from,
    )
