"""The Kubernetes objects that the operator makes for a BaseModel."""

import json
import re
from typing import Any

import msgspec
import pytest

from mint_contracts.resources import (
    AdapterLimits,
    AdapterStore,
    BaseSource,
    EngineCache,
    EngineSpec,
    SecretRef,
)
from mint_contracts.settings import ENGINE_PORT, ENGINE_SETTINGS, METRICS_PORT, EngineSettings
from mint_contracts.source import Source
from mint_operator.planning.manifests import APPLIED, redis_secret
from mint_operator.planning.podspec import BUNDLE_VARIABLES, engine_settings
from mint_operator.planning.snapshot import ObservedBase, Release
from tests.operator.rendered import Body, container, pod, rendered, with_spec
from tests.operator.training_worlds import base as training_base
from tests.operator.worlds import RELEASE, base

GATEWAYS = {"app.kubernetes.io/name": "mint", "app.kubernetes.io/component": "gateway"}


def env(of: ObservedBase, release: Release = RELEASE) -> dict[str, Body]:
    return {each["name"]: each for each in container(of, release)["env"]}


def test_engines_have_stable_names_and_start_together() -> None:
    spec = rendered(base())["StatefulSet"].body["spec"]
    assert (spec["replicas"], spec["serviceName"], spec["podManagementPolicy"]) == (2, "smol", "Parallel")
    assert spec["updateStrategy"] == {"type": "RollingUpdate"}
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert labels["app.kubernetes.io/managed-by"] == "mint"
    assert labels["mint.dev/base-model"] == "smol"


def test_engines_are_asked_by_the_releases_gateways_alone_and_measured_by_anybody() -> None:
    release = msgspec.structs.replace(RELEASE, gateway_namespace="mint-system", gateway_labels=GATEWAYS)
    found = rendered(base(), release)
    policy = found["NetworkPolicy"].body["spec"]
    labels = found["StatefulSet"].body["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["policyTypes"] == ["Ingress"]
    grpc, metrics = policy["ingress"]
    assert grpc["ports"] == [{"port": ENGINE_PORT, "protocol": "TCP"}]
    assert metrics == {"ports": [{"port": METRICS_PORT, "protocol": "TCP"}]}
    (peer,) = grpc["from"]
    assert peer["podSelector"]["matchLabels"] == GATEWAYS
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "mint-system"}


def test_where_the_installation_wants_no_policies_there_are_none() -> None:
    assert "NetworkPolicy" not in rendered(base())


def test_the_guard_stands_before_the_engines() -> None:
    release = msgspec.structs.replace(RELEASE, gateway_labels=GATEWAYS)
    kinds = list(rendered(base(), release))
    assert kinds.index("NetworkPolicy") < kinds.index("StatefulSet")


def test_service_and_budget_select_the_engines() -> None:
    found = rendered(base())
    labels = found["StatefulSet"].body["spec"]["template"]["metadata"]["labels"]
    service, budget = found["Service"].body["spec"], found["PodDisruptionBudget"].body["spec"]
    assert service["clusterIP"] == "None"
    assert service["selector"].items() <= labels.items()
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    assert budget["maxUnavailable"] == 1


