"""`mint-operator` as a process: it watches, leads, stands by, hands over, and stops when it may no longer write."""

import asyncio
import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mint_contracts import keys
from mint_contracts.map_reader import MapReader
from mint_contracts.records import Failure
from tests.importing import ends_while_it_imports
from tests.operator.operator_process import Process, answers, running
from tests.operator.stage import Stage, adapter_wave, base_model, until

ADAPTERS = ["demo/json", "demo/pirate"]


@pytest.fixture
def launch(stage: Stage, redis_server: str, tmp_path: Path) -> Iterator[Any]:
    """Start operators that end with the test."""
    with ExitStack() as stack:
        yield lambda name, **given: stack.enter_context(running(stage, redis_server, tmp_path, name, **given))


async def test_it_watches_places_reports_and_ends_on_a_signal(stage: Stage, launch: Any) -> None:
    operator = launch("only")
    stage.apply(base_model(), adapter_wave("demo", ADAPTERS))
    engine = stage.engine()
    await until("assignments", engine.assigned)

    async def ready() -> bool:
        await engine.obey()
        return (await stage.status("AdapterWave", "demo")).get("phase") == "Ready"

    await until("the wave to be Ready", ready)
    await until("its probe to answer", operator.healthy)
    seen_by: list[set[str]] = []
    while not any("waves" not in parts for parts in seen_by):
        # The watch reported the wave and nothing was listed; if a resync interferes, the next wave decides.
        assert len(seen_by) < 5, seen_by
        before, name = len(_map_writes(operator)), f"more-{len(seen_by)}"
        stage.apply(adapter_wave(name, [f"demo/{name}"]))
        await until("another wave's placement", partial(_placed, stage, f"demo/{name}"))
        seen_by.append((await until("that pass to be told", partial(_map_writes_after, operator, before)))[0])
    operator.process.send_signal(signal.SIGTERM)
    assert await operator.ended() == 0
    lease = await stage.get("Lease", "mint-operator")
    assert lease is not None
    assert not lease["spec"].get("holderIdentity")
    for found in (await stage.get("BaseModel", "smol"), await stage.get("AdapterWave", "demo")):
        assert found is not None
        assert "finalizers" not in found["metadata"]
        assert [key for key in found["metadata"].get("annotations", {}) if "kopf" in key] == []


async def test_told_to_end_it_does_while_it_still_imports(tmp_path: Path) -> None:
    assert await ends_while_it_imports("mint_operator.main", "kopf", tmp_path) == 0


def _map_writes(operator: Process) -> list[set[str]]:
    """Return the parts observed by each pass that wrote the map."""
    return [set(each["parts"]) for each in operator.events("pass") if each.get("changes")]


async def _map_writes_after(operator: Process, number: int) -> list[set[str]]:
    return _map_writes(operator)[number:]


async def test_log_lines_have_the_base_the_wave_the_engine_and_the_adapter_that_they_are_about(
    stage: Stage, launch: Any
) -> None:
    operator: Process = launch("only")
    stage.apply(base_model(), adapter_wave("demo", ADAPTERS))
    engine = stage.engine()
    await until("assignments", engine.assigned)

    async def failures_logged() -> list[dict[str, Any]]:
        await engine.obey(failures={ADAPTERS[0]: Failure("CorruptFile", "truncated", terminal=True)})
        return operator.events("adapter failed")

    wave = {"base": stage.base, "wave": f"{stage.namespace}/demo", "kind": "AdapterWave"}
    failed = await until("the failure to be told", failures_logged)
    assert _of(failed[0], wave | {"adapter": ADAPTERS[0], "engine": engine.name, "reason": "CorruptFile"})
    assert len(failed) == 1
    assert any(_of(line, wave) for line in operator.events("phase changed"))
    written = operator.events("placement map written")
    placed = {"waves": [wave["wave"]], "engines": [engine.name], "adapters": ADAPTERS}
    assert any(_of(line, placed | {"base": stage.base}) for line in written)
    made = {"base": stage.base, "namespace": stage.namespace, "kind": "StatefulSet", "name": "smol"}
    assert any(_of(line, made) for line in operator.events("object applied"))
    assert not any("wave" in line or "adapter" in line for line in operator.events("pass")), "nor any other"


def _of(line: dict[str, Any], fields: dict[str, Any]) -> bool:
    return fields.items() <= line.items()


async def test_a_second_operator_stands_by_until_the_first_is_gone(stage: Stage, launch: Any) -> None:
    first = launch("first")
    await until("the first to lead", lambda: _logged(first, "leading"))
    second = launch("second")
    await until("the second to stand by", lambda: _logged(second, "standing by"))
    stage.apply(base_model(), adapter_wave("demo", ADAPTERS))
    await until("placements", lambda: _placed(stage, ADAPTERS[0]))
    assert second.events("pass") == []
    await until("its probe to answer", second.healthy)
    first.process.kill()
    # Nobody renews the killed operator's lease: shorten it, as waiting out ten seconds would prove nothing.
    promise = '{"spec": {"leaseDurationSeconds": 1}}'
    stage.server.kubectl("patch", "lease/mint-operator", "-n", stage.namespace, "--type=merge", "-p", promise)
    await until("the second to lead", lambda: _logged(second, "leading"))
    assert second.events("leading")[0]["epoch"] > first.events("leading")[0]["epoch"]
    stage.apply(adapter_wave("more", ["demo/more"]))
    await until("the second's placements", lambda: _placed(stage, "demo/more"))


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
async def test_on_a_cluster_of_ipv6_it_answers_at_such_addresses(stage: Stage, launch: Any) -> None:
    operator = launch("six", pod_ip="fd00::7")
    await until("it to lead", lambda: _logged(operator, "leading"))
    await until("its probe to answer", partial(operator.healthy, "[::1]"))
    for host in ("[::1]", "127.0.0.1"):  # Prometheus may come by either
        assert await asyncio.to_thread(answers, f"http://{host}:{operator.metrics_port}/metrics")


