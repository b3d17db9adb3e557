"""Engines that come, go and restart, over a real API server and Redis; engines and pods are played by the test."""

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pytest

from mint_contracts.records import Tier
from mint_operator.planning.elastic import SHRINK_AFTER_S
from tests.apiserver import KubectlError
from tests.operator.stage import PlayedEngine, Stage, adapter_wave, base_model

ONE, TWO = [f"one/{index}" for index in range(3)], [f"two/{index}" for index in range(3)]
SLOTS = 4


async def statefulset(stage: Stage) -> dict[str, Any]:
    found = await stage.get("StatefulSet", "smol")
    assert found is not None
    spec: dict[str, Any] = found["spec"]
    return spec


async def replicas(stage: Stage) -> int:
    return int((await statefulset(stage))["replicas"])


async def phase(stage: Stage, wave: str) -> str:
    return str((await stage.status("AdapterWave", wave))["phase"])


def holders(engines: Sequence[PlayedEngine], adapter: str) -> list[str]:
    """Return the engines that hold an adapter in a slot now."""
    return [each.name for each in engines if adapter in each.holds and each.holds[adapter].tier is Tier.DEVICE]


async def two_waves_on_two_engines(stage: Stage) -> list[PlayedEngine]:
    """Make two waves Ready on two engines; each is too large for the room that the other leaves on one engine."""
    await stage.reconcile(base_model(1, 2, SLOTS), adapter_wave("one", ONE))
    assert await replicas(stage) == 1
    engines = [stage.engine(0), stage.engine(1)]
    await engines[0].obey()
    await stage.once()
    assert await phase(stage, "one") == "Ready"
    await stage.reconcile(adapter_wave("two", TWO))
    assert await replicas(stage) == 2
    assert await phase(stage, "two") == "Placing"
    for each in engines:
        await each.obey()
    await stage.once()
    assert [await phase(stage, wave) for wave in ("one", "two")] == ["Ready", "Ready"]
    return engines


async def test_engines_come_for_waves_that_wait_up_to_the_bound(stage: Stage) -> None:
    await two_waves_on_two_engines(stage)
    # the name sorts after the others, in case all are created within one second
    await stage.reconcile(adapter_wave("two-more", ["two-more/0", "two-more/1", "two-more/2"]))
    assert await replicas(stage) == 2
    status = await stage.status("AdapterWave", "two-more")
    assert (status["phase"], status["position"]) == ("Pending", 1)


async def test_an_engine_goes_only_once_its_copies_are_ready_elsewhere(stage: Stage) -> None:
    engines = await two_waves_on_two_engines(stage)
    stage.delete("adapterwave", "one")
    await stage.once()
    there = sorted(await engines[1].assigned())
    assert there, "the younger wave has copies on the engine that came for it"
    stage.ahead_s = SHRINK_AFTER_S - 5
    await stage.once()
    assert sorted(await engines[1].assigned()) == there, "too early"
    stage.ahead_s = SHRINK_AFTER_S + 5
    await stage.once()
    assert sorted(await engines[0].assigned()) == TWO, "what the other holds is placed here as well"
    for _ in range(2):
        assert await replicas(stage) == 2, "and nothing goes before it is ready"
        assert sorted(await engines[1].assigned()) == there
        for each in engines:
            await each.report()
        await stage.once()
    await engines[0].obey()
    await stage.once()
    assert await engines[1].assigned() == {}
    await stage.once()
    assert await replicas(stage) == 1
    assert await phase(stage, "two") == "Ready"


async def test_an_engine_that_is_to_go_stays_while_those_that_take_over_are_away(stage: Stage) -> None:
    engines = await two_waves_on_two_engines(stage)
    stage.delete("adapterwave", "one")
    await stage.once()
    there = await engines[1].assigned()
    await engines[0].leave()
    stage.ahead_s = SHRINK_AFTER_S + 5
    for _ in range(3):
        await engines[1].report()
        await stage.once()
    assert await replicas(stage) == 2
    assert (await engines[1].assigned()).keys() >= there.keys()


async def test_the_scale_subresource_moves_the_lower_bound_as_an_autoscaler_does(stage: Stage) -> None:
    await stage.reconcile(base_model(1, 3, SLOTS))
    stage.server.kubectl("scale", "basemodel/smol", "--replicas=3", "-n", stage.namespace)
    await stage.once()
    assert await replicas(stage) == 3
    for ordinal in range(2):
        await stage.engine(ordinal).obey()
    await stage.once()
    path = f"/apis/mint.dev/v1alpha1/namespaces/{stage.namespace}/basemodels/smol/scale"
    scale = json.loads(stage.server.kubectl("get", "--raw", path))
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (3, 2)
    assert "mint.dev/base-model=smol" in scale["status"]["selector"], "an autoscaler finds the engines by it"
    stage.server.kubectl("scale", "basemodel/smol", "--replicas=1", "-n", stage.namespace)
    await stage.once()
    assert await replicas(stage) == 3, "fewer only after a while"
    stage.ahead_s = SHRINK_AFTER_S + 5
    for _ in range(3):
        await stage.once()
    assert await replicas(stage) == 1
    with pytest.raises(KubectlError):
        stage.server.kubectl("scale", "basemodel/smol", "--replicas=4", "-n", stage.namespace)


