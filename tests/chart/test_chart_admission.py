"""The rendered chart on a real API server: every object is accepted, and the roles allow only what is needed."""

import asyncio
import json
from collections.abc import Iterator

import msgspec
import pytest
from kubernetes import client

from mint_operator.planning.manifests import redis_secret
from mint_operator.planning.manifests import render as manifests_of
from mint_operator.planning.snapshot import Meta
from tests.apiserver import ApiServer
from tests.chart.rendering import DEFAULTS, NAMESPACE, NAMESPACED, VARIANTS, Object, Values, of_kind, render, rules
from tests.operator.worlds import RELEASE, base
from tests.waiting import until

OPERATOR = f"system:serviceaccount:{NAMESPACE}:mint-operator"
GATEWAY = f"system:serviceaccount:{NAMESPACE}:mint-gateway"
SECRET = "mint-engine-redis"
MONITORING = "monitoring.coreos.com/v1"  # ServiceMonitor and PrometheusRule, whose CRDs this server lacks


@pytest.fixture(scope="module")
def namespaces(api_server: ApiServer) -> list[str]:
    """Make the release's namespace, which enforces the strictest Pod Security Standard, and two watched ones."""
    for name in (NAMESPACE, "team-a", "team-b"):
        api_server.namespace(name)
    api_server.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    return [NAMESPACE, "team-a", "team-b"]


def as_list(objects: list[Object]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_object_is_accepted(api_server: ApiServer, values: Values) -> None:
    objects = [each for each in render(values) if each["apiVersion"] != MONITORING]
    output = api_server.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=as_list(objects))
    assert len(output.splitlines()) == len(objects)


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_pod_meets_the_restricted_standard(api_server: ApiServer, values: Values) -> None:
    for name, workload in of_kind(render(values), "Deployment", "StatefulSet").items():
        template = workload["spec"]["template"]
        for users_own in ("priorityClassName", "runtimeClassName"):  # these classes do not exist here
            template["spec"].pop(users_own, None)
        mounts = {volume["name"] for volume in template["spec"]["volumes"]}
        missing = {mount["name"] for mount in template["spec"]["containers"][0]["volumeMounts"]} - mounts
        template["spec"]["volumes"] += [{"name": volume, "emptyDir": {}} for volume in missing]
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE}}
        text = json.dumps(body | {"spec": template["spec"]})
        assert "created" in api_server.kubectl("create", "--dry-run=server", "-f", "-", stdin=text)


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS.keys())
def test_applying_the_chart_again_changes_nothing(api_server: ApiServer, values: Values) -> None:
    """GitOps tools compare like this: an object that always differs would never be in sync."""
    objects = as_list([each for each in render(values) if each["apiVersion"] != MONITORING])
    api_server.kubectl("apply", "--server-side", "-f", "-", stdin=objects)
    try:
        assert api_server.kubectl("diff", "--server-side", "-f", "-", stdin=objects) == ""
    finally:
        api_server.kubectl("delete", "-f", "-", stdin=objects)


