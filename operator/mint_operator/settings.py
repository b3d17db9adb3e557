"""The operator's own settings, from its environment."""

import hashlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import msgspec

from mint_contracts import settings as contracts
from mint_contracts.errors import InvalidRequest
from mint_operator.planning.snapshot import Release

NAMESPACE = "MINT_NAMESPACE"
POD_NAME = "POD_NAME"
POD_IP = "POD_IP"
LEASE = "MINT_LEASE"
WATCH_NAMESPACES = "MINT_WATCH_NAMESPACES"
ENGINE_IMAGE = "MINT_ENGINE_IMAGE"
ENGINE_PULL_POLICY = "MINT_ENGINE_PULL_POLICY"
ENGINE_RUNTIME_CLASS = "MINT_ENGINE_RUNTIME_CLASS"
ENGINE_PULL_SECRETS = "MINT_ENGINE_PULL_SECRETS"
ENGINE_REDIS_USERNAME = "MINT_ENGINE_REDIS_USERNAME"  # of the engines' own user; without both variables it is the
ENGINE_REDIS_PASSWORD = "MINT_ENGINE_REDIS_PASSWORD"  # noqa: S105 - operator's
ENGINE_CA_BUNDLE = "MINT_ENGINE_CA_BUNDLE"
ENGINE_CA_BUNDLE_KEY = "MINT_ENGINE_CA_BUNDLE_KEY"
GATEWAY_LABELS = "MINT_GATEWAY_LABELS"  # of the gateways' pods, key=value,...; empty: engines get no NetworkPolicy
PORT_OF_LIVENESS = "MINT_LIVENESS_PORT"  # ports need to be set only if several operators share one network
PORT_OF_METRICS = "MINT_METRICS_PORT"
LIVENESS_PORT = 8080
MOST_PORT = 65535
LIVENESS_PATH = "/healthz"

_DIGEST_ROUNDS = 200_000  # the digest is stored in an annotation: guessing the password from it must not be cheap


class OperatorSettings(msgspec.Struct, frozen=True):
    """Where the operator runs and leads, which namespaces it watches (none: all), and how its engines are made."""

    namespace: str
    lease: str
    identity: str
    release: Release
    namespaces: tuple[str, ...] = ()
    liveness_at: str = f"0.0.0.0:{LIVENESS_PORT}"
    metrics_port: int = contracts.METRICS_PORT


def read(env: Mapping[str, str] = os.environ) -> OperatorSettings:
    """Read settings from `env`. Raises InvalidRequest naming a variable that is missing or invalid."""
    pod = env.get(POD_NAME, "mint-operator")
    return OperatorSettings(
        namespace=_needed(env, NAMESPACE),
        lease=_needed(env, LEASE),
        identity=f"{pod}_{uuid.uuid4().hex[:8]}",  # a restarted container is a different holder of the Lease
        release=_release(env),
        namespaces=_list(env.get(WATCH_NAMESPACES, "")),
        liveness_at=f"{_own_version(env)}:{_port(env, PORT_OF_LIVENESS, LIVENESS_PORT)}",
        metrics_port=_port(env, PORT_OF_METRICS, contracts.METRICS_PORT),
    )


def _release(env: Mapping[str, str]) -> Release:
    user = (ENGINE_REDIS_USERNAME, ENGINE_REDIS_PASSWORD)
    if not any(name in env for name in user):  # set but empty, they must not give engines the operator's rights
        user = (contracts.REDIS_USERNAME, contracts.REDIS_PASSWORD)
    username, password = (env.get(name, "") for name in user)
    ca_file = env.get(contracts.REDIS_CA_FILE, "")
    ca = Path(ca_file).read_text() if ca_file else ""
    return Release(
        image=_needed(env, ENGINE_IMAGE),
        pull_policy=env.get(ENGINE_PULL_POLICY) or "IfNotPresent",
        runtime_class=env.get(ENGINE_RUNTIME_CLASS, ""),
        pull_secrets=_list(env.get(ENGINE_PULL_SECRETS, "")),
        ca_bundle=env.get(ENGINE_CA_BUNDLE, ""),
        ca_bundle_key=env.get(ENGINE_CA_BUNDLE_KEY, ""),
        redis_url=_needed(env, contracts.REDIS_URL),
        redis_username=username,
        redis_password=password,
        redis_ca=ca,
        redis_digest=_digest(username and f"{username}\0", password, ca),
        gateway_namespace=_needed(env, NAMESPACE),
        gateway_labels=_labels(env.get(GATEWAY_LABELS, "")),
    )


def _own_version(env: Mapping[str, str]) -> str:
    """Return the wildcard address of the pod's IP version: kopf listens on only one version."""
    return "[::]" if ":" in env.get(POD_IP, "") else "0.0.0.0"


def _digest(*parts: str) -> str:
    """Return a digest of the concatenated parts; "" for nothing."""
    text = "".join(parts)
    if not text:
        return ""
    return hashlib.pbkdf2_hmac("sha256", text.encode(), b"mint-engine-redis", _DIGEST_ROUNDS).hex()[:8]


def _needed(env: Mapping[str, str], name: str) -> str:
    value = env.get(name, "")
    if not value:
        raise InvalidRequest(f"environment variable {name}", "must be set; the chart sets it")
    return value


def _port(env: Mapping[str, str], name: str, default: int) -> int:
    value = env.get(name, "")
    if not value:
        return default
    try:
        port = int(value)
    except ValueError:
        port = 0
    if not 0 < port <= MOST_PORT:
        raise InvalidRequest(
            f"environment variable {name}",
            f"is {value!r}, which is not a valid port; use 1 to {MOST_PORT}, or unset it for {default}",
        )
    return port


def _labels(text: str) -> dict[str, str]:
    return {key: value for key, _, value in (each.partition("=") for each in _list(text))}


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
