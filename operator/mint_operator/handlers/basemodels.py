"""Events of BaseModels."""

from typing import Any

import kopf

from mint_contracts.resources import GROUP, VERSION
from mint_operator.dirt import Dirt, Part


def register(registry: kopf.OperatorRegistry, dirt: Dirt) -> None:
    """Mark base models dirty on any event."""

    @kopf.on.event(GROUP, VERSION, "basemodels", registry=registry)
    async def base_model_changed(**_: Any) -> None:
        dirt.mark(Part.BASES)
