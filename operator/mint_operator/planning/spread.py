"""How an engine's pods are spread over the cluster: as the BaseModel says, and over nodes in any case. Pure."""

from typing import Any

from mint_contracts.resources import EngineSpec

Body = dict[str, Any]

HOSTNAME = "kubernetes.io/hostname"


def spread(engine: EngineSpec, labels: dict[str, str]) -> list[Body]:
    """Return the topology spread constraints of pods that have these labels.

    A constraint without a selector is about these pods, where in Kubernetes it would be about none. If the BaseModel
    does not say how pods are spread over nodes, they are if possible.
    """
    own = {"labelSelector": {"matchLabels": labels}}
    wishes = [own | wish for wish in engine.topology_spread_constraints]
    if any(wish["topologyKey"] == HOSTNAME for wish in wishes):
        return wishes
    over_nodes = {"maxSkew": 1, "topologyKey": HOSTNAME, "whenUnsatisfiable": "ScheduleAnyway"}
    return [over_nodes | own, *wishes]
