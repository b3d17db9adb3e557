"""The number of requests that decode together on a base."""

from typing import Any

from mint_engine.scheduling.scheduler import Limits

MOST = 272  # 256 rollouts and a reserve for tenants; with more, steps would pause tenants' streams too long


def limits_of(config: Any, *, matrices: bool) -> Limits:
    """Return the limits of an engine's work for a text model's configuration.

    `matrices`: the device multiplies complete matrices, so that a step's time is that of reading the weights,
    however many rows it has. Otherwise the default of `Limits` keeps a CPU busy. If tokens are routed to k of E
    experts, a step reads nearly all experts for k / E of its rows each, so that E / k times as many requests fill
    the same products as on a dense base, and cost little more.
    """
    if matrices:
        return Limits(running=MOST)
    usual, each = Limits(), getattr(config, "num_experts_per_tok", None)
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if not each or not experts:
        return usual
    return Limits(running=max(usual.running, min(MOST, usual.running * int(experts) // int(each))))
