"""Changes that others make to a base's objects are reverted: at once if they are seen, in any case after a while."""

import asyncio
import json
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mint_contracts.records import Failure
from mint_operator import kube
from mint_operator.applied import CAP_S, FIRST_S, Applied
from mint_operator.handlers import children
from mint_operator.observing import decode
from mint_operator.observing.watch import Watch
from mint_operator.planning.base_plan import Known
from mint_operator.planning.conditions import APPLY_FAILED
from mint_operator.planning.manifests import Manifest
from mint_operator.planning.plan import Plan, plan
from mint_operator.planning.repair import AGAIN_S, repair
from mint_operator.planning.snapshot import Child, Snapshot
from tests.operator.stage import Stage, base_model, running, until
from tests.operator.worlds import KEY, NOW, base, snapshot
from tests.redis_process import free_port

KINDS = {"PodDisruptionBudget", "Service", "ServiceAccount", "StatefulSet"}
REFUSED = Failure(APPLY_FAILED, "a webhook does not answer", terminal=False)


class Owner:
    """A base whose objects all have the expected digests."""

    def __init__(self) -> None:
        self.now, self.known = NOW, dict[str, Known]()
        self.failures: Mapping[str, Failure] = {}
        self.children = {each.key: as_applied(each) for each in plan(self.seen()).manifests}

    def seen(self) -> Snapshot:
        return msgspec.structs.replace(snapshot(base(), now=self.now), apply_failures=self.failures)

    def applied(self, after_s: float) -> set[str]:
        """Plan `after_s` later, and return the kinds that the plan applies."""
        self.now += after_s
        found: Plan = plan(msgspec.structs.replace(self.seen(), children=self.children), self.known)
        self.known = dict(found.known)
        return {each.kind for each in found.manifests}


def as_applied(manifest: Manifest) -> Child:
    replicas = manifest.body["spec"]["replicas"] if manifest.kind == "StatefulSet" else 0
    return Child(*manifest.key, applied=manifest.digest, replicas=replicas)


def test_all_of_a_bases_objects_are_applied_again_now_and_then() -> None:
    owner = Owner()
    assert owner.applied(1.0) == set(), "not all at once after a start"
    assert owner.applied(AGAIN_S) == KINDS
    assert owner.applied(1.0) == set()
    assert owner.applied(AGAIN_S - 2.0) == set()
    assert owner.applied(1.0) == KINDS


def test_an_object_whose_repair_failed_stays_due() -> None:
    owner = Owner()
    owner.applied(0.0)
    assert owner.applied(AGAIN_S) == KINDS
    owner.failures = {KEY: REFUSED}
    assert owner.applied(1.0) == KINDS
    owner.failures = {}
    assert owner.applied(1.0) == set()
    owner.failures = {KEY: REFUSED}
    assert owner.applied(1.0) == set(), "another failure has nothing to do with it"


def test_a_clock_that_was_put_back_puts_nothing_off() -> None:
    owner = Owner()
    owner.applied(0.0)
    assert owner.applied(-86_400.0) == KINDS
    assert owner.applied(1.0) == set()
    assert owner.applied(AGAIN_S) == KINDS


def test_after_a_start_bases_come_one_after_another_within_the_while() -> None:
    firsts = [repair(f"uid-{number}", NOW, None, failed=False) for number in range(1000)]
    assert not any(each.now for each in firsts)
    halves = [each.at - NOW for each in firsts]
    assert all(AGAIN_S / 2 <= each < AGAIN_S for each in halves)
    seconds = [int(each) for each in halves]
    assert max(seconds.count(each) for each in seconds) < 20, "some three a second are due on average"


CHANGED = [
    ("StatefulSet", {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}}),
    ("Service", {"spec": {"selector": {"app": "none"}}}),
    ("NetworkPolicy", {"spec": {"policyTypes": ["Ingress", "Egress"]}}),
    ("PodDisruptionBudget", {"spec": {"maxUnavailable": "100%"}}),
    ("ServiceAccount", {"metadata": {"ownerReferences": None}}),
]


def name_of(kind: str) -> str:
    return "smol-engine" if kind == "ServiceAccount" else "smol"


async def objects(stage: Stage) -> dict[str, Any]:
    """Return what people can change of each object, by kind."""
    found = {kind: await stage.get(kind, name_of(kind)) for kind, _ in CHANGED}
    told = ("labels", "annotations", "ownerReferences")

    def shown(each: dict[str, Any]) -> list[Any]:
        return [each.get("spec"), *[each["metadata"].get(name) for name in told]]

    return {kind: each and shown(each) for kind, each in found.items()}


