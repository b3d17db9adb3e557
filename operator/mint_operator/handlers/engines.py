"""Events of the StatefulSets and pods that engines are made of.

LeaderWorkerSets are not watched because a cluster may lack them; the resync finds changes that others made to them.
"""

from typing import Any

import kopf

from mint_operator.handlers.pass_on import pass_on
from mint_operator.observing.dirt import Dirt, Part
from mint_operator.observing.feed import Feed
from mint_operator.planning.manifests import MANAGED_BY, MANAGER


def register(registry: kopf.OperatorRegistry, settings: kopf.OperatorSettings, dirt: Dirt, feed: Feed) -> None:
    """Register handlers for our pods and StatefulSets; the API server filters by label, so others cost nothing."""
    for resource in (("v1", "pods"), ("apps/v1", "statefulsets")):
        settings.watching.label_selectors[resource] = f"{MANAGED_BY}={MANAGER}"

    @kopf.on.event("v1", "pods", labels={MANAGED_BY: MANAGER}, registry=registry)
    async def engine_pod_changed(body: kopf.Body, event: kopf.RawEvent, **_: Any) -> None:
        pass_on(feed, dirt, "Pod", body, event)

    @kopf.on.event("apps/v1", "statefulsets", labels={MANAGED_BY: MANAGER}, registry=registry)
    async def engine_set_changed(**_: Any) -> None:
        dirt.mark(Part.WORKLOADS)
