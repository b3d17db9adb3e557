"""The operator's Prometheus metrics."""

from collections import Counter as Tally
from collections.abc import Container

from prometheus_client import Counter, Gauge, Histogram

from mint_operator.planning.plan import Plan
from mint_operator.planning.snapshot import Snapshot

PASS_SECONDS = Histogram(
    "mint_operator_pass_seconds",
    "Seconds of one pass of the loop, by part",
    ["part"],
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
)
PASSES = Counter("mint_operator_passes_total", "Passes of the loop, by outcome", ["outcome"])
for _outcome in ("done", "failed"):
    PASSES.labels(_outcome)  # from the start: Prometheus' increase() does not see the first value of a new series
WRITES = Counter("mint_operator_writes_total", "Writes, by what was written and outcome", ["what", "outcome"])
WAVES = Gauge("mint_operator_waves", "Waves by phase", ["phase"])
BASES = Gauge("mint_operator_bases", "1 for the phase of a base model, otherwise 0", ["base", "phase"])
COPIES = Gauge("mint_operator_copies", "Adapter copies over all waves, by state", ["state"])
DIRTY = Gauge("mint_operator_dirty", "Parts of the observed state waiting to be re-read")
NAMESPACES_LEFT_OUT = Gauge("mint_operator_namespaces_left_out", "Watched namespaces that the operator may not read")
LEADS = Gauge("mint_operator_leads", "1 while this operator holds the Lease and therefore plans")
LAST_PASS = Gauge(
    "mint_operator_last_pass_timestamp_seconds", "Unix time of the last pass of the loop, successful or not"
)
ENGINES = Gauge("mint_operator_engines", "Engines of each base model: desired, and ready", ["base", "state"])
REDIS_UP = Gauge("mint_operator_redis_up", "1 while Redis answers and takes writes")

PHASES = ("Pending", "Loading", "Placing", "Ready", "Rolling", "Degraded", "Failed")
WAVE_PHASES = ("Expired", "Queued", "Training", "Paused", "Complete", "Cancelled")
POLICIES = Gauge("mint_operator_policies", "Policies of training waves, by stage", ["stage"])


def observe(snapshot: Snapshot, plan: Plan) -> None:
    """Set the gauges from one pass."""
    REDIS_UP.set(snapshot.redis_ok)
    waves = Tally(status.phase for status in plan.wave_statuses.values())
    for phase in PHASES + WAVE_PHASES:
        WAVES.labels(phase).set(waves[phase])
    for base, status in plan.base_statuses.items():
        for phase in PHASES:
            BASES.labels(base, phase).set(status.phase == phase)
        for state in ("desired", "ready"):
            ENGINES.labels(base, state).set(getattr(status.engines, state))
    for gauge in (BASES, ENGINES):
        _forget_others(gauge, plan.base_statuses)
    trained = [status.training.policies for status in plan.wave_statuses.values() if status.training]
    for stage in ("waiting", "running", "paused", "complete", "cancelled", "failed"):
        POLICIES.labels(stage).set(sum(getattr(each, stage) for each in trained))
    counts = [status.counts for status in plan.wave_statuses.values()]
    for state in ("wanted", "placed", "ready", "failed"):
        COPIES.labels(state).set(sum(getattr(each, state) for each in counts))


def _forget_others(gauge: Gauge, bases: Container[str]) -> None:
    """Remove the series of bases that no longer exist. Others stay throughout: a scrape may come at any time."""
    for metric in gauge.collect():
        for sample in metric.samples:
            if sample.labels["base"] not in bases:
                gauge.remove(*sample.labels.values())