def change(stage: Stage) -> None:
    for kind, patch in CHANGED:
        stage.kubectl("patch", kind, name_of(kind), "--type=merge", "-p", json.dumps(patch))


async def test_changes_by_hand_are_reverted_and_what_is_right_is_left_as_it_is(stage: Stage) -> None:
    await stage.reconcile(base_model())
    await stage.once()
    before = await objects(stage)
    change(stage)
    assert (await stage.once())["manifests"] == len(CHANGED)
    assert await objects(stage) == before
    assert (await stage.once())["manifests"] == 0


async def test_what_was_changed_while_no_operator_ran_is_reverted_after_a_while(stage: Stage) -> None:
    await stage.reconcile(base_model())
    before = await objects(stage)
    change(stage)
    stage.operator(2)
    await stage.once()
    assert await objects(stage) != before
    stage.ahead_s = AGAIN_S
    await stage.once()
    assert await objects(stage) == before
    assert (await stage.once())["manifests"] == 0


async def test_what_others_say_of_an_object_is_no_change_of_it(stage: Stage) -> None:
    await stage.reconcile(base_model())
    for kind, status in [
        ("StatefulSet", {"replicas": 1, "observedGeneration": 1}),
        ("PodDisruptionBudget", {"currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}),
    ]:
        patch = json.dumps({"status": status})
        stage.kubectl("patch", kind, "smol", "--subresource=status", "--type=merge", "-p", patch)
    assert (await stage.once())["manifests"] == 0


class Sighted:
    """The objects that the watch has seen, by uid: from then on, it knows what a change of one is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.uids, self._fingerprint = set[str](), decode.fingerprint
        monkeypatch.setattr(decode, "fingerprint", self._noted)

    def _noted(self, raw: bytes | msgspec.Raw) -> int:
        if threading.current_thread().name == "kopf":
            self.uids.add(json.loads(bytes(raw))["metadata"]["uid"])
        return self._fingerprint(raw)

    async def all(self, stage: Stage) -> bool:
        made = [await stage.get(kind, name_of(kind)) for kind in children.KINDS]
        return all(each is not None and each["metadata"]["uid"] in self.uids for each in made)


async def test_hands_are_noticed_at_once_by_the_watch(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    sighted = Sighted(monkeypatch)
    monkeypatch.setenv("KUBECONFIG", str(stage.server.kubeconfig))
    stage.resync_s = 3600.0
    stage.operator(2)
    stage.apply(base_model())
    engine = stage.engine()
    await engine.report()
    at = f"127.0.0.1:{free_port()}"
    watch = Watch(stage.dirt, stage.feed, [stage.namespace], at, lambda: None, lambda: None, children.KINDS)
    watch.start()
    try:
        async with running(stage, engine):

            async def made() -> bool:
                return all((await objects(stage)).values())

            await until("the objects", made)
            await until("the watch to have seen them", partial(sighted.all, stage))
            before = await objects(stage)

            async def reverted() -> bool:
                return await objects(stage) == before

            await asyncio.to_thread(change, stage)
            await until("the changes to be reverted", reverted)
            for kind in ("poddisruptionbudget", "networkpolicy", "service"):
                await asyncio.to_thread(stage.delete, kind, "smol")
            await until("what was deleted to be back", reverted)
    finally:
        await asyncio.to_thread(watch.stop)


async def test_only_kinds_that_may_be_watched_are(stage: Stage, tmp_path: Path) -> None:
    """The chart's roles may be older than the operator, and kopf ends at a kind that it may not watch."""
    api = kube.connect(str(stage.account(tmp_path)))
    try:
        assert set(await children.watchable(api, [stage.namespace])) == set()
        stage.let_in(stage.namespace)

        async def all_of_them() -> bool:
            return set(await children.watchable(api, [stage.namespace])) == set(children.KINDS)

        await until("the account to be let in", all_of_them)
        assert set(await children.watchable(api, [stage.namespace, ""])) == set()
    finally:
        api.close()


def test_who_changes_an_object_again_and_again_is_answered_ever_more_rarely() -> None:
    manifest = plan(snapshot(base())).manifests[0]
    found = Applied.after(None, manifest)
    assert not found.holds_back(manifest), "the first change is reverted at once"
    waits = []
    for _ in range(20):
        found = Applied.after(found, manifest)
        assert found.holds_back(manifest)
        assert found.again is not None
        waits.append(found.again.at - time.monotonic())
    assert waits[0] <= FIRST_S
    assert CAP_S / 2 - 1 <= waits[-1] <= CAP_S
    other = msgspec.structs.replace(manifest, digest="another")
    assert not found.holds_back(other), "what the spec asks for never waits"
    assert Applied.after(found, other).again is None
