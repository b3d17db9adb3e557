"""Gaps between tokens while others' adapters load, and while new revisions of a live adapter are published."""

from functools import partial
from statistics import median
from typing import Any

from tests.bench.bench import Bench, Group, take_turns
from tests.bench.cold import RANK, engine_of, made
from tests.bench.places import scratch
from tests.bench.rows import Row, measured, percentile
from tests.bench.side import Side

DECODING = 16  # requests that decode at a time
TURNS = 2  # consecutive requests per adapter: some begin on a new revision while others end on the previous one
_DISK = 1 << 30  # bytes of old revisions and other adapters that the engine keeps
_MS = 1000.0


def _loads(bench: Bench) -> list[Row]:
    """Measure the token gaps of 16 adapters' requests while others stream from disk through the remaining slots."""
    store, everyone = made(bench)
    busy, streaming = everyone[:DECODING], everyone[DECODING:]
    with scratch("engine") as cache, engine_of(bench, store, cache, 2 * DECODING) as ours:
        with bench.doing("ours: adapters taken in once"):
            ours.ask("touch", names=everyone)
            ours.ask("hold", names=busy, tier="Device")
        rounds = _in_turn(bench, ours, busy, DECODING, "loads", stream=streaming)
    loads, disk = (median(each[what] / each["seconds"] for each in rounds["loads"]) for what in ("streamed", "read"))
    note = f"rank {RANK}, {DECODING} decode, {loads:.0f} loads/s, {disk / 1e6:.0f} MB/s read from the disk"
    return [measured("serve.itl_p95_during_loads_over_idle", _p95(rounds["loads"]), _p95(rounds["idle"]), note)]


def _handoffs(bench: Bench) -> list[Row]:
    """Measure the same while new revisions of one of the 16 are published, each once the previous one is live.

    Requests for that adapter are among those that decode. Handoffs come more often than every twentieth step, so if
    steps paused for them, the 95th percentile would show it.
    """
    store, everyone = made(bench)
    busy = everyone[:DECODING]
    with (
        scratch("published") as into,
        scratch("engine") as cache,
        engine_of(bench, store, cache, 2 * DECODING, _DISK) as ours,
    ):
        with bench.doing("ours: adapters into slots"):
            ours.ask("hold", names=busy, tier="Device")
        live = {"name": busy[0], "source": str(store / busy[0]), "into": f"file://{into}"}
        rounds = _in_turn(bench, ours, busy, TURNS * DECODING, "handoffs", handing_over=live)
    often = median(each["seconds"] / each["handed_over"] for each in rounds["handoffs"])
    step = median(gap for each in rounds["handoffs"] for gap in each["gaps"])
    worst = {kind: max(gap for each in found for gap in each["gaps"]) * _MS for kind, found in rounds.items()}
    note = (
        f"rank {RANK}, {DECODING} decode, a handoff each {often * _MS:.0f} ms, which is {often / step:.1f} steps; "
        f"worst gap {worst['handoffs']:.0f} ms, idle {worst['idle']:.0f} ms"
    )
    return [measured("serve.itl_p95_during_handoffs_over_idle", _p95(rounds["handoffs"]), _p95(rounds["idle"]), note)]


def _in_turn(
    bench: Bench, ours: Side, busy: list[str], requests: int, what: str, **beside: Any
) -> dict[str, list[dict[str, Any]]]:
    """Run rounds of requests, at most 16 at a time, alternately without and with `beside`, after a warm-up."""

    def ask(number: int, told: str, beside: dict[str, Any]) -> dict[str, Any]:
        seed = 2 * number + bool(beside)
        work = bench.work(seed, requests=requests, together=DECODING, adapters=tuple(busy))
        return bench.round(ours, work, told, **beside)

    ask(10**6, "warm-up", {})
    sides = {"idle": partial(ask, told="decode", beside={}), what: partial(ask, told=f"beside {what}", beside=beside)}
    return take_turns(bench.rounds, sides)


def _p95(rounds: list[dict[str, Any]]) -> list[float]:
    return [percentile(each["gaps"], 95) * _MS for each in rounds]


GROUPS = (
    Group(("serve.itl_p95_during_loads_over_idle",), _loads),
    Group(("serve.itl_p95_during_handoffs_over_idle",), _handoffs),
)