CHILD_VERBS = ("get", "list", "watch", "create", "patch")
# (group, resource, subresource, verb, name) that the operator uses wherever it watches.
NEEDED = [
    *[
        ("mint.dev", kind, "", verb, "")
        for kind in ("basemodels", "adapterwaves")
        for verb in ("get", "list", "watch")
    ],
    *[("mint.dev", kind, "status", "patch", "") for kind in ("basemodels", "adapterwaves")],
    *[("apps", "statefulsets", "", verb, "") for verb in ("get", "list", "watch", "create", "patch")],
    *[("leaderworkerset.x-k8s.io", "leaderworkersets", "", verb, "") for verb in ("get", "list", "create", "patch")],
    *[("", kind, "", verb, "") for kind in ("services", "serviceaccounts") for verb in CHILD_VERBS],
    *[("policy", "poddisruptionbudgets", "", verb, "") for verb in CHILD_VERBS],
    *[("networking.k8s.io", "networkpolicies", "", verb, "") for verb in CHILD_VERBS],
    *[("", "pods", "", verb, "") for verb in ("get", "list", "watch")],
    *[("", "events", "", verb, "") for verb in ("create", "list")],
    ("", "configmaps", "", "get", "lessons"),
    ("", "secrets", "", "create", ""),
    ("", "secrets", "", "patch", SECRET),
    ("", "secrets", "", "get", SECRET),
    ("", "secrets", "", "delete", SECRET),  # to change its owners
]
FORBIDDEN = [
    ("", "secrets", "", "get", "someone-elses"),
    ("", "secrets", "", "list", ""),
    ("", "secrets", "", "watch", ""),
    ("", "secrets", "", "delete", "someone-elses"),
    ("", "pods", "", "create", ""),
    ("", "pods", "", "delete", ""),
    ("", "pods", "exec", "create", ""),
    ("", "nodes", "", "list", ""),
    ("", "configmaps", "", "list", ""),
    ("", "configmaps", "", "patch", "lessons"),
    ("apps", "statefulsets", "", "delete", ""),
    ("apps", "deployments", "", "patch", ""),
    ("leaderworkerset.x-k8s.io", "leaderworkersets", "", "delete", ""),
    ("mint.dev", "basemodels", "", "patch", ""),
    ("mint.dev", "basemodels", "", "delete", ""),
    ("mint.dev", "basemodels", "finalizers", "update", ""),
    ("rbac.authorization.k8s.io", "roles", "", "create", ""),
    ("apiextensions.k8s.io", "customresourcedefinitions", "", "list", ""),
]
Attributes = tuple[str, str, str, str, str]


class Access:
    """Asks the API server which actions a user is allowed."""

    def __init__(self, server: ApiServer) -> None:
        self._reviews = client.AuthorizationV1Api(server.client())

    def allowed(self, user: str, namespace: str, asked: list[Attributes]) -> list[Attributes]:
        """Return those of `asked` that `user` may do in `namespace`."""
        return [each for each in asked if self._review(user, namespace, each)]

    def comes_to_allow(self, user: str, namespace: str, asked: list[Attributes], may: list[Attributes]) -> None:
        """Wait until exactly these are allowed: the authoriser sees roles a moment after they are stored."""
        asyncio.run(until(lambda: self.allowed(user, namespace, asked) == may))

    def _review(self, user: str, namespace: str, asked: Attributes) -> bool:
        group, resource, subresource, verb, name = asked
        attributes = client.V1ResourceAttributes(
            group=group, resource=resource, subresource=subresource, verb=verb, name=name, namespace=namespace
        )
        spec = client.V1SubjectAccessReviewSpec(user=user, resource_attributes=attributes)
        review = client.V1SubjectAccessReview(spec=spec)
        status = self._reviews.create_subject_access_review(review).status
        return status is not None and bool(status.allowed)


@pytest.fixture(scope="module")
def access(api_server: ApiServer) -> Access:
    return Access(api_server)


@pytest.fixture
def roles(api_server: ApiServer, namespaces: list[str], request: pytest.FixtureRequest) -> Iterator[None]:
    """Apply the roles and bindings of a variant for one test."""
    del namespaces
    kinds = ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
    text = as_list([each for each in render(request.param) if each["kind"] in kinds])
    api_server.kubectl("apply", "-f", "-", stdin=text)
    yield
    api_server.kubectl("delete", "-f", "-", stdin=text)


LEASE = ("coordination.k8s.io", "leases", "", "update", "mint-operator")


@pytest.mark.usefixtures("roles")
@pytest.mark.parametrize("roles", [DEFAULTS], indirect=True)
def test_the_operator_may_do_what_it_needs_everywhere_and_no_more(access: Access) -> None:
    for namespace in (NAMESPACE, "anywhere"):
        access.comes_to_allow(OPERATOR, namespace, NEEDED, NEEDED)
        assert access.allowed(OPERATOR, namespace, FORBIDDEN) == []
    access.comes_to_allow(OPERATOR, NAMESPACE, [LEASE], [LEASE])
    assert access.allowed(OPERATOR, "anywhere", [LEASE]) == []


