"""Kubernetes conditions: their reasons, and how a new one follows an old one.

Reasons of errors are the class names of mint_contracts.errors; the ones below are the operator's own.
"""

import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, TypeVar

import msgspec

from mint_contracts.records import Failure, Mentions
from mint_contracts.resources import AdapterWaveStatus, BaseModelStatus, Condition

MESSAGE_LENGTH = 1024

Truth = Literal["True", "False", "Unknown"]
S = TypeVar("S", BaseModelStatus, AdapterWaveStatus)

# Waves
ADMITTED = "Admitted"
PLACED = "Placed"
NO_ADAPTER_STORE = "NoAdapterStore"
CLAIM_NOT_MOUNTED = "ClaimNotMounted"
NO_CATALOG = "NoCatalog"
CATALOG_UNREAD = "CatalogUnread"
NO_MATCH = "NoMatch"
TOO_MANY_ADAPTERS = "TooManyAdapters"
SOURCE_CONFLICT = "SourceConflict"
ENGINES_CONFLICT = "EnginesConflict"
WAITING_FOR_CAPACITY = "WaitingForCapacity"
WAITING_FOR_QUOTA = "WaitingForQuota"
WAITING_FOR_ENGINES = "WaitingForEngines"
NOT_ADMITTED = "NotAdmitted"
ADAPTERS_READY = "AdaptersReady"
ADAPTERS_LOADING = "AdaptersLoading"
ENGINES_AWAY = "EnginesAway"
NO_TRAINING_STORE = "NoTrainingStore"
MANIFEST_UNREAD = "ManifestUnread"
MANIFEST_REWRITTEN = "ManifestRewritten"
POLICY_CONFLICT = "PolicyConflict"
COMPLETE = "Complete"
TRAINING_COMPLETE = "TrainingComplete"
TRAINING = "Training"
TRAINING_PAUSED = "TrainingPaused"
TRAINING_CANCELLED = "TrainingCancelled"
POLICIES_LOADING = "PoliciesLoading"
POLICIES_FAILED = "PoliciesFailed"
# Bases
ENGINES_READY = "EnginesReady"
ENGINES_STARTING = "EnginesStarting"
COPYING_BASE = "CopyingBase"
BASE_LOADING = "BaseLoading"
BASE_LOADED = "BaseLoaded"
ROLLING_UPDATE = "RollingUpdate"
COMING_UP = {COPYING_BASE, BASE_LOADING, ROLLING_UPDATE}
SCALING_DOWN = "ScalingDown"
APPLY_FAILED = "ApplyFailed"
NO_LEADER_WORKER_SETS = "NoLeaderWorkerSets"
CATALOG_CONFLICT = "CatalogConflict"
# Both
RECONCILING = "Reconciling"
STALLED = "Stalled"
MAP_UNAVAILABLE = "MapUnavailable"
SETTLED = "Settled"
# Failures that end by themselves: what is missing is looked for again, and may come after what names it. What is
# forbidden (SourceForbidden) is tried again, too, but only a person can permit it.
AWAITED = {"SourceNotFound", "AdapterNotFound"}


class Finding(msgspec.Struct, frozen=True):
    """What is true of one condition now; `follow` adds since when."""

    type: str
    status: Truth
    reason: str
    message: str
    mentions: Mentions | None = None  # in the message, if others than the object's readers get it


def follow(old: Sequence[Condition], findings: Sequence[Finding], generation: int, now: float) -> list[Condition]:
    """Return the conditions that state `findings`; a transition time stays while the status stays the same."""
    before = {condition.type: condition for condition in old}
    conditions = []
    for finding in findings:
        last = before.get(finding.type)
        unchanged = last is not None and last.status == finding.status
        conditions.append(
            Condition(
                type=finding.type,
                status=finding.status,
                reason=finding.reason,
                message=shortened(finding.message),
                last_transition_time=last.last_transition_time if last and unchanged else stamp(now),
                observed_generation=generation,
            )
        )
    return conditions


def stalled(verdict: Finding, *, terminal: bool) -> list[Finding]:
    """Return the Stalled condition, with the reason of `verdict`, if only a person's action helps; else none.

    That is the convention of kstatus, by which Flux judges: what is stalled has failed, even if it is Ready, like a
    base whose engines still run with the previous spec.
    """
    if not terminal or verdict.reason in AWAITED:
        return []
    return [Finding(STALLED, "True", verdict.reason, verdict.message)]


def lasting_first(failure: Failure) -> tuple[bool, bool]:
    """Sort failures: first those that only a person's action ends, then those that end once something is there."""
    return not failure.terminal, failure.reason in AWAITED


def kept(last: S, why: Failure, generation: int, now: float) -> S:
    """Return the last status of an object that, for the reason `why`, stays unchanged, without claims about now."""
    findings = [Finding(each, "Unknown", why.reason, why.message) for each in ("Ready", "Progressing")]
    findings += stalled(findings[0], terminal=why.terminal)
    rest = [each for each in last.conditions if each.type not in {"Ready", "Progressing", RECONCILING, STALLED}]
    return msgspec.structs.replace(
        last,
        phase="Degraded" if last.phase in {"Ready", "Rolling"} else last.phase or "Pending",
        observed_generation=generation,
        conditions=follow(last.conditions, findings, generation, now) + rest,
    )


def truth(value: bool) -> Truth:
    """Return a condition's status for a known fact."""
    return "True" if value else "False"


def shortened(message: str) -> str:
    """Return `message`, cut to MESSAGE_LENGTH."""
    return message if len(message) <= MESSAGE_LENGTH else message[: MESSAGE_LENGTH - 1] + "…"


@lru_cache(maxsize=4)
def stamp(now: float) -> str:
    """Format seconds since 1970 as metav1.Time does."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))


def find(conditions: Sequence[Condition], kind: str) -> Condition | None:
    """Return one condition; None if it was never set."""
    return next((condition for condition in conditions if condition.type == kind), None)


def status_of(conditions: Sequence[Condition], kind: str) -> str:
    """Return the status of one condition; "" if it was never set."""
    found = find(conditions, kind)
    return found.status if found is not None else ""
