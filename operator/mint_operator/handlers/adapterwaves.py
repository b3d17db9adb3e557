"""Events of AdapterWaves."""

from typing import Any

import kopf

from mint_contracts.resources import GROUP, VERSION
from mint_operator.dirt import Dirt, Part


def register(registry: kopf.OperatorRegistry, dirt: Dirt) -> None:
    """Mark waves dirty on any event."""

    @kopf.on.event(GROUP, VERSION, "adapterwaves", registry=registry)
    async def adapter_wave_changed(**_: Any) -> None:
        dirt.mark(Part.WAVES)
