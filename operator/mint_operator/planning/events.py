"""Kubernetes Events for what people want to know about: changes of phase, and of the reason why something waits."""

from typing import Any

from mint_contracts.resources import GROUP, VERSION, AdapterWaveStatus, BaseModelStatus, WaveFailure
from mint_operator.planning import conditions
from mint_operator.planning.conditions import stamp
from mint_operator.planning.snapshot import Meta
from mint_operator.planning.status_write import Status
from mint_operator.planning.wave_status import missing

COMPONENT = "mint-operator"
_EVENT_TYPES = {  # by phase; other phases have no Event
    "Ready": "Normal",
    "Rolling": "Normal",
    "Failed": "Warning",
    "Degraded": "Warning",
    "Training": "Normal",
    "Paused": "Normal",
    "Complete": "Normal",
    "Cancelled": "Normal",
    "Expired": "Normal",
}
# Going from these to Pending: what was served must wait, since others come first.
_HELD = {"Ready", "Rolling", "Degraded"}
# Reasons by which every object passes on its way, and nothing is wrong.
_UNDER_WAY = {
    conditions.CATALOG_UNREAD,
    conditions.MANIFEST_UNREAD,
    conditions.ADAPTERS_LOADING,
    conditions.POLICIES_LOADING,
    conditions.ENGINES_STARTING,
    conditions.COPYING_BASE,
    conditions.BASE_LOADING,
    conditions.ROLLING_UPDATE,
    conditions.SCALING_DOWN,
    conditions.TRAINING,
}


def failures(old: Status, new: Status) -> list[WaveFailure]:
    """Return the failures in a wave's new status that the old one did not have."""
    if not (isinstance(old, AdapterWaveStatus) and isinstance(new, AdapterWaveStatus)):
        return []
    known = {(each.adapter, each.engine, each.reason) for each in old.failures}
    return [each for each in new.failures if (each.adapter, each.engine, each.reason) not in known]


def transition(
    kind: str,
    meta: Meta,
    old: Status,
    new: Status,
    now: float,
) -> dict[str, Any] | None:
    """Return the Event for a change of phase; None if there is nothing to report."""
    event_type = "Warning" if new.phase == "Pending" and old.phase in _HELD else _EVENT_TYPES.get(new.phase)
    if old.phase == new.phase or event_type is None:
        return None
    told = conditions.find(new.conditions, "Ready")
    if told is not None and new.phase != "Ready" and told.reason == conditions.ENGINES_READY:
        told = conditions.find(new.conditions, "Progressing")  # why the others are not
    reason = told.reason if told and new.phase != "Ready" else new.phase
    return event(kind, meta, event_type, reason, told.message if told else new.phase, now)


def alternates(old: Status, new: Status) -> bool:
    """Whether a roll is hindered or no longer: so it is for moments each time that a new pod waits for a node."""
    return {old.phase, new.phase} == {"Rolling", "Degraded"}


def waiting(
    kind: str,
    meta: Meta,
    old: Status,
    new: Status,
    now: float,
    base: BaseModelStatus | None = None,
) -> dict[str, Any] | None:
    """Return the Event for a new reason why engines, adapters or policies are not ready; None if it is no news.

    A base tells each; a wave, of which there may be thousands, only those by which not every wave passes and that are
    not why its `base` is not ready.
    """
    of_base = isinstance(new, BaseModelStatus)
    which = "Progressing" if of_base else "Ready"  # a base can be Ready while some of its engines are not
    told, before = conditions.find(new.conditions, which), conditions.find(old.conditions, which)
    if told is None or told.reason == conditions.SETTLED or (told.status != "False" and not of_base):
        return None
    routine = told.reason in _UNDER_WAY
    if (before is not None and before.reason == told.reason) or (routine and not of_base):
        return None
    lacking = None if base is None else missing(base)
    if lacking is not None and lacking.reason == told.reason:
        return None
    return event(kind, meta, "Normal" if routine else "Warning", told.reason, told.message, now)


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
