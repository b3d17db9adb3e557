"""The release with a certificate and keys: both front doors speak only TLS, and only to clients with a key."""

import json
import os
import ssl
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any

import openai
import pytest

from e2e import release
from e2e.cluster import CommandFailedError
from e2e.cluster.commands import run
from e2e.forward import forward
from e2e.waiting import until
from e2e.world import NAMESPACE, World
from mint_contracts.errors import Unauthenticated, Unavailable
from mint_contracts.settings import GATEWAY_HTTP_PORT, GATEWAY_PORT
from mint_gateway.cli.gateway_options import API_KEY, GATEWAY
from mint_gateway.client import Client, question
from mint_gateway.dialling import Trust
from tests.gateway.secrets import Authority

BASE = f"{NAMESPACE}/smollm2"
SERVICE = f"mint-gateway.{release.NAMESPACE}.svc"  # the gateway's name for clients in the cluster
ALTERNATIVES = f"DNS:{SERVICE},IP:127.0.0.1"
TLS, KEYS = "gateway-tls", "gateway-keys"
KEY, NEXT, WRONG = "s3cret-of-before", "s3cret-of-afterwards", "s3cret-of-nobody"
TENANT = "s3cret-of-a-tenant"  # of another namespace
SCOPES = {"tenant": {"namespaces": ["elsewhere"]}}
KUBELET_S = 240  # within which a kubelet updates a changed Secret; it checks about once a minute


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def successor(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that signs the certificate that replaces the first one."""
    return Authority(tmp_path_factory.mktemp("successor"))


@pytest.fixture(scope="module")
def pod(world: World, values: Path, authority: Authority) -> Iterator[str]:
    """The gateway's pod after the release was upgraded to use both Secrets. The release is restored afterwards."""
    show(world, authority)
    know(world, KEY)
    secured = ("--set", f"gateway.tls.secretName={TLS}", "--set", f"gateway.keys.secretName={KEYS}")
    scoped = ("--set-json", f"gateway.keys.scopes={json.dumps(SCOPES)}")
    try:
        release.install(world.kube, values, *secured, *scoped)
        yield until("the pod before to be gone", lambda: only(world))
    finally:
        release.install(world.kube, values)
        until("the secured pod to be gone", lambda: only(world))
        world.forwarded.open()
        world.kube.kubectl("delete", "secret", TLS, KEYS, "-n", release.NAMESPACE)


def show(world: World, authority: Authority) -> None:
    """Put a new certificate from this authority into the Secret."""
    files = {name: text.decode() for name, text in authority.certificate("gateway", ALTERNATIVES).items()}
    apply(world, TLS, "kubernetes.io/tls", files)


def know(world: World, key: str) -> None:
    """Make this the team's key in the Secret, along with the tenant's."""
    apply(world, KEYS, "Opaque", {"team": key, "tenant": TENANT})


def apply(world: World, name: str, type_: str, entries: Mapping[str, str]) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": type_, "stringData": entries}
    world.kube.apply(secret, release.NAMESPACE)


def only(world: World) -> str:
    """Return the gateway's only pod; empty while there are several or none."""
    pods = world.kube.list("pod", release.NAMESPACE, "app.kubernetes.io/component=gateway")
    return str(pods[0]["metadata"]["name"]) if len(pods) == 1 else ""


async def test_by_grpc_a_key_is_answered_and_nobody_else(world: World, pod: str, authority: Authority) -> None:
    trust = Trust(authority.file.read_bytes(), SERVICE)
    hello = question("Hello?", max_tokens=4)
    with forward(world.kube, f"pod/{pod}", GATEWAY_PORT, release.NAMESPACE) as door:
        async with Client(door, trust=trust, key=KEY) as client:
            assert (await client.answer(hello)).base_model == BASE
        for key in ("", WRONG):
            async with Client(door, patience_s=0, trust=trust, key=key) as client:
                with pytest.raises(Unauthenticated):
                    await client.answer(hello)
        async with Client(door, patience_s=0, key=KEY) as plain:
            with pytest.raises(Unavailable):
                await plain.answer(hello)


async def test_by_http_openais_client_is_answered_and_nobody_without_a_key(
    world: World, pod: str, authority: Authority
) -> None:
    with forward(world.kube, f"pod/{pod}", GATEWAY_HTTP_PORT, release.NAMESPACE) as door:
        async with (
            openai.DefaultAsyncHttpxClient(verify=trusting(authority)) as http,
            openai.AsyncOpenAI(base_url=f"https://{door}/v1", api_key=KEY, http_client=http) as client,
        ):
            assert BASE in [model.id async for model in client.models.list()]
            answered = await client.completions.create(model=BASE, prompt="Hello", max_tokens=4)
        assert answered.choices[0].text
        for key in ("", WRONG):
            assert status(door, key, authority) == 401
        with closing(HTTPConnection(door, timeout=60)) as plain:
            plain.request("GET", "/health")
            with pytest.raises(ConnectionError):
                plain.getresponse()


async def test_to_a_key_with_a_scope_nothing_else_is_there(world: World, pod: str, authority: Authority) -> None:
    with forward(world.kube, f"pod/{pod}", GATEWAY_HTTP_PORT, release.NAMESPACE) as door:
        async with (
            openai.DefaultAsyncHttpxClient(verify=trusting(authority)) as http,
            openai.AsyncOpenAI(base_url=f"https://{door}/v1", api_key=TENANT, http_client=http) as client,
        ):
            assert [model.id async for model in client.models.list()] == []
            with pytest.raises(openai.NotFoundError):
                await client.completions.create(model=BASE, prompt="Hello", max_tokens=4)


def test_the_command_line_asks_by_tls_with_the_key_of_its_environment(
    world: World, pod: str, authority: Authority
) -> None:
    mint, trust = Path(sys.executable).with_name("mint"), ("--ca", authority.file, "--tls-server-name", SERVICE)
    with forward(world.kube, f"pod/{pod}", GATEWAY_PORT, release.NAMESPACE) as door:
        told = os.environ | {GATEWAY: door}
        ask: list[str | Path] = [mint, "ask", *trust, "--max-tokens", "4", "Hello?"]
        assert run(ask, env=told | {API_KEY: KEY}).strip()
        with pytest.raises(CommandFailedError, match="Unauthenticated: authorization: holds no key"):
            run(ask, env=told | {API_KEY: ""})
        with pytest.raises(CommandFailedError, match=r"does the gateway speak TLS\? Try --tls"):
            run([mint, "placements", "--patience", "0.1"], env=told | {API_KEY: KEY})


def test_a_key_and_a_certificate_that_are_replaced_hold_without_a_restart_and_probes_go_on(
    world: World, pod: str, authority: Authority, successor: Authority
) -> None:
    def now(key: str, *authorities: Authority) -> int:
        # Each time with a new forward: kubectl ends one on which a connection has failed.
        with forward(world.kube, f"pod/{pod}", GATEWAY_HTTP_PORT, release.NAMESPACE) as door:
            return status(door, key, *authorities)

    def shown() -> bool:
        try:
            return now(NEXT, successor) == 200
        except ssl.SSLCertVerificationError:
            return False

    assert now(KEY, authority) == 200
    assert now(NEXT, authority) == 401
    before = health(world, pod)

    know(world, NEXT)
    show(world, successor)

    until("the new key to be honoured", lambda: now(NEXT, authority, successor) == 200, KUBELET_S)
    assert now(KEY, authority, successor) == 401
    until("the new certificate to be shown", shown, KUBELET_S)
    with pytest.raises(ssl.SSLCertVerificationError):
        now(NEXT, authority)
    assert health(world, pod) == before


def trusting(*authorities: Authority) -> ssl.SSLContext:
    """Return a client's context that trusts only these."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for authority in authorities:
        context.load_verify_locations(authority.file)
    return context


def status(door: str, key: str, *authorities: Authority) -> int:
    """Return the status of an HTTPS request, with this key if any, from a client that trusts these authorities."""
    bearing = {"Authorization": f"Bearer {key}"} if key else {}
    with closing(HTTPSConnection(door, context=trusting(*authorities), timeout=60)) as connection:
        connection.request("GET", "/v1/models", headers=bearing)
        return connection.getresponse().status


def health(world: World, pod: str) -> dict[str, Any]:
    """Check that probes use HTTPS and the pod is Ready and never restarted; returns its identity and since when."""
    found = world.kube.get("pod", pod, release.NAMESPACE)
    [container], [state] = found["spec"]["containers"], found["status"]["containerStatuses"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["scheme"] == "HTTPS", json.dumps(container[probe])
    [ready] = [each for each in found["status"]["conditions"] if each["type"] == "Ready"]
    assert (ready["status"], state["restartCount"]) == ("True", 0)
    return {"uid": found["metadata"]["uid"], "started": state["state"], "ready": ready["lastTransitionTime"]}
