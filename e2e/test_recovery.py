"""Whatever dies comes back, statuses are true meanwhile, and clients lose nothing, not even what had begun."""

import asyncio
from typing import Any

import pytest

from e2e import release
from e2e.asking import NAMES, lost, while_asking
from e2e.cluster.kube import is_ready
from e2e.samples import GOOD
from e2e.waiting import until
from e2e.world import NAMESPACE, Waves, World, base_model, wave


async def test_a_killed_engine_comes_back_with_its_adapters_and_clients_lose_nothing(
    world: World, waves: Waves
) -> None:
    waves("survivor", wave(NAMES))
    world.kube.wait("adapterwave/survivor", "Ready", NAMESPACE)
    victim = world.status("adapterwave", "survivor")["engines"][0]["name"]
    before = world.kube.get("pod", victim, NAMESPACE)["metadata"]["uid"]
    told: list[dict[str, str]] = []

    async def kill() -> None:
        await asyncio.to_thread(
            world.kube.kubectl, "delete", "pod", victim, "-n", NAMESPACE, "--grace-period=0", "--force"
        )
        told.append(await asyncio.to_thread(until, "the wave to be told not Ready", lambda: _not_ready(world)))
        await asyncio.to_thread(until, "another pod", lambda: _uid(world, victim) not in {"", before})
        await asyncio.to_thread(world.kube.wait, "adapterwave/survivor", "Ready", NAMESPACE)

    outcomes = await while_asking(world, kill)

    assert lost(outcomes) == []
    assert told[0]["reason"] in {"EnginesAway", "EnginesStarting", "BaseLoading", "AdaptersLoading"}, told
    assert world.status("adapterwave", "survivor")["counts"]["ready"] == len(NAMES)


def _not_ready(world: World) -> dict[str, str]:
    ready = world.condition("adapterwave", "survivor", "Ready")
    return ready if ready["status"] != "True" else {}


def _uid(world: World, pod: str) -> str:
    found = [each for each in world.kube.list("pod", NAMESPACE) if each["metadata"]["name"] == pod]
    return str(found[0]["metadata"]["uid"]) if found else ""


def _kill_pods(world: World, component: str) -> None:
    selector = f"app.kubernetes.io/component={component}"
    before = {pod["metadata"]["uid"] for pod in world.kube.list("pod", release.NAMESPACE, selector)}
    assert before, f"no pod of {component}"
    world.kube.kubectl(
        "delete", "pod", "-n", release.NAMESPACE, "-l", selector, "--grace-period=0", "--force", timeout_s=60
    )

    def replaced() -> bool:
        pods = world.kube.list("pod", release.NAMESPACE, selector)
        fresh = [pod for pod in pods if pod["metadata"]["uid"] not in before]
        return bool(fresh) and all(is_ready(pod) for pod in fresh)

    until(f"{component} to be replaced", replaced)


@pytest.mark.parametrize(("component", "other"), [("operator", GOOD[3].name), ("redis", GOOD[4].name)])
async def test_serving_goes_on_without_a_component_and_state_is_right_afterwards(
    world: World, waves: Waves, component: str, other: str
) -> None:
    steady, after = f"steady-{component}", f"after-{component}"
    waves(steady, wave(NAMES))
    world.kube.wait(f"adapterwave/{steady}", "Ready", NAMESPACE)

    async def kill() -> None:
        await asyncio.to_thread(_kill_pods, world, component)

    outcomes = await while_asking(world, kill)
    assert lost(outcomes) == []
    waves(after, wave([other]))
    world.kube.wait(f"adapterwave/{after}", "Ready", NAMESPACE)
    world.kube.wait(f"adapterwave/{steady}", "Ready", NAMESPACE)


def test_a_map_that_is_flushed_is_written_again(world: World, waves: Waves) -> None:
    waves("rewritten", wave(NAMES))
    world.kube.wait("adapterwave/rewritten", "Ready", NAMESPACE)

    def placements() -> int:
        return int(_redis(world, "hlen", f"mint:{{{NAMESPACE}/smollm2}}:placements"))

    assert placements() >= len(NAMES)
    _redis(world, "flushall")

    until("the placements to be written again", lambda: placements() >= len(NAMES))
    world.kube.wait("adapterwave/rewritten", "Ready", NAMESPACE)


def test_a_base_and_a_wave_are_deleted_while_redis_is_away_and_forgotten_when_it_is_back(
    world: World, waves: Waves
) -> None:
    redis = ["-n", release.NAMESPACE, "statefulset/mint-redis"]
    waves("leaving", wave(NAMES))
    world.kube.wait("adapterwave/leaving", "Ready", NAMESPACE)
    world.kube.apply(base_model("leaving", engines=1, uri="pvc://mint-samples/nothing-there"), NAMESPACE)
    until("its StatefulSet", lambda: _names(world, "statefulset", "leaving"))
    until("its keys in the map", lambda: f"{NAMESPACE}/leaving" in _bases(world))
    world.kube.kubectl("scale", *redis, "--replicas=0")
    try:
        until("redis to be gone", lambda: not _redis_pods(world))
        world.kube.kubectl("delete", "adapterwave/leaving", "basemodel/leaving", "-n", NAMESPACE, "--timeout=20s")
        until("its StatefulSet to be gone", lambda: not _names(world, "statefulset", "leaving"))
    finally:
        world.kube.kubectl("scale", *redis, "--replicas=1")

    until("redis to be back", lambda: [pod for pod in _redis_pods(world) if is_ready(pod)])
    until("the base to be forgotten", lambda: f"{NAMESPACE}/leaving" not in _bases(world))
    waves("arriving", wave(NAMES[:1]))
    world.kube.wait("adapterwave/arriving", "Ready", NAMESPACE)
    assert _names(world, "adapterwave", "leaving") == []


def _names(world: World, kind: str, name: str) -> list[str]:
    found = [each["metadata"]["name"] for each in world.kube.list(kind, NAMESPACE)]
    return [each for each in found if each == name]


def _redis_pods(world: World) -> list[dict[str, Any]]:
    return world.kube.list("pod", release.NAMESPACE, "app.kubernetes.io/component=redis")


def _bases(world: World) -> list[str]:
    return _redis(world, "smembers", "mint:bases").split()


def _redis(world: World, *words: str) -> str:
    [pod] = _redis_pods(world)
    return world.kube.kubectl(
        "exec", "-n", release.NAMESPACE, pod["metadata"]["name"], "--", "redis-cli", *words
    ).strip()
