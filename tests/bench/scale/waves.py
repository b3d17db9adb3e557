"""Waves at scale, from creation until all are Ready, compared with a client that makes the same API calls by hand."""

import asyncio
import time
from functools import partial
from typing import Any

from mint_contracts.catalog_writer import CatalogWriter
from mint_contracts.entries import Entry
from mint_contracts.functions import connect
from mint_contracts.map_reader import MapReader
from mint_contracts.records import Placement
from tests.bench.rows import Row, measured, percentile
from tests.bench.scale.arena import ADAPTERS, CATALOG, Arena, adapter, arena, at_once, decoded, until, wave
from tests.bench.scale.scale import Group, Scale

CHANGES = 30
FILLED_AT_ONCE = 20_000
MOVED_WITHIN_S = 120.0

METRICS = (
    "scale.waves1000_ready_over_bare_client",
    "scale.waves1000_over_waves100",
    "scale.one_change_p99_s",
    "scale.one_change_over_10_waves",
    "scale.api_writes_per_wave",
    "scale.kill_moves_over_lost",
    "scale.operator_rss_mb",
)


def measure(scale: Scale) -> list[Row]:
    """Measure all rows in one arena."""
    many = scale.size(1000)
    few, handful = max(2, many // 10), min(10, many)
    with arena(engines=many) as found:
        say = scale.steps.say
        with scale.steps.step(f"a catalog of {scale.size(CATALOG):,} beside it"):
            asyncio.run(fill(found, scale.size(CATALOG)))
        make(found, handful)
        calm = changes(found, handful)
        say(f"one change among {handful} waves: p99 {percentile(calm, 99):.3f} s")
        clear(found)
        hundred_s = make(found, few)
        say(f"{few} waves ready in {hundred_s:.2f} s")
        clear(found)
        before = found.writes()
        bare_s = bare(found, many)
        say(f"bare client: {many} waves in {bare_s:.2f} s")
        bare_writes = found.writes() - before
        thousand_s = make(found, many)
        writes = (found.writes() - before - bare_writes) / many
        say(f"{many} waves ready in {thousand_s:.2f} s, {writes:.2f} writes each")
        busy = changes(found, many)
        say(f"one change among {many} waves: p99 {percentile(busy, 99):.3f} s")
        rss = found.rss_mb()
        say(f"operator: {rss:.0f} MB")
        moved, lost = kill(found)
        say(f"killed an engine that held {lost} adapters: {moved} moved")
    change = (percentile(busy, 99), percentile(calm, 99))
    return [
        measured(METRICS[0], [thousand_s], [bare_s], f"{many} waves of {ADAPTERS}"),
        measured(METRICS[1], [thousand_s], [hundred_s], f"{many} and {few} waves"),
        measured(METRICS[2], [change[0]], note=f"{CHANGES} changes among {many} waves"),
        measured(METRICS[3], [change[0]], [change[1]], f"among {handful} waves"),
        measured(METRICS[4], [writes], note="statuses and events, as the API server counts them"),
        measured(METRICS[5], [moved], [lost], f"{lost} adapters were on it"),
        measured(METRICS[6], [rss], note=f"{many} waves, {many} engines, {scale.size(CATALOG):,} adapters"),
    ]


async def fill(found: Arena, count: int) -> None:
    """Fill the base's catalog in the same Redis, as gateways would have registered it."""
    redis = connect(found.redis.url)
    writer = CatalogWriter(redis)
    copy = await writer.begin(found.base, "pvc://samples/catalog")
    for first in range(0, count, FILLED_AT_ONCE):
        numbers = range(first, min(first + FILLED_AT_ONCE, count))
        entries = [Entry(name, f"pvc://samples/adapters/{name}", rank=8) for name in map(adapter, numbers)]
        await writer.apply(found.base, list(enumerate(entries, first + 1)), f"filled-{first}")
    await writer.complete(found.base, copy, count)
    await redis.aclose()


def make(found: Arena, count: int) -> float:
    """Create waves; return the seconds until all are Ready."""
    began = time.perf_counter()
    bodies = [wave(found.namespace, f"w{index:04d}", index * 17) for index in range(count)]
    asyncio.run(at_once([partial(found.kube.apply, body) for body in bodies]))
    until(f"{count} waves to be Ready", lambda: found.figures().get('mint_operator_waves{phase="Ready"}') == count)
    took_s = time.perf_counter() - began
    listed = decoded(asyncio.run(found.kube.items("AdapterWave", found.namespace)))
    assert all(_condition(each, "Ready") == "True" for each in listed), "the operator's figure and the API differ"
    return took_s


def clear(found: Arena) -> None:
    """Delete all waves, and wait until no copy is wanted."""
    collection = f"/apis/mint.dev/v1alpha1/namespaces/{found.namespace}/adapterwaves"
    found.server.kubectl("delete", "--raw", collection)
    until("waves to be gone", lambda: found.figures().get('mint_operator_copies{state="wanted"}') == 0.0)


def bare(found: Arena, count: int) -> float:
    """Make the same calls (apply and two statuses) in a namespace that no operator watches; return the seconds."""
    namespace = found.server.namespace(f"bare-{count}")
    bodies = [wave(namespace, f"w{index:04d}", index * 17) for index in range(count)]
    placed = {"status": {"phase": "Placing", "conditions": _conditions("False"), "engines": _engines(0)}}
    ready = {"status": {"phase": "Ready", "conditions": _conditions("True"), "engines": _engines(1)}}
    patch = partial(found.kube.patch_status, "AdapterWave", namespace)
    names = [body["metadata"]["name"] for body in bodies]
    began = time.perf_counter()
    asyncio.run(at_once([partial(found.kube.apply, body) for body in bodies]))
    for status in (placed, ready):
        asyncio.run(at_once([partial(patch, name, status) for name in names]))
    return time.perf_counter() - began


def changes(found: Arena, count: int) -> list[float]:
    """Change one wave at a time; return the seconds until each is placed again."""
    took = []
    for number in range(CHANGES):
        name = f"w{number * 7 % count:04d}"
        body = wave(found.namespace, name, 500_000 + number * 31)
        began = time.perf_counter()
        asyncio.run(found.kube.apply(body))
        until("the change to be placed", partial(_placed, found, name))
        took.append(time.perf_counter() - began)
    return took


def kill(found: Arena) -> tuple[int, int]:
    """Kill one engine; return how many placements changed, and how many copies it held."""
    before = asyncio.run(_placements(found))
    dead = "smol-0"
    lost = sum(place.engine == dead for each in before.values() for place in each.places)
    found.kill(0)

    def gone() -> bool:
        now = asyncio.run(_placements(found))
        return not any(place.engine == dead for each in now.values() for place in each.places)

    until("its adapters to move", gone, MOVED_WITHIN_S, poll_s=1.0)
    after = asyncio.run(_placements(found))
    moved = sum(before[name].places != each.places for name, each in after.items())
    return moved, lost


async def _placements(found: Arena) -> dict[str, Placement]:
    redis = connect(found.redis.url)
    try:
        return await MapReader(redis).placements(found.base)
    finally:
        await redis.aclose()


def _placed(found: Arena, name: str) -> bool:
    raw = asyncio.run(found.kube.get("AdapterWave", found.namespace, name))
    [each] = decoded([raw]) if raw else [{}]  # type: ignore[list-item]
    status = each.get("status", {})
    current = status.get("observedGeneration") == each["metadata"]["generation"]
    return current and _condition(each, "Placed") == "True"


def _condition(of: dict[str, Any], kind: str) -> str:
    found = of.get("status", {}).get("conditions", [])
    return next((each["status"] for each in found if each["type"] == kind), "")


def _conditions(ready: str) -> list[dict[str, Any]]:
    common = {"reason": "AdaptersLoading", "message": "0 of 64 copies ready", "observedGeneration": 1}
    common |= {"lastTransitionTime": "2026-01-01T00:00:00Z"}
    return [{"type": kind, "status": ready} | common for kind in ("Ready", "Admitted", "Placed", "Progressing")]


def _engines(ready: int) -> list[dict[str, Any]]:
    return [{"name": f"smol-{index}", "wanted": 1, "ready": ready} for index in range(ADAPTERS)]


GROUP = Group(METRICS, measure)
