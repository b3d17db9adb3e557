"""Manual changes to a base's objects are reverted after a while, in few writes."""

import json
from collections.abc import Mapping

import msgspec

from mint_contracts.records import Failure
from mint_operator.planning.base_plan import Known
from mint_operator.planning.conditions import APPLY_FAILED
from mint_operator.planning.manifests import Manifest
from mint_operator.planning.plan import Plan, plan
from mint_operator.planning.repair import AGAIN_S, repair
from mint_operator.planning.snapshot import Child, Snapshot
from tests.operator.stage import Stage, base_model
from tests.operator.worlds import KEY, NOW, base, snapshot

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


async def test_drift_of_every_object_is_put_right_and_what_is_right_is_left_as_it_is(stage: Stage) -> None:
    stage.apply(base_model())
    await stage.once()
    await stage.once()
    before = {kind: await stage.get(kind, "smol") for kind in ("StatefulSet", "Service", "NetworkPolicy")}
    budget = await stage.get("PodDisruptionBudget", "smol")
    stage.kubectl("set", "image", "statefulset/smol", "engine=other:1")
    stage.kubectl("patch", "service/smol", "--type=merge", "-p", json.dumps({"spec": {"selector": {"app": "none"}}}))
    opened = [{"op": "replace", "path": "/spec/ingress", "value": [{}]}]
    stage.kubectl("patch", "networkpolicy/smol", "--type=json", "-p", json.dumps(opened))
    await stage.once()
    stage.ahead_s = AGAIN_S
    await stage.once()
    for kind, each in before.items():
        found = await stage.get(kind, "smol")
        assert found is not None
        assert each is not None
        assert found["spec"] == each["spec"], kind
    assert await stage.get("PodDisruptionBudget", "smol") == budget
    assert (await stage.once())["manifests"] == 0
