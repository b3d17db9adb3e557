"""The configuration of the node's programs."""

import json
import tomllib

from e2e.cluster.native import config, plan
from e2e.cluster.native.addons import manifests, storage_config, storage_pod
from e2e.cluster.native.components import API_READY, components
from e2e.cluster.native.images import HOST_IMAGE
from e2e.cluster.native.layout import Layout


def test_containerd_survives_a_root_that_may_not_lower_the_oom_score() -> None:
    document = tomllib.loads(config.containerd())
    cri = document["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["restrict_oom_score_adj"] is True
    assert cri["sandbox_image"] == config.PAUSE_IMAGE
    assert set(cri["containerd"]["runtimes"]) == {"runc", config.RUNTIME_HANDLER}
    assert "base_runtime_spec" not in cri["containerd"]["runtimes"]["runc"]


def test_the_kubelet_keeps_images_and_pods_to_this_cluster(layout: Layout) -> None:
    document = json.loads(config.kubelet(layout))
    assert document["imageGCHighThresholdPercent"] == 100
    assert document["cgroupRoot"] == f"/{layout.cgroup}"
    assert document["clusterDNS"] == [str(layout.dns_ip)]
    assert document["authentication"]["anonymous"] == {"enabled": False}


def test_pods_get_addresses_from_the_subnet_whose_gateway_is_their_dns(layout: Layout) -> None:
    bridge, _ = json.loads(config.cni(layout))["plugins"]
    assert bridge["ipam"]["ranges"] == [[{"subnet": str(layout.pod_subnet)}]]
    assert f"bind {layout.dns_ip}" in config.corefile(layout)


def test_the_machine_has_a_name_for_pods_in_a_server_block_of_its_own(layout: Layout) -> None:
    first, second = config.corefile(layout).split("\n}\n")[:2]
    assert f"{layout.machine_ip} host.mint.internal" in first
    assert "kubernetes" not in first
    assert "hosts" not in second


def test_kube_proxy_leaves_the_machines_connection_limits_alone(layout: Layout) -> None:
    assert json.loads(config.kube_proxy(layout))["conntrack"] == {"maxPerCore": 0, "min": 0}


def test_only_etcd_containerd_and_the_api_server_start_before_the_api_answers(layout: Layout) -> None:
    gates = {component.name: component.gate for component in components(layout)}
    assert {name for name, gate in gates.items() if gate is None} == {"etcd", "containerd", "kube-apiserver"}
    assert {gate for gate in gates.values() if gate} == {API_READY}


def test_programs_of_the_cache_are_called_by_their_path(layout: Layout) -> None:
    called = {component.name: component.argv[0] for component in components(layout)}
    assert called.pop("containerd") == "containerd"
    assert called == {name: f"{layout.binaries}/{name}" for name in called}


def test_a_plan_survives_being_written_and_read(layout: Layout) -> None:
    written = plan.Plan(layout, components(layout), (layout.binaries,))
    assert plan.from_text(plan.to_text(written)) == written


def test_the_storage_class_is_the_default_and_its_folders_lie_in_the_data_folder(layout: Layout) -> None:
    items = {item["kind"]: item for item in json.loads(manifests())["items"]}
    annotations = items["StorageClass"]["metadata"]["annotations"]
    assert annotations == {"storageclass.kubernetes.io/is-default-class": "true"}
    paths = json.loads(storage_config(layout.data / "volumes"))["nodePathMap"][0]["paths"]
    assert paths == [f"{layout.data}/volumes"]


def test_the_pod_that_makes_folders_runs_as_root_from_the_host_image() -> None:
    spec = json.loads(storage_pod())["spec"]
    assert spec["runtimeClassName"] == config.RUNTIME_HANDLER
    assert spec["containers"][0]["image"] == HOST_IMAGE
    assert spec["containers"][0]["securityContext"]["runAsUser"] == 0
