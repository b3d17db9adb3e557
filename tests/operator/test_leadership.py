"""Leading by a Lease of a real API server, some of whose answers are lost on their way back."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
from structlog.testing import capture_logs

from mint_operator import epoch
from mint_operator.epoch import Leadership, LeadershipLost
from mint_operator.kube import KubeError
from tests.operator.stage import Stage, base_model, until
from tests.waiting import PATIENCE_S

LEASE = "mint-operator"
USUAL = {name: getattr(epoch, name) for name in ("RENEW_EVERY_S", "RETRY_S", "RENEW_WITHIN_S")}


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make leaders renew often, so that a test sees many renewals, with ample time for each."""
    monkeypatch.setattr(epoch, "RENEW_EVERY_S", 0.05)
    monkeypatch.setattr(epoch, "RETRY_S", 0.05)
    monkeypatch.setattr(epoch, "RENEW_WITHIN_S", 600.0)


class Lossy:
    """An API server that stores writes, but whose answers are lost `losses` times."""

    def __init__(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.losses, self.answered = 0, 0
        for name in ("create", "replace"):
            monkeypatch.setattr(stage.kube, name, self._losing(getattr(stage.kube, name)))

    def _losing(self, write: Any) -> Any:
        async def written(body: Mapping[str, Any]) -> bytes:
            raw: bytes = await write(body)
            if self.losses:
                self.losses -= 1
                raise KubeError("PUT lease", 0, "the API server did not answer (connection reset)")
            self.answered += 1
            return raw

        return written


class Clock:
    """The clock of a Lease's holder, which can be put forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_s, real = 0.0, epoch.now
        monkeypatch.setattr(epoch, "now", lambda: real() + self.ahead_s)

    def late(self, write: Any) -> Any:
        """Return this write of the Lease with an answer that comes when the Lease may have run out."""

        async def written(body: Mapping[str, Any]) -> bytes:
            raw: bytes = await write(body)
            self.ahead_s += 2 * epoch.RENEW_WITHIN_S
            return raw

        return written


def candidate(stage: Stage) -> Leadership:
    return Leadership(stage.kube, stage.namespace, LEASE, "one")


async def test_a_leader_that_misses_an_answer_leads_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    api, leader = Lossy(stage, monkeypatch), candidate(stage)
    await asyncio.wait_for(leader.acquire(), PATIENCE_S)
    keeping = asyncio.create_task(leader.renew_forever())
    api.losses, before = 1, api.answered

    async def renewed() -> bool:
        return keeping.done() or (not api.losses and api.answered > before + 2)

    await until("renewals after the loss", renewed)
    assert not keeping.done()
    keeping.cancel()
    with suppress(asyncio.CancelledError):
        await keeping


async def test_a_candidate_that_misses_the_answer_leads_at_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch, "LEASE_S", 86_400)  # nobody waits for the lease to run out
    api, leader = Lossy(stage, monkeypatch), candidate(stage)
    api.losses = 1
    found = await asyncio.wait_for(leader.acquire(), PATIENCE_S)
    lease = await stage.get("Lease", LEASE)
    assert lease is not None
    assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == ("one", found)


async def test_a_leader_that_ends_while_a_renewal_is_under_way_lets_the_next_lead_at_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that sends the renewal goes on when the task that waits for it is cancelled."""
    leader, renewed, replace = candidate(stage), asyncio.Event(), stage.kube.replace
    await asyncio.wait_for(leader.acquire(), PATIENCE_S)

    async def unanswered(body: Mapping[str, Any]) -> bytes:
        await replace(body)
        renewed.set()
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    monkeypatch.setattr(stage.kube, "replace", unanswered)
    keeping = asyncio.create_task(leader.renew_forever())
    await asyncio.wait_for(renewed.wait(), PATIENCE_S)
    keeping.cancel()
    with suppress(asyncio.CancelledError):
        await keeping
    monkeypatch.setattr(stage.kube, "replace", replace)
    await leader.release()
    lease = await stage.get("Lease", LEASE)
    assert lease is not None
    assert not lease["spec"].get("holderIdentity")


@pytest.mark.parametrize(
    "theirs", [{"holderIdentity": "two"}, {"leaseTransitions": 2_000_000_000}, {"holderIdentity": None}]
)
async def test_a_leader_whose_lease_is_not_as_it_holds_it_leads_no_more(stage: Stage, theirs: dict[str, Any]) -> None:
    leader = candidate(stage)
    await asyncio.wait_for(leader.acquire(), PATIENCE_S)
    lease = await stage.get("Lease", LEASE)
    assert lease is not None
    await stage.kube.replace(lease | {"spec": lease["spec"] | theirs})
    with pytest.raises(LeadershipLost, match="taken over or removed"):
        await asyncio.wait_for(leader.renew_forever(), PATIENCE_S)


async def test_a_candidate_whose_answer_comes_when_the_lease_may_have_run_out_does_not_lead_by_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, leader = Clock(monkeypatch), candidate(stage)
    monkeypatch.setattr(stage.kube, "create", clock.late(stage.kube.create))
    with capture_logs() as logs:
        await asyncio.wait_for(leader.acquire(), PATIENCE_S)
    assert clock.ahead_s, "the first answer was late"
    assert [each["event"] for each in logs] == ["lease acquired too late to lead by it", "leading"]
    leader.check()


async def test_a_leader_whose_renewal_is_answered_when_the_lease_may_have_run_out_leads_no_more(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time that a renewal may take would have run out before, had this process not stood still."""
    clock, leader = Clock(monkeypatch), candidate(stage)
    await asyncio.wait_for(leader.acquire(), PATIENCE_S)
    monkeypatch.setattr(stage.kube, "replace", clock.late(stage.kube.replace))
    with pytest.raises(LeadershipLost, match=r"was not renewed for .* s \(this process may have stood still\)"):
        await asyncio.wait_for(leader.renew_forever(), PATIENCE_S)


async def test_a_leader_whose_renewal_is_not_answered_while_the_lease_is_surely_its_own_leads_no_more(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, leader = Clock(monkeypatch), candidate(stage)
    await asyncio.wait_for(leader.acquire(), PATIENCE_S)

    async def unanswered(_: Mapping[str, Any]) -> bytes:
        clock.ahead_s += epoch.RENEW_WITHIN_S
        raise TimeoutError

    monkeypatch.setattr(stage.kube, "replace", unanswered)
    with pytest.raises(LeadershipLost, match=r"was not renewed for .* s \(the API server did not answer\)"):
        await asyncio.wait_for(leader.renew_forever(), PATIENCE_S)


async def test_a_leader_keeps_its_lease_while_each_renewal_takes_nearly_four_seconds(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed_s, answers = 0.0, 0
    for name, seconds in USUAL.items():
        monkeypatch.setattr(epoch, name, seconds)
    monkeypatch.setattr(epoch, "now", lambda: passed_s)
    leader, replace, sleep = candidate(stage), stage.kube.replace, asyncio.sleep
    await leader.acquire()

    async def slept(seconds: float) -> None:
        nonlocal passed_s
        passed_s += max(seconds, 0.0)
        await sleep(0)

    async def slow(body: Mapping[str, Any]) -> bytes:
        nonlocal passed_s, answers
        raw = await replace(body)
        passed_s, answers = passed_s + 3.9, answers + 1
        leader.check()
        if answers == 5:
            raise asyncio.CancelledError
        return raw

    monkeypatch.setattr(stage.kube, "replace", slow)
    monkeypatch.setattr(asyncio, "sleep", slept)
    with suppress(asyncio.CancelledError):
        await leader.renew_forever()
    assert answers == 5


async def test_a_leader_that_stood_still_writes_nothing_more_to_the_api_server(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, leader = Clock(monkeypatch), candidate(stage)
    await asyncio.wait_for(leader.acquire(), PATIENCE_S)
    stage.kube.fence = leader.check
    await stage.reconcile(base_model())
    workload, base = await stage.get("StatefulSet", "smol"), await stage.status("BaseModel", "smol")
    assert workload is not None
    stage.apply(base_model(slots=4))
    clock.ahead_s = epoch.RENEW_WITHIN_S + 1
    with pytest.raises(LeadershipLost, match="may have stood still"):
        await asyncio.wait_for(stage.loop.run(), PATIENCE_S)
    assert await stage.get("StatefulSet", "smol") == workload
    assert await stage.status("BaseModel", "smol") == base


async def test_a_leader_that_has_given_up_its_lease_writes_nothing_more(stage: Stage) -> None:
    leader = candidate(stage)
    await asyncio.wait_for(leader.acquire(), PATIENCE_S)
    leader.check()
    await leader.release()
    with pytest.raises(LeadershipLost):
        leader.check()
