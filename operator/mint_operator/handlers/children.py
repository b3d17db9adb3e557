"""Events of the objects that engines need besides their pods: somebody has changed or deleted one."""

import asyncio
from collections.abc import Collection
from typing import Any

import kopf
import msgspec

from mint_operator.kube import Kube
from mint_operator.observing import decode
from mint_operator.observing.dirt import Dirt, Part
from mint_operator.planning.manifests import MANAGED_BY, MANAGER

KINDS = {
    "Service": ("v1", "services"),
    "ServiceAccount": ("v1", "serviceaccounts"),
    "PodDisruptionBudget": ("policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": ("networking.k8s.io/v1", "networkpolicies"),
}


async def watchable(kube: Kube, namespaces: Collection[str]) -> Collection[str]:
    """Return the kinds that the operator may watch in all of these namespaces ("": everywhere).

    Kopf would try one that it may not again and again, and log an error every few seconds: the chart's roles may be
    older, or grant no network policies.
    """
    asked = [(kind, each) for kind in KINDS for each in namespaces]
    answers = await asyncio.gather(*[kube.may_watch(kind, each) for kind, each in asked])
    return KINDS.keys() - {kind for (kind, _), may in zip(asked, answers, strict=True) if not may}


def register(
    registry: kopf.OperatorRegistry, settings: kopf.OperatorSettings, dirt: Dirt, kinds: Collection[str]
) -> None:
    """Register handlers for our objects of these kinds. An event that only shows a new status marks nothing."""
    seen: dict[str, int] = {}

    async def child_changed(body: kopf.Body, event: kopf.RawEvent, **_: Any) -> None:
        uid, now = body.metadata.uid or "", decode.fingerprint(msgspec.json.encode(dict(body)))
        gone, before = event["type"] == "DELETED", seen.pop(uid, None)
        if not gone:
            seen[uid] = now
        if gone or before not in {None, now}:  # who made a new one has it read anyway
            dirt.mark(Part.CHILDREN)

    for kind in kinds:
        resource = KINDS[kind]
        settings.watching.label_selectors[resource] = f"{MANAGED_BY}={MANAGER}"
        kopf.on.event(*resource, labels={MANAGED_BY: MANAGER}, registry=registry, id=kind)(child_changed)
