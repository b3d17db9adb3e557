"""A change to a base's engines rolls through them, one at a time, and no client notices."""

import asyncio
import json
from typing import Any

from e2e.asking import NAMES, lost, while_asking
from e2e.cluster.kube import is_ready
from e2e.waiting import until
from e2e.world import NAMESPACE, Waves, World, wave

ENGINES = ("smollm2-0", "smollm2-1")
CHANGE = {
    "spec": {"engine": {"resources": {"requests": {"cpu": "110m"}}}}
}  # any change to the engines' settings would do


async def test_engines_that_start_anew_are_replaced_first_and_clients_lose_nothing(
    world: World, waves: Waves
) -> None:
    waves("rolled", wave(NAMES))
    world.kube.wait("adapterwave/rolled", "Ready", NAMESPACE)
    before = _pods(world)
    assert set(before) == set(ENGINES)
    seen: list[int] = []

    def rolled() -> bool:
        now = _pods(world)
        seen.append(sum(is_ready(pod) for pod in now.values()))
        anew = [name for name in ENGINES if name in now and _uid(now[name]) != _uid(before[name])]
        return len(anew) == len(ENGINES) and all(is_ready(now[name]) for name in ENGINES)

    async def roll() -> None:
        patch = ["--type=merge", "-p", json.dumps(CHANGE)]
        await asyncio.to_thread(world.kube.kubectl, "patch", "basemodel/smollm2", "-n", NAMESPACE, *patch)
        await asyncio.to_thread(until, "both engines to have started anew", rolled, 300)
        await asyncio.to_thread(world.kube.wait, "adapterwave/rolled", "Ready", NAMESPACE)

    outcomes = await while_asking(world, roll)

    assert lost(outcomes) == []
    assert min(seen) >= 1, "never both at once"
    assert world.status("adapterwave", "rolled")["counts"]["ready"] == len(NAMES)
    until("nothing to be left to load", lambda: not world.status("basemodel", "smollm2")["loading"]["copies"])


def _pods(world: World) -> dict[str, dict[str, Any]]:
    found = {pod["metadata"]["name"]: pod for pod in world.kube.list("pod", NAMESPACE)}
    return {name: found[name] for name in ENGINES if name in found}


def _uid(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["uid"])
