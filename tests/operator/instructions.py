"""What a plan instructs, to compare plans by."""

from typing import Any

import msgspec

from mint_contracts.resources import AdapterWaveStatus
from mint_operator.planning.plan import Plan


def instructions(of: Plan) -> dict[str, Any]:
    """Return all instructions of a plan, without the times at which waves' conditions changed.

    Those are set when a condition is first planned and then kept in the wave's status, which is not written here.
    """
    found = {field: getattr(of, field) for field in of.__struct_fields__ if field != "known"}
    return found | {"wave_statuses": {key: _timeless(each) for key, each in of.wave_statuses.items()}}


def _timeless(of: AdapterWaveStatus) -> AdapterWaveStatus:
    conditions = [msgspec.structs.replace(each, last_transition_time="") for each in of.conditions]
    return msgspec.structs.replace(of, conditions=conditions)
