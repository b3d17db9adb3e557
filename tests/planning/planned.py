"""Plans of complete bases, with the settings that most tests use."""

from typing import Any

from mint_gateway.planning.config import read_shape
from mint_gateway.planning.devices import DEVICES
from mint_gateway.planning.fit import Mix, Plan, Storage, make_plan

STORAGE = Storage(disk=1.4e9, network=1.25e9)


def planned(config: dict[str, Any], ranks: int = 8) -> Plan:
    mix = Mix(adapters=4, rank=1, targets="attention", requests=4, context=1024)
    return make_plan(read_shape(config), DEVICES["h200"], ranks, mix, "bfloat16", STORAGE)