async def test_operators_of_two_releases_in_one_namespace_lead_each_by_its_own_lease(
    stage: Stage, launch: Any
) -> None:
    for lease in ("mint-operator", "second-mint-operator"):
        operator = launch(f"of-{lease}", lease=lease)
        await until("it to lead", partial(_logged, operator, "leading"))
        held = await stage.get("Lease", lease)
        assert held is not None
        assert held["spec"]["holderIdentity"].startswith(f"of-{lease}_")


async def test_an_operator_that_another_has_overtaken_ends_with_an_error(stage: Stage, launch: Any) -> None:
    operator = launch("overtaken")
    stage.apply(base_model())
    await until("the base in the map", MapReader(stage.redis).bases)
    await stage.redis.set(keys.epoch(stage.base), str(operator.events("leading")[0]["epoch"] + 1))
    stage.apply(adapter_wave("demo", ADAPTERS))
    assert await operator.ended() == 1
    assert (
        "newer writer"
        in operator.events("no longer the leader; exiting so that nothing stale is written")[0]["error"]
    )
    assert await MapReader(stage.redis).placements(stage.base) == {}


async def test_the_release_installed_first_takes_a_namespace_over_from_a_later_one(stage: Stage, launch: Any) -> None:
    now = int(time.time() // 60)
    first_installed, second_installed = now - 2000, now - 1000
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": {"leaseTransitions": first_installed}}
    stage.apply(lease | {"metadata": {"name": "mint-operator"}})
    await stage.redis.set(keys.epoch(stage.base), str(second_installed))
    launch("first")
    stage.apply(base_model(), adapter_wave("demo", ADAPTERS))
    await until("placements", lambda: _placed(stage, ADAPTERS[0]))


async def test_an_operator_whose_lease_was_taken_ends_with_an_error(stage: Stage, launch: Any) -> None:
    operator = launch("robbed")
    await until("it to lead", lambda: _logged(operator, "leading"))
    theirs = '{"spec": {"holderIdentity": "somebody-else"}}'
    stage.server.kubectl("patch", "lease/mint-operator", "-n", stage.namespace, "--type=merge", "-p", theirs)
    assert await operator.ended() == 1


async def test_a_namespace_that_may_not_be_read_is_left_out_and_taken_in_again(
    stage: Stage, launch: Any, tmp_path: Path
) -> None:
    kept, other = stage.namespace, stage.server.namespace(f"{stage.namespace}-other")
    start = partial(launch, kubeconfig=stage.account(tmp_path), namespaces=[kept, other], look_s=0.5)
    stage.let_in(kept, other)
    of_other = json.dumps(base_model())
    operator = start("over-both")
    stage.server.kubectl("apply", "-n", other, "-f", "-", stdin=of_other)
    await until("the other's base in the map", lambda: _known(stage, f"{other}/smol"))
    stage.server.kubectl("delete", "rolebinding/operator", "-n", other)  # as the namespace's deletion does
    await operator.ended()
    assert await _known(stage, f"{other}/smol")

    operator = start("over-one")
    stage.apply(base_model(), adapter_wave("demo", ADAPTERS))
    await until("placements", lambda: _placed(stage, ADAPTERS[0]))
    assert [each["namespace"] for each in operator.events("namespace left out")] == [other]
    await until("the other's base to be forgotten", lambda: _forgotten(stage, f"{other}/smol"))
    await until("its probe to answer", operator.healthy)
    stage.let_in(other)
    assert await operator.ended() == 0

    operator = start("over-both-again")
    await until("the other's base in the map again", lambda: _known(stage, f"{other}/smol"))
    assert not operator.events("namespace left out")


async def test_an_operator_that_may_read_no_namespace_says_so(stage: Stage, launch: Any, tmp_path: Path) -> None:
    operator = launch("barred", kubeconfig=stage.account(tmp_path))
    assert await operator.ended() == 1
    assert f"may not read any of {stage.namespace}" in operator.events("cannot start")[0]["error"]


async def _known(stage: Stage, base: str) -> bool:
    return base in await MapReader(stage.redis).bases()


async def _forgotten(stage: Stage, base: str) -> bool:
    return not await _known(stage, base)


async def _logged(process: Process, event: str) -> bool:
    return bool(process.events(event))


async def _placed(stage: Stage, adapter: str) -> bool:
    return adapter in await MapReader(stage.redis).placements(stage.base)