class Controller:
    """A minimal StatefulSet controller and kubelet for a rolling update."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.started: list[int] = []

    async def roll(self, count: int) -> list[int]:
        """Restart engines from the partition on whose pods differ from the template; return their ordinals."""
        spec = await statefulset(self._stage)
        partition = spec["updateStrategy"].get("rollingUpdate", {}).get("partition", 0)
        template, anew = spec["template"]["metadata"], []
        for ordinal in reversed(range(count)):
            pod = await self._stage.get("Pod", f"smol-{ordinal}")
            if pod is None:
                self._start(ordinal, template)
            elif pod["metadata"]["labels"]["settings"] != _settings(template) and ordinal >= partition:
                self._stage.server.kubectl(
                    "delete", "pod", f"smol-{ordinal}", "-n", self._stage.namespace, "--force", "--grace-period=0"
                )
                self._start(ordinal, template)
                anew.append(ordinal)
        self.started += anew
        return anew

    def _start(self, ordinal: int, template: dict[str, Any]) -> None:
        """Create a pod at the played engines' address, with only the template's labels and annotations."""
        labels = template["labels"] | {"settings": _settings(template)}
        named = {"name": f"smol-{ordinal}", "labels": labels, "annotations": template["annotations"]}
        containers = [{"name": "engine", "image": "mint.dev/host:dev"}]
        spec = {"containers": containers, "automountServiceAccountToken": False}
        self._stage.apply({"apiVersion": "v1", "kind": "Pod", "metadata": named, "spec": spec})
        status = {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "podIPs": [{"ip": "10.0.0.1"}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        patch = ["--subresource=status", "--type=merge", "-p", json.dumps({"status": status})]
        self._stage.server.kubectl("patch", "pod", f"smol-{ordinal}", "-n", self._stage.namespace, *patch)


def _settings(template: dict[str, Any]) -> str:
    return str(template["annotations"]["mint.dev/settings"])[:40]


async def test_a_new_revision_of_the_base_rolls_through_without_a_gap(stage: Stage) -> None:
    await stage.reconcile(base_model(2, 2, SLOTS), adapter_wave("one", ONE[:2]))
    controller = Controller(stage)
    await controller.roll(2)
    engines = [stage.engine(0), stage.engine(1)]
    for each in engines:
        await each.obey()
    await stage.once()
    assert await phase(stage, "one") == "Ready"

    stage.apply(base_model(2, 2, SLOTS, source={"uri": "pvc://models/smol", "revision": "v2"}))
    phases = list[str]()
    for _ in range(12):
        await stage.once()
        phases.append((await stage.status("BaseModel", "smol"))["phase"])
        for ordinal in await controller.roll(2):
            engines[ordinal] = stage.engine(ordinal, incarnation=2)
        for adapter in ONE[:2]:
            assert holders(engines, adapter), f"nobody answers for {adapter}"
        for each in engines:
            await each.obey()
    assert controller.started == [1, 0]
    assert await phase(stage, "one") == "Ready"
    assert [each for each, _ in groupby(phases)] == ["Rolling", "Ready"], "never Degraded"
    assert (await statefulset(stage))["updateStrategy"].get("rollingUpdate", {}).get("partition", 0) == 0


async def test_the_only_engine_restarts_once_a_second_one_has_taken_over(stage: Stage) -> None:
    await stage.reconcile(base_model(1, 2, SLOTS), adapter_wave("one", ONE[:2]))
    controller, engines = Controller(stage), [stage.engine(0)]
    await controller.roll(1)
    await engines[0].obey()
    await stage.once()
    assert await phase(stage, "one") == "Ready"

    stage.apply(base_model(1, 2, SLOTS, source={"uri": "pvc://models/smol", "revision": "v2"}))
    for _ in range(12):
        await stage.once()
        engines += [stage.engine(ordinal) for ordinal in range(len(engines), await replicas(stage))]
        for ordinal in await controller.roll(len(engines)):
            engines[ordinal] = stage.engine(ordinal, incarnation=2)
        assert all(holders(engines, adapter) for adapter in ONE[:2]), "somebody answers at any time"
        for each in engines:
            await each.obey()
    assert controller.started == [0], "in place; the second had the new revision from its start"
    assert (await stage.condition("BaseModel", "smol", "Progressing"))["reason"] == "Settled"
    stage.ahead_s = SHRINK_AFTER_S + 5
    for _ in range(3):
        await stage.once()
        await engines[0].obey()
    assert await replicas(stage) == 1
    assert await phase(stage, "one") == "Ready"
