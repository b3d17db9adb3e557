"""Events of the StatefulSets and pods that engines are.

LeaderWorkerSets are not watched, for a cluster may lack them: the resync finds what others have done to one.
"""

from typing import Any

import kopf

from mint_operator.handlers.seen import saw
from mint_operator.observing.dirt import Dirt, Part
from mint_operator.observing.feed import Feed
from mint_operator.planning.manifests import MANAGED_BY, MANAGER


def register(registry: kopf.OperatorRegistry, settings: kopf.OperatorSettings, dirt: Dirt, feed: Feed) -> None:
    """Mark engines dirty on any event of ours; the API server filters by label, so others' pods cost nothing."""
    for resource in (("v1", "pods"), ("apps/v1", "statefulsets")):
        settings.watching.label_selectors[resource] = f"{MANAGED_BY}={MANAGER}"

    @kopf.on.event("v1", "pods", labels={MANAGED_BY: MANAGER}, registry=registry)
    async def engine_pod_changed(body: kopf.Body, event: kopf.RawEvent, **_: Any) -> None:
        saw(feed, dirt, "Pod", body, event)

    @kopf.on.event("apps/v1", "statefulsets", labels={MANAGED_BY: MANAGER}, registry=registry)
    async def engine_set_changed(**_: Any) -> None:
        dirt.mark(Part.WORKLOADS)
