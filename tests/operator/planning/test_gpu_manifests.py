"""What engines on GPUs ask Kubernetes for."""

from typing import Any

from mint_contracts.resources import (
    EngineSpec,
    Resources,
)
from mint_contracts.settings import ENGINE_SETTINGS
from mint_operator.planning.podspec import engine_settings
from tests.operator.rendered import Body, container, pod, with_spec
from tests.operator.worlds import base


def test_cuda_asks_for_one_gpu_unless_told_otherwise() -> None:
    one = container(with_spec(engine=EngineSpec(device="cuda")))["resources"]
    assert one == {"limits": {"nvidia.com/gpu": 1}, "requests": {"nvidia.com/gpu": 1}}
    four = Resources(limits={"nvidia.com/gpu": 4, "memory": "64Gi"}, requests={"memory": "32Gi"})
    found = container(with_spec(engine=EngineSpec(device="cuda", resources=four)))["resources"]
    assert found["limits"]["nvidia.com/gpu"] == found["requests"]["nvidia.com/gpu"] == 4
    assert container(base())["resources"] == {}


def test_an_engine_with_a_part_of_a_gpu_gets_no_complete_one_as_well() -> None:
    """Slices and shared GPUs have their own names; a pod that also asks for a full GPU may never be scheduled."""
    for name in ("nvidia.com/mig-3g.40gb", "nvidia.com/gpu.shared"):
        for asked in (Resources(limits={name: 1}), Resources(requests={name: 1})):
            found = container(with_spec(engine=EngineSpec(device="cuda", resources=asked)))["resources"]
            assert found["limits"] == {name: 1}
            assert found.get("requests", {name: 1}) == {name: 1}


def test_other_resources_of_nvidias_operators_do_not_replace_a_gpu() -> None:
    """Their Network Operator names network devices nvidia.com/hostdev."""
    asked = Resources(limits={"nvidia.com/hostdev": 1})
    found = container(with_spec(engine=EngineSpec(device="cuda", tensor_parallel_size=2, resources=asked)))
    assert found["resources"]["limits"] == {"nvidia.com/hostdev": 1, "nvidia.com/gpu": 2}


def test_resources_of_device_plugins_are_requested_as_kubernetes_requires() -> None:
    """In Kubernetes, "non overcommitable resources" need a limit, and the request must equal it."""
    for asked in (
        Resources(requests={"nvidia.com/gpu": 2, "cpu": 1}),
        Resources(requests={"nvidia.com/gpu": 1, "cpu": 1}, limits={"nvidia.com/gpu": 2}),
    ):
        found = container(with_spec(engine=EngineSpec(device="cuda", resources=asked)))["resources"]
        assert found == {"requests": {"nvidia.com/gpu": 2, "cpu": 1}, "limits": {"nvidia.com/gpu": 2}}
    nic = Resources(requests={"rdma/hca": 1})
    found = container(with_spec(engine=EngineSpec(resources=nic)))["resources"]
    assert found == {"requests": {"rdma/hca": 1}, "limits": {"rdma/hca": 1}}


def test_every_rank_computes_on_a_gpu_of_its_own() -> None:
    ranks = with_spec(engine=EngineSpec(device="cuda", tensor_parallel_size=4))
    assert container(ranks)["resources"]["limits"] == {"nvidia.com/gpu": 4}
    assert engine_settings(ranks).tensor_parallel_size == 4
    variables = {each["name"]: each for each in container(base())["env"]}
    assert "tensorParallelSize" not in variables[ENGINE_SETTINGS]["value"], "what is new restarts no engine"


def test_ranks_on_gpus_of_one_pod_have_memory_to_meet_in_and_nobody_else_does() -> None:
    """NCCL fails with the 64 MiB of shared memory that container runtimes provide."""

    def shared(**engine: Any) -> list[Body]:
        of = with_spec(engine=EngineSpec(**engine))
        mounts = [each["name"] for each in container(of)["volumeMounts"] if each["mountPath"] == "/dev/shm"]
        return [volume["emptyDir"] for volume in pod(of)["volumes"] if volume["name"] in mounts]

    [memory] = shared(device="cuda", tensor_parallel_size=8)
    assert memory["medium"] == "Memory"
    assert int(memory["sizeLimit"]) >= 8 * 7 * 10_000_000
    assert shared(device="cuda") == shared(device="cpu", tensor_parallel_size=8) == []
