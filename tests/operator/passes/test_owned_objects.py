"""A base's objects in a real API server: owned by it, kept as planned, never taken over from others."""

import msgspec

from mint_operator.planning.snapshot import Release
from tests.operator.stage import ADAPTERS, RELEASE, Stage, adapter_wave, base_model


async def test_a_base_becomes_its_objects_owned_by_it(stage: Stage) -> None:
    await stage.reconcile(base_model())
    base = await stage.get("BaseModel", "smol")
    assert base is not None
    for kind, name in [
        ("StatefulSet", "smol"),
        ("Service", "smol"),
        ("PodDisruptionBudget", "smol"),
        ("NetworkPolicy", "smol"),
        ("ServiceAccount", "smol-engine"),
    ]:
        found = await stage.get(kind, name)
        assert found is not None, kind
        (owner,) = found["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (base["metadata"]["uid"], True)
        assert found["metadata"]["labels"]["mint.dev/base-model"] == "smol"


async def test_one_base_that_cannot_be_applied_hinders_no_other(stage: Stage) -> None:
    bad = base_model(engine={"nodeSelector": {"no such label!": "x"}}) | {"metadata": {"name": "bad"}}
    await stage.reconcile(bad, base_model(), adapter_wave("demo", ADAPTERS))
    await stage.engine().obey()
    await stage.once()
    assert (await stage.condition("BaseModel", "bad"))["reason"] == "ApplyFailed"
    assert (await stage.status("AdapterWave", "demo"))["phase"] == "Ready"
    assert (await stage.status("BaseModel", "smol"))["phase"] == "Ready"


async def test_an_object_of_somebody_else_is_never_taken_over(stage: Stage) -> None:
    theirs = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "smol"}, "spec": {"ports": [{"port": 80}]}}
    await stage.reconcile(theirs, base_model())
    await stage.once()
    found = await stage.get("Service", "smol")
    assert found is not None
    assert [port["port"] for port in found["spec"]["ports"]] == [80]
    assert "is not MinT's" in (await stage.condition("BaseModel", "smol"))["message"]


async def test_engines_that_somebody_scaled_are_scaled_back(stage: Stage) -> None:
    await stage.reconcile(base_model())
    stage.server.kubectl("scale", "-n", stage.namespace, "statefulset/smol", "--replicas=5")
    await stage.once()
    found = await stage.get("StatefulSet", "smol")
    assert found is not None
    assert found["spec"]["replicas"] == 1


async def test_engines_get_redis_password_from_a_secret_of_their_own_namespace(stage: Stage) -> None:
    stage.release = Release(image=RELEASE.image, redis_url=RELEASE.redis_url, redis_password="hush", redis_digest="1")
    stage.operator(1)
    await stage.reconcile(base_model())
    secret = await stage.get("Secret", "mint-engine-redis")
    assert secret is not None
    assert secret["data"] == {"password": "aHVzaA=="}
    pods = await stage.get("StatefulSet", "smol")
    assert pods is not None
    assert "hush" not in str(pods)
    assert (await stage.once())["manifests"] == 0


async def test_engines_wait_for_the_secret_with_which_they_are_to_start_anew(
    stage: Stage,
) -> None:
    """They would restart with the Secret's old content, and not restart again for the new one."""
    theirs = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mint-engine-redis"}}
    await stage.reconcile(base_model())
    before = await stage.get("StatefulSet", "smol")
    assert before is not None
    stage.apply(theirs)
    stage.release = msgspec.structs.replace(RELEASE, redis_password="hush", redis_digest="1")
    stage.operator(2)
    for _ in range(2):
        await stage.once()
    assert await stage.get("StatefulSet", "smol") == before
    assert "is not MinT's" in (await stage.condition("BaseModel", "smol", "EnginesReady"))["message"]
    stage.delete("secret", "mint-engine-redis")
    stage.operator(3)
    await stage.once()
    after = await stage.get("StatefulSet", "smol")
    assert after is not None
    assert after["spec"]["template"]["metadata"]["annotations"]["mint.dev/redis"] == "1"
