"""Lists of a real API server: complete or an error, in bounded time, whatever happens between their pages."""

import asyncio
import base64
import json
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mint_operator import kube
from mint_operator.kube import Kube, KubeError
from tests.apiserver import ApiServer
from tests.relay import Relay, relaying

NAMES = [f"event-{number}" for number in range(7)]  # of Events, since the API server itself remembers none
COMPACTED = 2  # a revision of the store


@pytest.fixture
def namespace(api_server: ApiServer, request: pytest.FixtureRequest) -> str:
    """A namespace with some Events."""
    made = api_server.namespace(re.sub("[^a-z0-9]+", "-", request.node.name.lower())[:50].strip("-"))
    about = {"kind": "Pod", "namespace": made, "name": "x"}
    items = [
        {"apiVersion": "v1", "kind": "Event", "metadata": {"name": name}, "involvedObject": about} for name in NAMES
    ]
    listed = {"apiVersion": "v1", "kind": "List", "items": items}
    api_server.kubectl("create", "-n", made, "-f", "-", stdin=json.dumps(listed))
    return made


@pytest.fixture
def connection(api_server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kube]:
    """A connection that reads lists in pages of two."""
    monkeypatch.setattr(kube, "PAGE", 2)
    made = kube.connect(str(api_server.kubeconfig))
    yield made
    made.close()


async def names(connection: Kube, namespace: str) -> list[str]:
    return [json.loads(bytes(each))["metadata"]["name"] for each in await connection.items("Event", namespace)]


class Requests:
    """What a connection asks for; the token of the first page is one of a moment that is no longer known."""

    def __init__(self, connection: Kube, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queries = list[Mapping[str, str]]()
        self._send = connection._send
        monkeypatch.setattr(connection, "_send", self._sent)

    async def _sent(self, method: str, where: str, query: Mapping[str, str], **limits: Any) -> bytes:
        self.queries.append(query)
        answer = await self._send(method, where, query, **limits)
        if len(self.queries) > 1:
            return answer
        page = json.loads(answer)
        token = json.loads(base64.urlsafe_b64decode(page["metadata"]["continue"] + "=="))
        outdated = json.dumps(token | {"rv": COMPACTED - 1}).encode()
        page["metadata"]["continue"] = base64.urlsafe_b64encode(outdated).decode().rstrip("=")
        return msgspec.json.encode(page)


async def test_a_list_is_read_in_pages(connection: Kube, namespace: str) -> None:
    assert await names(connection, namespace) == NAMES


async def test_a_list_whose_moment_the_api_server_no_longer_knows_is_read_again_from_its_beginning(
    api_server: ApiServer, connection: Kube, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact(api_server)
    requests = Requests(connection, monkeypatch)
    assert await names(connection, namespace) == NAMES
    limits = [(query.get("limit"), "continue" in query) for query in requests.queries]
    assert limits == [("2", False), ("2", True), (None, False)]


def compact(server: ApiServer) -> None:
    """Have the store forget what was before COMPACTED, as it does with older moments every five minutes."""
    body = json.dumps({"revision": COMPACTED, "physical": True}).encode()
    with (
        suppress(urllib.error.HTTPError),  # it has already
        urllib.request.urlopen(f"{server.etcd}/v3/kv/compaction", data=body, timeout=60),
    ):
        pass


async def test_a_list_that_takes_too_long_is_an_error_that_says_so(
    connection: Kube, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(kube, "LIST_S", 0.0)
        message = f"GET /api/v1/namespaces/{namespace}/events: .* did not return the complete list within 0 s"
        with pytest.raises(KubeError, match=message) as late:
            await names(connection, namespace)
    assert late.value.status == 0, "as if there was no answer, so that it is tried again"
    assert await names(connection, namespace) == NAMES


@pytest.fixture
def plain(api_server: ApiServer, tmp_path: Path) -> Iterator[tuple[Relay, Path]]:
    """A relay before the API server's plain HTTP, and the kubeconfig that leads to it."""
    command = [str(api_server.binaries / "kubectl"), "--kubeconfig", str(api_server.kubeconfig), "proxy", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout
        address = proxy.stdout.readline().split()[-1]
        with relaying(address) as relay:
            to = {"clusters": [{"name": "it", "cluster": {"server": f"http://127.0.0.1:{relay.port}"}}]}
            context = {"contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}], "users": []}
            (tmp_path / "config").write_text(json.dumps({"current-context": "it", **to, **context}))
            yield relay, tmp_path / "config"
        proxy.terminate()


async def test_an_answer_that_trickles_is_given_up_and_holds_no_thread(
    plain: tuple[Relay, Path], namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay, config = plain
    monkeypatch.setattr(kube, "THREADS", 1)
    connection = kube.connect(str(config))
    relay.fault, relay.freely = "trickle", 500  # the head
    with monkeypatch.context() as hasty:
        hasty.setattr(kube, "ANSWER_S", 0.2)
        with pytest.raises(KubeError, match=r"its answer took too long; [0-9]+ bytes of it came"):
            await connection.get("Event", namespace, NAMES[0])
        hasty.setattr(kube, "LIST_S", 0.2)
        with pytest.raises(KubeError, match=r"did not return the complete list|took too long"):
            await names(connection, namespace)
    relay.heal()
    assert await asyncio.wait_for(names(connection, namespace), 60) == NAMES
    connection.close()