@pytest.mark.usefixtures("roles")
@pytest.mark.parametrize("roles", [NAMESPACED], indirect=True)
def test_with_watched_namespaces_the_operator_may_do_nothing_elsewhere(access: Access) -> None:
    for namespace in ("team-a", "team-b"):
        access.comes_to_allow(OPERATOR, namespace, NEEDED, NEEDED)
        assert access.allowed(OPERATOR, namespace, FORBIDDEN) == []
    for namespace in ("anywhere", NAMESPACE):  # where another test allows it
        access.comes_to_allow(OPERATOR, namespace, NEEDED, [])
    access.comes_to_allow(OPERATOR, NAMESPACE, [LEASE], [LEASE])


@pytest.mark.usefixtures("roles")
@pytest.mark.parametrize("roles", [DEFAULTS], indirect=True)
def test_bases_come_and_go_where_owner_references_need_permission(api_server: ApiServer, access: Access) -> None:
    access.comes_to_allow(OPERATOR, "team-a", NEEDED, NEEDED)
    one, other = (
        msgspec.structs.replace(base(), meta=Meta("team-a", name, f"uid-{name}", 1, "2026-01-01T00:00:00Z"))
        for name in ("one", "other")
    )
    release = msgspec.structs.replace(RELEASE, redis_password="hush", gateway_labels={"app": "gateway"})
    steps = [[redis_secret(owners, release)] for owners in ([one], [one, other], [other])]
    for manifests in [*steps, manifests_of(one, release, 1), manifests_of(one, release, 2)]:
        bodies = as_list([each.body for each in manifests])
        api_server.kubectl("apply", "--server-side", f"--as={OPERATOR}", "-f", "-", stdin=bodies)


@pytest.mark.usefixtures("roles")
@pytest.mark.parametrize("roles", [DEFAULTS], indirect=True)
def test_gateways_have_no_permissions(access: Access) -> None:
    assert access.allowed(GATEWAY, NAMESPACE, NEEDED + FORBIDDEN) == []


SEEN = [
    ("mint.dev", kind, "", verb, "") for kind in ("basemodels", "adapterwaves") for verb in ("get", "list", "watch")
]
WAVES = [("mint.dev", "adapterwaves", "", verb, "") for verb in ("create", "update", "patch", "delete")]
NOT_FOR_PEOPLE = [
    ("mint.dev", "basemodels", "", "create", ""),
    ("mint.dev", "basemodels", "", "patch", ""),
    ("mint.dev", "adapterwaves", "status", "patch", ""),
    ("", "secrets", "", "get", SECRET),
]


@pytest.mark.usefixtures("roles")
@pytest.mark.parametrize("roles", [{"userRoles": {"aggregate": True}}], indirect=True)
@pytest.mark.parametrize(("role", "may"), [("view", SEEN), ("edit", WAVES)])
def test_people_see_what_is_in_their_namespace_and_editors_make_waves(
    api_server: ApiServer, access: Access, role: str, may: list[Attributes]
) -> None:
    """Kubernetes' controller, which does not run here, would add the chart's roles to its own by these labels."""
    chosen = f"rbac.authorization.k8s.io/aggregate-to-{role}=true,app.kubernetes.io/part-of=mint"
    found = api_server.kubectl("get", "clusterroles", "-l", chosen, "-o", "name").split()
    assert found == [f"clusterrole.rbac.authorization.k8s.io/mint-{role}"]
    user = f"somebody-who-{role}s"
    api_server.kubectl("create", "rolebinding", user, "-n", "team-a", f"--clusterrole=mint-{role}", f"--user={user}")
    access.comes_to_allow(user, "team-a", [*SEEN, *WAVES, *NOT_FOR_PEOPLE], may)
    assert access.allowed(user, "team-b", SEEN + WAVES) == []


def test_with_watched_namespaces_nothing_is_cluster_wide() -> None:
    assert of_kind(render(NAMESPACED), "ClusterRole", "ClusterRoleBinding") == {}


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS.keys())
def test_no_rule_is_a_wildcard_nor_deletes_nor_reads_unnamed_secrets(values: Values) -> None:
    for group, resource, verb, named in rules(render(values)):
        assert "*" not in (group, resource, verb)
        assert verb not in {"deletecollection", "escalate", "bind", "impersonate"}
        assert verb != "delete" or (resource, named) == ("secrets", (SECRET,))
        assert resource != "secrets" or verb == "create" or named == (SECRET,)
