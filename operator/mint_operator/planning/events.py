"""Kubernetes Events for transitions that people want to know about, one for each."""

from typing import Any

from mint_contracts.resources import GROUP, VERSION, AdapterWaveStatus, BaseModelStatus, WaveFailure
from mint_operator.planning.conditions import stamp
from mint_operator.planning.snapshot import Meta

COMPONENT = "mint-operator"
_EVENT_TYPES = {  # by phase; other phases have no Event
    "Ready": "Normal",
    "Failed": "Warning",
    "Degraded": "Warning",
    "Training": "Normal",
    "Paused": "Normal",
    "Complete": "Normal",
    "Cancelled": "Normal",
    "Expired": "Normal",
}
_HELD = {"Ready", "Degraded"}  # going from here to Pending: what was served must wait, since others come first


def failures(old: BaseModelStatus | AdapterWaveStatus, new: BaseModelStatus | AdapterWaveStatus) -> list[WaveFailure]:
    """Return the failures in a wave's new status that the old one did not have."""
    if not (isinstance(old, AdapterWaveStatus) and isinstance(new, AdapterWaveStatus)):
        return []
    known = {(each.adapter, each.engine, each.reason) for each in old.failures}
    return [each for each in new.failures if (each.adapter, each.engine, each.reason) not in known]


def transition(
    kind: str,
    meta: Meta,
    old: BaseModelStatus | AdapterWaveStatus,
    new: BaseModelStatus | AdapterWaveStatus,
    now: float,
) -> dict[str, Any] | None:
    """Return the Event for a change of phase; None if there is nothing to report."""
    event_type = "Warning" if new.phase == "Pending" and old.phase in _HELD else _EVENT_TYPES.get(new.phase)
    if old.phase == new.phase or event_type is None:
        return None
    ready = next((each for each in new.conditions if each.type == "Ready"), None)
    reason = ready.reason if ready and new.phase != "Ready" else new.phase
    return event(kind, meta, event_type, reason, ready.message if ready else new.phase, now)


def event(kind: str, meta: Meta, event_type: str, reason: str, message: str, now: float) -> dict[str, Any]:
    """Return an Event about one object; `event_type` is Normal or Warning."""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": meta.namespace, "name": f"{meta.name}.{int(now * 1e6):x}"},
        "involvedObject": {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": kind,
            "namespace": meta.namespace,
            "name": meta.name,
            "uid": meta.uid,
        },
        "type": event_type,
        "reason": reason,
        "message": message,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "firstTimestamp": stamp(now),
        "lastTimestamp": stamp(now),
        "count": 1,
    }
