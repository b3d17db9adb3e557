"""The Kubernetes API as the operator uses it: raw JSON in and out, with a time limit on every call, run in threads.

The `kubernetes` package provides the connection (in-cluster or kubeconfig, tokens that renew). Its models are not
used: building them for every object in every pass costs more than everything else.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
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
THREADS = 16  # applying objects takes at most half of these, however many hang (see apply.AT_ONCE)
PAGE = 500
TIMEOUT = urllib3.Timeout(connect=3.0, read=15.0)  # of a silence
ANSWER_S = 30.0  # for one request and its complete answer, as long as an admission webhook may take
LIST_S = 60.0  # for all pages of a list; half the time after which the liveness probe takes the loop for stuck
EXPIRED = 410
REVIEWS = "authorization.k8s.io/v1"
_PIECE = 1 << 16

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
        """Whether the same request would be refused again, because the object itself is at fault."""
        return self.status in {400, 403, 422}

    @property
    def unserved(self) -> bool:
        """Whether the API server does not have the requested kind, or the operator may not use it."""
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


class _Components(msgspec.Struct, frozen=True):
    schemas: dict[str, dict[str, Any]] = {}


class _Document(msgspec.Struct, frozen=True):
    components: _Components = _Components()


class _Status(msgspec.Struct, frozen=True):
    message: str = ""


class _Allowed(msgspec.Struct, frozen=True):
    allowed: bool = False


class _Review(msgspec.Struct, frozen=True):
    status: _Allowed = _Allowed()


def path(kind: str, namespace: str = "", name: str = "", subresource: str = "") -> str:
    """Return the URL path of an object or a list; without a namespace, the list covers all namespaces."""
    root, plural = _ROOTS[kind]
    parts = [root, f"namespaces/{namespace}" if namespace else "", plural, name, subresource]
    return "/".join(part for part in parts if part)


class Kube:
    """One connection pool. All methods raise KubeError; those that write first call `fence`, which may raise, too."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api
        self.fence: Callable[[], None] = lambda: None
        self._threads = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="kube")

    def close(self) -> None:
        """End the threads and close the connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._api.close()  # type: ignore[no-untyped-call]

    async def items(self, kind: str, namespace: str = "", selector: str = "", fields: str = "") -> list[msgspec.Raw]:
        """Return all objects of a kind, read in pages, or those that match the label and field selectors.

        All pages are of one moment. If the API server no longer knows it, all is read again, at once.
        """
        where, until = path(kind, namespace), time.monotonic() + LIST_S
        selectors = {"labelSelector": selector, "fieldSelector": fields}
        query = {name: value for name, value in selectors.items() if value}
        try:
            async with asyncio.timeout(LIST_S):
                try:
                    return await self._pages(where, query | {"limit": str(PAGE)}, until)
                except KubeError as error:
                    if error.status != EXPIRED:
                        raise
                return await self._pages(where, query, until)
        except TimeoutError:
            message = f"the API server did not return the complete list within {LIST_S:.0f} s"
            raise KubeError(f"GET {where}", 0, message) from None

    async def _pages(self, where: str, query: dict[str, str], until: float) -> list[msgspec.Raw]:
        found: list[msgspec.Raw] = []
        while True:
            page = msgspec.json.decode(await self._send("GET", where, query, until=until), type=_Page)
            found += page.items
            if not page.metadata.go_on:
                return found
            query = query | {"continue": page.metadata.go_on}

    async def may_list(self, kind: str, namespace: str) -> bool | None:
        """Whether a kind may be listed there; None if the API server did not say."""
        try:
            await self._send("GET", path(kind, namespace), {"limit": "1"})
        except KubeError as error:
            return False if error.status == 403 else None
        return True

    async def may_watch(self, kind: str, namespace: str) -> bool:
        """Whether a kind may be watched there; False only if the API server says that it is forbidden."""
        root, plural = _ROOTS[kind]
        group = root.split("/")[2] if root.startswith("/apis/") else ""
        asked = {"namespace": namespace, "verb": "watch", "group": group, "resource": plural}
        review = {"apiVersion": REVIEWS, "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": asked}}
        try:
            answer = await self._send(
                "POST", f"/apis/{REVIEWS}/selfsubjectaccessreviews", {}, review, "application/json"
            )
        except KubeError:
            return True
        return msgspec.json.decode(answer, type=_Review).status.allowed

    async def kinds(self) -> frozenset[str]:
        """Return the kinds of our group that the API server's discovery lists."""
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

    async def schemas(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the schemas of our kinds' specs as the cluster's CRDs have them, by kind."""
        raw = await self._send("GET", f"/openapi/v3/apis/{GROUP}/{VERSION}")
        found = msgspec.json.decode(raw, type=_Document).components.schemas
        kinds = {name.rpartition(".")[2]: each for name, each in found.items()}
        return {kind: each.get("properties", {}).get("spec", {}) for kind, each in kinds.items() if kind in OWN}

    async def get(self, kind: str, namespace: str, name: str) -> bytes | None:
        """Return one object; None if it does not exist."""
        try:
            return await self._send("GET", path(kind, namespace, name))
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    async def apply(self, body: Mapping[str, Any]) -> bytes:
        """Server-side apply a complete object, taking over fields that others have set; returns the result."""
        metadata = body["metadata"]
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        where = path(body["kind"], metadata["namespace"], metadata["name"])
        return await self._send("PATCH", where, query, body, "application/apply-patch+yaml")

    async def patch_status(self, kind: str, namespace: str, name: str, body: Mapping[str, Any]) -> bytes:
        """Merge-patch the status subresource; returns the resulting object."""
        where = path(kind, namespace, name, "status")
        return await self._send("PATCH", where, {"fieldManager": FIELD_MANAGER}, body, "application/merge-patch+json")

    async def create(self, body: Mapping[str, Any]) -> bytes:
        """Create an object. Raises KubeError 409 if it exists."""
        where = path(body["kind"], body["metadata"]["namespace"])
        return await self._send("POST", where, {"fieldManager": FIELD_MANAGER}, body, "application/json")

    async def replace(self, body: Mapping[str, Any]) -> bytes:
        """Replace an object. Raises KubeError 409 if it has changed since its resourceVersion."""
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
        until: float | None = None,
    ) -> bytes:
        """Send one request and return its answer. `until` limits it, by the monotonic clock; None: for ANSWER_S."""
        until = time.monotonic() + ANSWER_S if until is None else until
        work = partial(self._send_now, method, where, query or {}, body, content, until)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _send_now(
        self,
        method: str,
        where: str,
        query: Mapping[str, str],
        body: Mapping[str, Any] | None,
        content: str,
        until: float,
    ) -> bytes:
        headers = {"Accept": "application/json"} | ({"Content-Type": content} if content else {})
        self._api.update_params_for_auth(headers, [], ["BearerToken"], where, method, None)
        url = f"{self._api.configuration.host}{where}" + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else msgspec.json.encode(body)
        pool: urllib3.PoolManager = self._api.rest_client.pool_manager
        what = f"{method} {where}"
        if method != "GET":
            self.fence()
        try:
            answer = pool.request(
                method, url, body=data, headers=headers, timeout=TIMEOUT, retries=False, preload_content=False
            )
            received = _received(answer, until)
        except urllib3.exceptions.HTTPError as error:
            raise KubeError(what, 0, f"the API server did not answer ({error})") from error
        if not 200 <= answer.status < 300:
            raise KubeError(what, answer.status, _message(received))
        return received


def connect(kubeconfig: str | None = None) -> Kube:
    """Connect by `kubeconfig` if given, else by the pod's service account, else by the default kubeconfig.

    Raises ConfigException if none of them can be loaded; a given `kubeconfig` is never replaced by another.
    """
    settings = client.Configuration()
    if kubeconfig:
        config.load_kube_config(kubeconfig, client_configuration=settings)  # type: ignore[no-untyped-call]
    else:
        try:
            config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        except config.ConfigException:
            config.load_kube_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    settings.connection_pool_maxsize = THREADS
    return Kube(client.ApiClient(settings))


def _received(answer: urllib3.BaseHTTPResponse, until: float) -> bytes:
    """Read an answer's body. Raises HTTPError if that takes until then: no limit of a silence ends a trickle."""
    pieces: list[bytes] = []
    while piece := answer.read1(_PIECE):
        pieces.append(piece)
        if time.monotonic() > until:
            answer.close()
            came = sum(map(len, pieces))
            raise urllib3.exceptions.HTTPError(f"its answer took too long; {came} bytes of it came")
    answer.release_conn()
    return b"".join(pieces)


def _message(data: bytes) -> str:
    try:
        return msgspec.json.decode(data, type=_Status).message
    except msgspec.DecodeError:
        return data[:500].decode(errors="replace")


def namespaced(namespaces: Sequence[str]) -> Sequence[str]:
    """Return the namespaces to list: each of these, or "" for all."""
    return namespaces or ("",)
