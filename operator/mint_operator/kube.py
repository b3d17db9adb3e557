"""The Kubernetes API as the operator uses it: raw JSON in and out, every call bounded, run in threads.

The `kubernetes` package gives the connection (in-cluster or kubeconfig, tokens that renew); its models are left
aside, since building them for every object of every pass costs more than all the rest.
"""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import urlencode

import msgspec
import urllib3
from kubernetes import client, config

from mint_contracts.resources import GROUP, VERSION
from mint_operator.planning import groups

FIELD_MANAGER = "mint-operator"
THREADS = 16  # half of which objects take at most, however many of them hang (see apply.AT_ONCE)
PAGE = 500
TIMEOUT = urllib3.Timeout(connect=3.0, read=15.0)

_ROOTS = {
    "BaseModel": (f"/apis/{GROUP}/{VERSION}", "basemodels"),
    "AdapterWave": (f"/apis/{GROUP}/{VERSION}", "adapterwaves"),
    "StatefulSet": ("/apis/apps/v1", "statefulsets"),
    groups.KIND: (f"/apis/{groups.API_VERSION}", "leaderworkersets"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases"),
    "Pod": ("/api/v1", "pods"),
    "Service": ("/api/v1", "services"),
    "ServiceAccount": ("/api/v1", "serviceaccounts"),
    "Secret": ("/api/v1", "secrets"),
    "ConfigMap": ("/api/v1", "configmaps"),
    "Event": ("/api/v1", "events"),
}
OWN = frozenset({"BaseModel", "AdapterWave"})  # kinds that our CRDs define


class KubeError(Exception):
    """The API server refused (`status` is HTTP's) or did not answer (`status` 0)."""

    def __init__(self, what: str, status: int, message: str) -> None:
        super().__init__(f"{what}: {message}")
        self.status = status
        self.message = message

    @property
    def refused(self) -> bool:
        """Whether sending the same again would be refused again: the object itself is at fault."""
        return self.status in {400, 403, 422}

    @property
    def unserved(self) -> bool:
        """Whether a kind that was listed is one that the API server does not have, or not for the operator."""
        return self.status in {403, 404}


class _ListMeta(msgspec.Struct, frozen=True, rename={"go_on": "continue"}):
    go_on: str = ""


class _Page(msgspec.Struct, frozen=True):
    metadata: _ListMeta
    items: list[msgspec.Raw] = []


class _Named(msgspec.Struct, frozen=True):
    name: str


class _Groups(msgspec.Struct, frozen=True):
    groups: list[_Named] = []


class _Resource(msgspec.Struct, frozen=True):
    kind: str


class _Resources(msgspec.Struct, frozen=True):
    resources: list[_Resource] = []


class _Status(msgspec.Struct, frozen=True):
    message: str = ""


def path(kind: str, namespace: str = "", name: str = "", subresource: str = "") -> str:
    """The URL path of an object, or of a list; without a namespace of all namespaces."""
    root, plural = _ROOTS[kind]
    parts = [root, f"namespaces/{namespace}" if namespace else "", plural, name, subresource]
    return "/".join(part for part in parts if part)


class Kube:
    """One connection pool. All methods raise KubeError."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api
        self._threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="kube")

    def close(self) -> None:
        """End the threads and close the connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._api.close()  # type: ignore[no-untyped-call]

    async def items(self, kind: str, namespace: str = "", selector: str = "", fields: str = "") -> list[msgspec.Raw]:
        """Every object of a kind, whole, by pages; of those the ones with these labels and fields."""
        found: list[msgspec.Raw] = []
        query = {"limit": str(PAGE), "labelSelector": selector, "fieldSelector": fields}
        query = {name: value for name, value in query.items() if value}
        while True:
            page = msgspec.json.decode(await self._send("GET", path(kind, namespace), query), type=_Page)
            found += page.items
            if not page.metadata.go_on:
                return found
            query["continue"] = page.metadata.go_on

    async def may_list(self, kind: str, namespace: str) -> bool:
        """Whether a kind may be listed there: False only where the API server answers that it may not."""
        try:
            await self._send("GET", path(kind, namespace), {"limit": "1"})
        except KubeError as error:
            return error.status != 403
        return True

    async def kinds(self) -> frozenset[str]:
        """The kinds of our group that the API server tells of to those who look for what it has."""
        found = msgspec.json.decode(await self._send("GET", "/apis"), type=_Groups)
        if all(each.name != GROUP for each in found.groups):
            return frozenset()
        try:
            response = await self._send("GET", f"/apis/{GROUP}/{VERSION}")
        except KubeError as error:
            if error.status == 404:
                return frozenset()
            raise
        return frozenset(each.kind for each in msgspec.json.decode(response, type=_Resources).resources)

    async def get(self, kind: str, namespace: str, name: str) -> bytes | None:
        """One object; None if it does not exist."""
        try:
            return await self._send("GET", path(kind, namespace, name))
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    async def apply(self, body: Mapping[str, Any]) -> None:
        """Server-side apply of a whole object, taking over fields that others have set."""
        metadata = body["metadata"]
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        where = path(body["kind"], metadata["namespace"], metadata["name"])
        await self._send("PATCH", where, query, body, "application/apply-patch+yaml")

    async def patch_status(self, kind: str, namespace: str, name: str, body: Mapping[str, Any]) -> bytes:
        """Merge patch of the status subresource; returns the object as it is then."""
        where = path(kind, namespace, name, "status")
        return await self._send("PATCH", where, {"fieldManager": FIELD_MANAGER}, body, "application/merge-patch+json")

    async def create(self, body: Mapping[str, Any]) -> bytes:
        """Create an object; KubeError 409 if it exists."""
        where = path(body["kind"], body["metadata"]["namespace"])
        return await self._send("POST", where, {"fieldManager": FIELD_MANAGER}, body, "application/json")

    async def replace(self, body: Mapping[str, Any]) -> bytes:
        """Replace an object; KubeError 409 if it has changed since its resourceVersion."""
        metadata = body["metadata"]
        where = path(body["kind"], metadata["namespace"], metadata["name"])
        return await self._send("PUT", where, {"fieldManager": FIELD_MANAGER}, body, "application/json")

    async def _send(
        self,
        method: str,
        where: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content: str = "",
    ) -> bytes:
        work = partial(self._send_now, method, where, query or {}, body, content)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _send_now(
        self, method: str, where: str, query: Mapping[str, str], body: Mapping[str, Any] | None, content: str
    ) -> bytes:
        headers = {"Accept": "application/json"} | ({"Content-Type": content} if content else {})
        self._api.update_params_for_auth(headers, [], ["BearerToken"], where, method, None)
        url = f"{self._api.configuration.host}{where}" + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else msgspec.json.encode(body)
        pool: urllib3.PoolManager = self._api.rest_client.pool_manager
        what = f"{method} {where}"
        try:
            answer = pool.request(method, url, body=data, headers=headers, timeout=TIMEOUT, retries=False)
        except urllib3.exceptions.HTTPError as error:
            raise KubeError(what, 0, f"the API server did not answer ({error})") from error
        if not 200 <= answer.status < 300:
            raise KubeError(what, answer.status, _message(answer.data))
        return answer.data


def connect(kubeconfig: str | None = None) -> Kube:
    """A connection from the pod's service account, or from a kubeconfig where there is none."""
    settings = client.Configuration()
    try:
        if kubeconfig:
            config.load_kube_config(kubeconfig, client_configuration=settings)  # type: ignore[no-untyped-call]
        else:
            config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        config.load_kube_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    settings.connection_pool_maxsize = THREADS
    return Kube(client.ApiClient(settings))


def _message(data: bytes) -> str:
    try:
        return msgspec.json.decode(data, type=_Status).message
    except msgspec.DecodeError:
        return data[:500].decode(errors="replace")


def namespaced(namespaces: Sequence[str]) -> Sequence[str]:
    """What to list: each namespace, or "" for all of them."""
    return namespaces or ("",)
