"""Events of BaseModels."""

from typing import Any

import kopf

from mint_contracts.resources import GROUP, VERSION
from mint_operator.handlers.pass_on import pass_on
from mint_operator.observing.dirt import Dirt
from mint_operator.observing.feed import Feed


def register(registry: kopf.OperatorRegistry, dirt: Dirt, feed: Feed) -> None:
    """Register a handler that passes on every event."""

    @kopf.on.event(GROUP, VERSION, "basemodels", registry=registry)
    async def base_model_changed(body: kopf.Body, event: kopf.RawEvent, **_: Any) -> None:
        pass_on(feed, dirt, "BaseModel", body, event)
