"""How many requests decode together on a base."""

from typing import Any

from mint_engine.scheduling.scheduler import Limits

MOST = 272  # 256 rollouts and tenants' reserve; beyond that a step lasts longer than tenants' streams should pause


def limits_of(config: Any, *, matrices: bool) -> Limits:
    """The bounds of an engine's work for a text model's configuration.

    `matrices`: the device multiplies whole matrices at once, so that a step waits for its weights however many rows
    it has. Elsewhere `Limits` has as many as keep a processor busy; and where a token goes to k of E experts, a step
    reads nearly all of them for k / E of its rows each: E / k times as many requests fill the products that a dense
    base fills, and cost little more.
    """
    if matrices:
        return Limits(running=MOST)
    usual, each = Limits(), getattr(config, "num_experts_per_tok", None)
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if not each or not experts:
        return usual
    return Limits(running=max(usual.running, min(MOST, usual.running * int(experts) // int(each))))
