"""Events of BaseModels and AdapterWaves."""

from typing import Any

import kopf

from mint_contracts.resources import GROUP, VERSION
from mint_operator.handlers.pass_on import pass_on
from mint_operator.observing.dirt import Dirt
from mint_operator.observing.feed import Feed


def register(registry: kopf.OperatorRegistry, dirt: Dirt, feed: Feed) -> None:
    """Register handlers that pass on every event."""

    async def changed(body: kopf.Body, event: kopf.RawEvent, param: Any = None, **_: Any) -> None:
        pass_on(feed, dirt, param, body, event)

    for kind, plural in (("BaseModel", "basemodels"), ("AdapterWave", "adapterwaves")):
        kopf.on.event(GROUP, VERSION, plural, registry=registry, id=kind, param=kind)(changed)
