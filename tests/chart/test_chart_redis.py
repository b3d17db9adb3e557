"""How the chart's pods reach the Redis of the placement map, the chart's own or an external one."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from mint_contracts import settings
from mint_operator.settings import ENGINE_REDIS_PASSWORD, ENGINE_REDIS_USERNAME
from tests.chart.rendering import (
    BARE,
    CHART,
    DEFAULTS,
    EXTERNAL,
    KUBE_VERSION,
    NAMESPACE,
    PUSHED,
    RELEASE,
    Values,
    container,
    environment,
    helm,
    labels,
    of_kind,
    render,
    workloads,
)


@pytest.mark.parametrize("name", ["mint-operator", "mint-gateway"])
def test_the_map_is_reached_by_a_full_name_and_a_secret(name: str) -> None:
    variables = environment(workloads(render(DEFAULTS))[name])
    assert variables[settings.REDIS_URL] == f"redis://mint-redis.{NAMESPACE}.svc:6379/0"
    assert variables[settings.REDIS_PASSWORD] == {"secretKeyRef": {"name": "mint-redis", "key": "password"}}
    assert settings.REDIS_CA_FILE not in variables


@pytest.mark.parametrize("name", ["mint-operator", "mint-gateway"])
def test_an_external_redis_brings_its_password_and_authority(name: str) -> None:
    workload = workloads(render(EXTERNAL))[name]
    variables = environment(workload)
    assert variables[settings.REDIS_URL] == "rediss://redis.example:6380/0"
    assert variables[settings.REDIS_PASSWORD] == {"secretKeyRef": {"name": "redis-auth", "key": "password"}}
    folder = variables[settings.REDIS_CA_FILE].removesuffix("/ca.crt")
    assert {"name": "redis-ca", "mountPath": folder, "readOnly": True} in container(workload)["volumeMounts"]


def test_with_an_external_redis_the_chart_makes_none() -> None:
    assert [each for each in render(EXTERNAL) if "redis" in each["metadata"]["name"]] == []


def test_an_external_redis_needs_no_password() -> None:
    values = {"redis": {"external": {"url": "redis://redis.example:6379"}}}
    for workload in workloads(render(values)).values():
        assert settings.REDIS_PASSWORD not in environment(workload)


def variables_of_users(values: Values) -> dict[str, dict[str, tuple[str, str]]]:
    """Which Secret and key each variable of a Redis user comes from, by workload."""
    found = {}
    for name, workload in workloads(render(values)).items():
        refs = {key: of["secretKeyRef"] for key, of in environment(workload).items() if "secretKeyRef" in of}
        assert all(ref.get("optional", False) == (ref["key"] == "username") for ref in refs.values())
        found[name] = {key: (ref["name"], ref["key"]) for key, ref in refs.items()}
    return found


def test_the_secret_of_an_external_redis_may_name_a_user_beside_the_password() -> None:
    expected = {
        settings.REDIS_USERNAME: ("redis-auth", "username"),
        settings.REDIS_PASSWORD: ("redis-auth", "password"),
    }
    assert variables_of_users(EXTERNAL) == {"mint-operator": expected, "mint-gateway": expected}


def test_engines_and_gateways_may_be_users_of_their_own() -> None:
    secrets = {"engineSecret": "engine-auth", "gatewaySecret": "gateway-auth"}
    found = variables_of_users({"redis": {"external": EXTERNAL["redis"]["external"] | secrets}})
    assert found["mint-gateway"] == {
        settings.REDIS_USERNAME: ("gateway-auth", "username"),
        settings.REDIS_PASSWORD: ("gateway-auth", "password"),
    }
    assert found["mint-operator"] == {
        settings.REDIS_USERNAME: ("redis-auth", "username"),
        settings.REDIS_PASSWORD: ("redis-auth", "password"),
        ENGINE_REDIS_USERNAME: ("engine-auth", "username"),
        ENGINE_REDIS_PASSWORD: ("engine-auth", "password"),
    }


def test_redis_keeps_its_log_on_a_claim_and_takes_its_password_from_the_secret() -> None:
    objects = render(DEFAULTS)
    redis = workloads(objects)["mint-redis"]
    assert redis["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] == "1Gi"
    assert (
        "appendonly yes\nappendfsync everysec\n" in of_kind(objects, "ConfigMap")["mint-redis"]["data"]["redis.conf"]
    )
    secret = of_kind(objects, "Secret")["mint-redis"]["data"]["password"]
    assert secret not in repr(redis)


def test_redis_without_persistence_has_no_claim_and_may_use_a_secret_of_yours() -> None:
    objects = render(BARE)
    assert "volumeClaimTemplates" not in workloads(objects)["mint-redis"]["spec"]
    assert of_kind(objects, "Secret") == {}
    assert environment(workloads(objects)["mint-gateway"])[settings.REDIS_PASSWORD]["secretKeyRef"]["name"] == "own"


def test_redis_does_not_restart_for_another_version_of_the_chart(tmp_path: Path) -> None:
    newer = tmp_path / "mint"
    shutil.copytree(CHART, newer)
    about = yaml.safe_load((CHART / "Chart.yaml").read_text()) | {"version": "9.0.0", "appVersion": "9.0.0"}
    (newer / "Chart.yaml").write_text(yaml.safe_dump(about))
    text = helm("template", RELEASE, str(newer), "-n", NAMESPACE, "--kube-version", KUBE_VERSION, values=PUSHED)
    after = workloads([each for each in yaml.safe_load_all(text) if each])
    before = workloads(render(DEFAULTS))
    assert labels(after["mint-gateway"])["app.kubernetes.io/version"] == "9.0.0"
    assert after["mint-redis"]["spec"] == before["mint-redis"]["spec"]


def test_generated_passwords_are_long_and_never_the_same() -> None:
    first, second = (of_kind(render(DEFAULTS), "Secret")["mint-redis"]["data"]["password"] for _ in range(2))
    assert first != second
    assert len(first) >= 40  # 32 letters, base64


def test_the_readme_says_what_to_restart_when_a_secret_changes() -> None:
    section = (CHART / "README.md").read_text().partition("## When a Secret changes")[2]
    named = [path for path in paths(yaml.safe_load((CHART / "values.yaml").read_text())) if path.endswith("Secret")]
    read = [path for path in named if read_at_a_start(path)]
    assert len(read) >= 4
    assert [path for path in read if f"`{path}`" not in section] == []
    restarted = re.findall(r"kubectl rollout restart -n mint-system \w+/([a-z-]+)", section)
    assert restarted == ["mint-redis", "mint-operator", "mint-gateway"], "Redis must know the password first"


def paths(values: Values) -> list[str]:
    """Yield the path of every value that is not a map."""
    below = {key: paths(value) if isinstance(value, dict) else [""] for key, value in values.items()}
    return [f"{key}.{path}".rstrip(".") for key, found in below.items() for path in found]


def read_at_a_start(path: str) -> bool:
    """Return whether this value names something that pods read into their environment when they start."""
    values: Values = {}
    inner = values
    *outer, last = path.split(".")
    for key in outer:
        inner = inner.setdefault(key, {})
    inner[last] = "theirs"
    if "external" in outer:
        inner = {"url": "rediss://redis.example", "existingSecret": "ours"} | inner
        values["redis"]["external"] = inner
    made = [container(each) for each in workloads(render(values)).values()]
    return any("theirs" in repr((each["env"], each.get("envFrom"))) for each in made)
