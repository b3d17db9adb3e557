"""An operator without its CRDs says what to apply, and waits; one whose CRDs are removed ends, to start like that."""

import signal
from functools import partial
from pathlib import Path

import pytest
import structlog
from redis.asyncio import Redis

from mint_operator import crds
from mint_operator.kube import OWN, Kube, KubeError
from tests.apiserver import ROOT, serve, serve_without_crds
from tests.operator.operator_process import Process, running
from tests.operator.stage import base_model, staged, until


async def test_it_says_what_to_apply_and_watches_once_they_are_there(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, redis_client: Redis, redis_server: str
) -> None:
    with (
        serve_without_crds(tmp_path_factory.mktemp("bare")) as server,
        staged(server, server.namespace("early"), redis_client) as stage,
        running(stage, redis_server, tmp_path, "early", resyncs=False) as operator,
    ):
        lacks = "the cluster lacks {} of mint.dev/v1alpha1; apply MinT's CRDs"
        await until("both to be missed", partial(missing_logged, operator, lacks.format("AdapterWave and BaseModel")))
        await until("its probe to answer", operator.healthy)
        server.kubectl("apply", "--server-side", "-f", str(ROOT / "crds" / "mint.dev_basemodels.yaml"))
        await until("one to be missed", partial(missing_logged, operator, lacks.format("AdapterWave")))
        assert not operator.events("pass"), "nothing is begun by halves"
        server.apply_crds()
        await until("a first pass over everything", partial(logged, operator, "pass"))
        assert operator.events("CRDs are there")
        stage.apply(base_model())
        await until("its engines, though nothing is listed again", partial(stage.get, "StatefulSet", "smol"))
        await until("its probe to answer", operator.healthy)
        operator.process.send_signal(signal.SIGTERM)
        assert await operator.ended() == 0


async def test_once_they_are_removed_it_ends_to_wait_for_them_anew(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, redis_client: Redis, redis_server: str
) -> None:
    """Kopf ends when a kind is removed; an operator that continued would see no changes any more."""
    with (
        serve(tmp_path_factory.mktemp("bare")) as server,
        staged(server, server.namespace("late"), redis_client) as stage,
        running(stage, redis_server, tmp_path, "late") as operator,
    ):
        stage.apply(base_model())
        await until("its engines", partial(stage.get, "StatefulSet", "smol"))
        server.kubectl("delete", "crd", "basemodels.mint.dev", "adapterwaves.mint.dev")
        assert await operator.ended() == 1
        assert operator.events("kopf ended")


class Answering(Kube):
    """An API server whose discovery gives these answers, one after another."""

    def __init__(self, *answers: frozenset[str] | KubeError) -> None:
        self._answers = iter(answers)

    async def kinds(self) -> frozenset[str]:
        answer = next(self._answers)
        if isinstance(answer, KubeError):
            raise answer
        return answer


async def test_an_api_server_that_goes_away_meanwhile_is_not_said_to_lack_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(crds, "delay_s", lambda *_, **__: 0.0)
    away = KubeError("GET /apis", 0, "the API server did not answer")
    with structlog.testing.capture_logs() as logs:
        assert await crds.awaited(Answering(frozenset(), away, OWN))
    assert [each["event"] for each in logs] == ["CRDs are missing", "CRDs not looked up", "CRDs are there"]
    assert logs[1]["error"] == str(away)


async def test_an_api_server_that_is_away_at_the_start_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crds, "delay_s", lambda *_, **__: 0.0)
    away = KubeError("GET /apis", 0, "the API server did not answer")
    assert await crds.awaited(Answering(away, away, OWN)), "the watch found nothing: it begins anew"


async def test_permissions_are_not_awaited() -> None:
    assert not await crds.awaited(Answering(KubeError("GET /apis", 403, "forbidden")))


async def missing_logged(operator: Process, says: str) -> bool:
    return any(each["error"].startswith(says) for each in operator.events("CRDs are missing"))


async def logged(operator: Process, event: str) -> bool:
    return bool(operator.events(event))
