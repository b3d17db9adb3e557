"""Status writes: what to send, and whether it is worth an API call now."""

from typing import Any

import msgspec

from mint_contracts.resources import AdapterWaveStatus, BaseModelStatus

Status = BaseModelStatus | AdapterWaveStatus

COUNTS_EVERY_S = 5.0  # between writes that only update counts; changes of phase or conditions are written at once


def body(status: msgspec.Struct) -> dict[str, Any]:
    """Encode a struct with every field in camelCase, also zeros: a merge patch must overwrite the old values."""
    return {field.encode_name: _plain(getattr(status, field.name)) for field in msgspec.structs.fields(status)}


def owed_in(old: Status, new: Status, since_s: float) -> float | None:
    """Return in how many seconds to write `new` over `old`, last written `since_s` seconds ago; None: not at all."""
    if old == new:
        return None
    return 0.0 if _picture(old) != _picture(new) else max(0.0, COUNTS_EVERY_S - since_s)


def _picture(status: Status) -> object:
    """Return what a person or `kubectl wait` acts on."""
    conditions = [(each.type, each.status, each.reason, each.observed_generation) for each in status.conditions]
    return status.phase, status.observed_generation, conditions


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return body(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