def test_engines_that_are_not_ready_do_not_hold_up_a_drain() -> None:
    budget = rendered(base())["PodDisruptionBudget"].body["spec"]
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_every_object_is_owned_by_the_base_and_carries_the_digest_of_itself() -> None:
    for manifest in rendered(base()).values():
        [owner] = manifest.body["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("BaseModel", "uid-base", True)
        assert manifest.body["metadata"]["annotations"][APPLIED] == manifest.digest


def test_only_what_changed_gets_another_digest() -> None:
    one, three = rendered(base(), engines=1), rendered(base(), engines=3)
    assert {kind for kind in one if one[kind].digest != three[kind].digest} == {"StatefulSet"}
    assert {kind: each.digest for kind, each in one.items()} == {
        kind: each.digest for kind, each in rendered(base(), engines=1).items()
    }


def test_a_change_of_replicas_restarts_nothing_and_a_change_of_limits_does() -> None:
    def template(of: ObservedBase, engines: int) -> Body:
        found: Body = rendered(of, engines=engines)["StatefulSet"].body["spec"]["template"]
        return found

    assert template(base(), 1) == template(base(low=1, high=4), 3)
    assert template(base(), 1) != template(base(slots=9), 1)


def test_engines_are_told_what_they_must_restart_for() -> None:
    settings = msgspec.json.decode(env(base())[ENGINE_SETTINGS]["value"], type=EngineSettings)
    assert (settings.base_model, settings.source.uri, settings.device_slots) == ("team/smol", "pvc://models/smol", 8)
    assert (settings.kv_cache_bytes, settings.host_bytes, settings.disk_bytes) == (1 << 20, 1 << 20, 1 << 30)
    assert settings.store is not None
    assert "replicas" not in json.dumps(msgspec.to_builtins(settings))
    variables = env(base())
    assert variables["MINT_ENGINE_NAME"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert variables["MINT_ENGINE_ADDRESS"]["value"] == "$(POD_IP):8470"
    assert list(variables).index("POD_IP") < list(variables).index("MINT_ENGINE_ADDRESS")


@pytest.mark.parametrize("uri", ["s3://models/$(POD_IP)", "s3://models/a$$b", "s3://models/$$(POD_IP)", "s3://m/$"])
def test_engines_are_told_what_the_spec_says_whatever_the_kubelet_does_to_it(uri: str) -> None:
    variables = env(base(uri=uri), msgspec.structs.replace(RELEASE, redis_url=f"redis://{uri}"))
    settings = msgspec.json.decode(expanded(variables[ENGINE_SETTINGS]["value"]), type=EngineSettings)
    assert settings.source.uri == uri
    assert expanded(variables["MINT_REDIS_URL"]["value"]) == f"redis://{uri}"
    assert expanded(variables["MINT_ENGINE_ADDRESS"]["value"]) == "10.0.0.7:8470"


def expanded(value: str) -> str:
    """Expand a variable as the kubelet does: $$ becomes $, and $(NAME) the value of a known name."""
    known = {"$$": "$", "$(POD_IP)": "10.0.0.7"}
    return re.sub(r"\$\$|\$\([^)]*\)", lambda found: known.get(found[0], found[0]), value)


def test_pods_run_as_nobody_with_nothing_to_write_but_their_own_folders() -> None:
    spec, only = pod(base()), container(base())
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] == 65532
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not spec["automountServiceAccountToken"]
    writable = [mount["mountPath"] for mount in only["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["/mint/tmp", "/mint/cache"]


def test_engines_are_told_which_experts_stay_quantised() -> None:
    """Others' settings do not mention it, so that they do not restart."""
    assert engine_settings(with_spec(engine=EngineSpec(quantised_experts=True))).quantised_experts
    plain = msgspec.json.encode(engine_settings(with_spec(engine=EngineSpec())))
    assert b"quantised" not in plain


def test_the_claim_that_training_writes_to_can_be_written_and_no_other() -> None:
    made = pod(training_base())
    assert engine_settings(training_base()).training_store == Source(uri="pvc://training/runs")
    mounts = {mount["mountPath"]: mount for mount in made["containers"][0]["volumeMounts"]}
    assert not mounts["/mint/pvc/training"]["readOnly"]
    assert mounts["/mint/pvc/models"]["readOnly"]
    claims = [volume["persistentVolumeClaim"] for volume in made["volumes"][2:]]
    assert {claim["claimName"]: claim["readOnly"] for claim in claims} == {
        "models": True,
        "samples": True,
        "training": False,
    }


def test_claims_are_mounted_read_only_under_their_names() -> None:
    mounts = {mount["mountPath"]: mount for mount in container(base())["volumeMounts"]}
    assert mounts["/mint/pvc/models"]["readOnly"]
    assert mounts["/mint/pvc/samples"]["readOnly"]
    claims = [volume["persistentVolumeClaim"]["claimName"] for volume in pod(base())["volumes"][2:]]
    assert claims == ["models", "samples"]


@pytest.mark.parametrize(
    ("uri", "limited"), [("pvc://models/smol", True), ("file:///models/smol", True), ("s3://models/smol", False)]
)
def test_the_cache_is_limited_unless_a_base_of_unknown_size_goes_there_too(uri: str, limited: bool) -> None:
    cache = next(volume for volume in pod(base(uri=uri))["volumes"] if volume["name"] == "cache")
    assert ("sizeLimit" in cache["emptyDir"]) is limited
    if limited:
        assert int(cache["emptyDir"]["sizeLimit"]) > 1 << 30


def test_a_cache_of_its_own_outlives_an_engines_pods_and_not_its_base() -> None:
    def spec(**cache: Any) -> Body:
        engine = msgspec.structs.replace(base().spec.engine, cache=EngineCache(**cache) if cache else None)
        found: Body = rendered(with_spec(engine=engine))["StatefulSet"].body["spec"]
        return found

    assert "volumeClaimTemplates" not in spec()
    kept = spec(size="800Gi", storage_class_name="nvme")
    [claim] = kept["volumeClaimTemplates"]
    assert claim["metadata"] == {"name": "cache"}
    assert claim["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "800Gi"}},
        "storageClassName": "nvme",
    }
    assert kept["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Delete", "whenScaled": "Retain"}
    in_pod = kept["template"]["spec"]
    assert "cache" not in {volume["name"] for volume in in_pod["volumes"]}, "it would hide the claim"
    assert {"name": "cache", "mountPath": "/mint/cache"} in in_pod["containers"][0]["volumeMounts"]
    assert "storageClassName" not in spec(size="800Gi")["volumeClaimTemplates"][0]["spec"]


def test_probes_tell_alive_from_ready_and_leave_time_to_start() -> None:
    only = container(base())
    assert only["readinessProbe"]["grpc"] == {"port": 8470}
    assert only["livenessProbe"]["grpc"] == {"port": 8470, "service": "live"}
    start = only["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] == 900
    assert pod(base())["terminationGracePeriodSeconds"] == 60


def test_engines_with_a_longer_grace_drain_for_longer_and_others_are_told_nothing() -> None:
    longer = with_spec(engine=EngineSpec(termination_grace_period_seconds=600))
    assert pod(longer)["terminationGracePeriodSeconds"] == 600
    plain = engine_settings(base())
    assert engine_settings(longer).drain_s - plain.drain_s == 540
    assert plain.drain_s == 22
    assert b"drain" not in msgspec.json.encode(plain), "what is new restarts no engine"


def test_scheduling_wishes_are_passed_on_and_engines_spread_if_they_can() -> None:
    toleration = {"key": "gpu", "operator": "Exists"}
    spec = pod(with_spec(engine=EngineSpec(node_selector={"pool": "gpu"}, tolerations=[toleration])))
    assert (spec["nodeSelector"], spec["tolerations"]) == ({"pool": "gpu"}, [toleration])
    [spread] = spec["topologySpreadConstraints"]
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    affinity: Body = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}}
    assert pod(with_spec(engine=EngineSpec(affinity=affinity)))["affinity"] == affinity
    assert "affinity" not in spec, "what nobody asks for restarts no engine in an upgrade"


ZONE = "topology.kubernetes.io/zone"


def test_wishes_of_spreading_are_added_to_ours_and_replace_it_over_nodes() -> None:
    def constraints(*wishes: Body) -> list[Body]:
        spec = pod(with_spec(engine=EngineSpec(topology_spread_constraints=list(wishes))))
        found: list[Body] = spec["topologySpreadConstraints"]
        return found

    [ours] = constraints()
    zones = {"maxSkew": 2, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule", "minDomains": 3}
    assert constraints(zones) == [ours, zones | {"labelSelector": ours["labelSelector"]}]
    others = zones | {"labelSelector": {"matchLabels": {"app": "x"}}, "matchLabelKeys": ["pod-template-hash"]}
    assert constraints(others) == [ours, others]
    nodes = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
    assert constraints(nodes, zones) == [each | {"labelSelector": ours["labelSelector"]} for each in (nodes, zones)]


def test_a_change_of_where_engines_run_restarts_them_by_their_pods_alone() -> None:
    plain = rendered(base())
    zones = {"maxSkew": 2, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule"}
    for wish in (EngineSpec(topology_spread_constraints=[zones]), EngineSpec(affinity={"podAffinity": {}})):
        found = rendered(with_spec(engine=wish))
        assert [kind for kind in found if found[kind].digest != plain[kind].digest] == ["StatefulSet"]
        before, after = (each["StatefulSet"].body["spec"] for each in (plain, found))
        assert [key for key in after if after[key] != before[key]] == ["template"]
        assert engine_settings(with_spec(engine=wish)) == engine_settings(base())


def test_labels_annotations_and_priority_are_added_to_what_the_operator_sets() -> None:
    wishes = EngineSpec(
        priority_class_name="gpu-batch",
        pod_labels={"team": "nlp", "mint.dev/base-model": "other"},
        pod_annotations={"sidecar.istio.io/inject": "false", "mint.dev/redis": "x"},
        service_account_annotations={"eks.amazonaws.com/role-arn": "engines"},
    )
    release = msgspec.structs.replace(RELEASE, redis_digest="d1")
    found, plain = rendered(with_spec(engine=wishes), release), rendered(base(), release)
    template, before = (each["StatefulSet"].body["spec"]["template"] for each in (found, plain))
    assert template["spec"]["priorityClassName"] == "gpu-batch"
    assert template["metadata"]["labels"] == before["metadata"]["labels"] | {"team": "nlp"}
    annotations = {**template["metadata"]["annotations"], "mint.dev/settings": "", "sidecar.istio.io/inject": ""}
    assert annotations == before["metadata"]["annotations"] | {"mint.dev/settings": "", "sidecar.istio.io/inject": ""}
    account = found["ServiceAccount"]
    assert account.body["metadata"]["annotations"] == {
        "eks.amazonaws.com/role-arn": "engines",
        APPLIED: account.digest,
    }
    assert account.digest != plain["ServiceAccount"].digest


def test_cas_of_the_installation_are_where_storage_libraries_look_for_them() -> None:
    release = msgspec.structs.replace(RELEASE, ca_bundle="corporate", ca_bundle_key="bundle.pem")
    variables = env(base(), release)
    [volume] = [each for each in pod(base(), release)["volumes"] if "configMap" in each]
    assert {variables[name]["value"] for name in BUNDLE_VARIABLES} == {"/mint/ca/ca.crt"}
    items = [{"key": "bundle.pem", "path": "ca.crt"}]
    assert volume == {"name": "ca-bundle", "configMap": {"name": "corporate", "items": items}}
    mount = {"name": "ca-bundle", "mountPath": "/mint/ca", "readOnly": True}
    assert mount in container(base(), release)["volumeMounts"]
    assert BUNDLE_VARIABLES[0] not in env(base())


def test_the_installation_chooses_image_runtime_class_and_pull_secrets() -> None:
    release = Release(image="r/engine:1", pull_policy="Never", runtime_class="mint-host", pull_secrets=("hub",))
    spec, only = pod(base(), release), container(base(), release)
    assert (only["image"], only["imagePullPolicy"], only["command"]) == ("r/engine:1", "Never", ["mint-engine"])
    assert (spec["runtimeClassName"], spec["imagePullSecrets"]) == ("mint-host", [{"name": "hub"}])
    assert "runtimeClassName" not in pod(base())


def test_a_base_may_need_another_runtime_class_than_the_installation() -> None:
    """On a node without GPUs, the rest of the installation could not start with NVIDIA's."""
    on_gpus = with_spec(engine=EngineSpec(runtime_class_name="nvidia"))
    for release in (RELEASE, msgspec.structs.replace(RELEASE, runtime_class="mint-host")):
        assert pod(on_gpus, release)["runtimeClassName"] == "nvidia"


def test_secrets_of_source_and_store_become_environment_each_once() -> None:
    secret = SecretRef(name="hub-token")
    of = with_spec(
        source=BaseSource(uri="hf://o/m", revision="abc", secret_ref=secret),
        adapters=AdapterLimits(store=AdapterStore(uri="s3://b/p", secret_ref=secret)),
    )
    assert container(of)["envFrom"] == [{"secretRef": {"name": "hub-token"}}]


def test_redis_user_reaches_engines_through_the_secret_alone() -> None:
    release = Release(image="i", redis_url="redis://r", redis_username="mint-engine", redis_password="hush")
    for name, key in (("MINT_REDIS_USERNAME", "username"), ("MINT_REDIS_PASSWORD", "password")):
        ref = env(base(), release)[name]["valueFrom"]["secretKeyRef"]
        assert ref == {"name": "mint-engine-redis", "key": key}
    assert redis_secret([base()], release).body["stringData"] == {"username": "mint-engine", "password": "hush"}
    without = msgspec.structs.replace(release, redis_username="")
    assert "MINT_REDIS_USERNAME" not in env(base(), without)


def test_redis_password_and_ca_reach_engines_through_a_secret_alone() -> None:
    release = Release(
        image="i", redis_url="rediss://r:6379/0", redis_password="hush", redis_ca="PEM", redis_digest="d1"
    )
    variables = env(base(), release)
    assert variables["MINT_REDIS_PASSWORD"]["valueFrom"]["secretKeyRef"] == {
        "name": "mint-engine-redis",
        "key": "password",
    }
    assert variables["MINT_REDIS_CA_FILE"]["value"] == "/mint/redis/ca.crt"
    assert "hush" not in json.dumps(rendered(base(), release)["StatefulSet"].body)
    secret = redis_secret([base()], release)
    assert secret.body["stringData"] == {"password": "hush", "ca.crt": "PEM"}
    assert [each["uid"] for each in secret.body["metadata"]["ownerReferences"]] == ["uid-base"]
    changed = msgspec.structs.replace(release, redis_digest="d2")
    assert rendered(base(), release)["StatefulSet"].digest != rendered(base(), changed)["StatefulSet"].digest
