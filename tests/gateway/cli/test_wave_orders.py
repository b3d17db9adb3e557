"""`mint wave pause|resume|cancel` against a real API server, with a real kubectl."""

import itertools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.apiserver import ApiServer
from tests.gateway.command import mint

BASE = {"baseModelRef": {"name": "smollm2"}}
TRAIN = {"policies": {"count": 2}, "dataset": {"lines": ['{"prompt": "x"}']}, "reward": {"exactMatch": {}}}
Ask = Callable[..., Awaitable[tuple[int, str, str]]]
_numbers = itertools.count()


@pytest.fixture
def namespace(api_server: ApiServer) -> str:
    """A namespace with a training wave, `lessons`, and a serving wave, `served`."""
    name = api_server.namespace(f"orders-{next(_numbers)}")
    for wave, spec in (("lessons", {"train": TRAIN}), ("served", {"adapters": {"names": ["a"]}})):
        body = {"apiVersion": "mint.dev/v1alpha1", "kind": "AdapterWave", "metadata": {"name": wave}}
        api_server.kubectl("apply", "-n", name, "-f", "-", stdin=json.dumps(body | {"spec": BASE | spec}))
    return name


@pytest.fixture
def ask(api_server: ApiServer, namespace: str) -> Ask:
    """A function that runs `mint wave VERB NAME` in that namespace, without a gateway."""
    places = {"KUBECONFIG": str(api_server.kubeconfig), "HOME": str(api_server.kubeconfig.parent)}

    async def asked(verb: str, wave: str, *options: str, **environment: str) -> tuple[int, str, str]:
        settings = {"PATH": str(api_server.binaries)} | places | environment
        return await mint("127.0.0.1:1", "wave", verb, "-n", namespace, wave, *options, **settings)

    return asked


def spec(api_server: ApiServer, namespace: str, wave: str = "lessons") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(api_server.kubectl("get", "-n", namespace, f"aw/{wave}", "-o", "json"))["spec"]
    return found


async def test_a_wave_is_paused_resumed_and_cancelled_and_nothing_else_of_it_changes(
    api_server: ApiServer, namespace: str, ask: Ask
) -> None:
    before = spec(api_server, namespace)
    for verb, changed, says in (
        ("pause", {"paused": True}, "its policies stop after their step, save and free their slots"),
        ("pause", {"paused": True}, "its policies stop after their step, save and free their slots"),
        ("resume", {"paused": False}, "its policies continue from their last step as slots become free"),
        ("cancel", {"cancelled": True}, "its policies save and end for good; what they published stays"),
        ("cancel", {"cancelled": True}, "its policies save and end for good; what they published stays"),
    ):
        assert await ask(verb, "lessons") == (0, f"wave {namespace}/lessons: {verb} requested: {says}\n", "")
        assert spec(api_server, namespace) == before | {"train": before["train"] | changed}


async def test_resuming_has_those_that_failed_tried_again_and_says_so(
    api_server: ApiServer, namespace: str, ask: Ask
) -> None:
    status = json.dumps({"status": {"training": {"policies": {"total": 2, "failed": 2}}}})
    api_server.kubectl("patch", "-n", namespace, "aw/lessons", "--subresource=status", "--type=merge", "-p", status)
    await ask("pause", "lessons")
    assert spec(api_server, namespace)["train"]["retry"] == 0
    code, out, _ = await ask("resume", "lessons")
    assert (code, out.count("\n")) == (0, 1)
    assert out.endswith("as slots become free; 2 that failed are retried from their last checkpoint\n")
    assert (spec(api_server, namespace)["train"]["paused"], spec(api_server, namespace)["train"]["retry"]) == (
        False,
        1,
    )


@pytest.mark.parametrize("verb", ["pause", "resume"])
async def test_nothing_is_promised_of_policies_that_have_ended(
    api_server: ApiServer, namespace: str, ask: Ask, verb: str
) -> None:
    status = json.dumps({"status": {"phase": "Complete"}})
    api_server.kubectl("patch", "-n", namespace, "aw/lessons", "--subresource=status", "--type=merge", "-p", status)
    says = "its policies have ended, so this has no effect until spec.train.steps is raised"
    assert await ask(verb, "lessons") == (0, f"wave {namespace}/lessons: {verb} requested: {says}\n", "")


async def test_a_namespace_may_stand_before_the_name_and_a_context_be_named(
    api_server: ApiServer, namespace: str, ask: Ask
) -> None:
    assert (await ask("pause", f"{namespace}/lessons", "-n", "elsewhere", "--context", "test"))[0] == 0
    assert spec(api_server, namespace)["train"]["paused"]


async def test_where_none_is_named_the_namespace_is_that_of_kubectl_s_context(
    api_server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    lessons = {"apiVersion": "mint.dev/v1alpha1", "kind": "AdapterWave", "metadata": {"name": "lessons"}}
    body = json.dumps(lessons | {"spec": BASE | {"train": TRAIN}})
    api_server.kubectl("apply", "-n", "default", "-f", "-", stdin=body)
    there = api_server.kubeconfig.read_text().replace("cluster: test,", f"cluster: test, namespace: {namespace},")
    (tmp_path / "kubeconfig").write_text(there)
    settings = {"PATH": str(api_server.binaries), "KUBECONFIG": str(tmp_path / "kubeconfig"), "HOME": str(tmp_path)}

    async def ask(verb: str, wave: str) -> tuple[int, str, str]:
        return await mint("127.0.0.1:1", "wave", verb, wave, **settings)

    try:
        code, out, _ = await ask("cancel", "lessons")
        assert (code, out.split(": cancel requested: ")[0]) == (0, f"wave {namespace}/lessons")
        assert spec(api_server, namespace)["train"]["cancelled"]
        assert not spec(api_server, "default")["train"]["cancelled"]
        message = "mint: NotFound: wave other: does not exist; list the waves that do with kubectl get aw\n"
        assert await ask("pause", "other") == (1, "", message)
        assert (await ask("pause", "default/lessons"))[0] == 0
        assert spec(api_server, "default")["train"]["paused"], "what is named goes before the context's"
    finally:
        api_server.kubectl("delete", "-n", "default", "aw/lessons")


@pytest.mark.parametrize("verb", ["pause", "resume", "cancel"])
async def test_a_wave_that_is_not_there_or_trains_nothing_is_one_clear_error(
    api_server: ApiServer, namespace: str, ask: Ask, verb: str
) -> None:
    problem = f"does not exist; list the waves that do with kubectl get aw -n {namespace}"
    assert await ask(verb, "other") == (1, "", f"mint: NotFound: wave {namespace}/other: {problem}\n")
    before = spec(api_server, namespace, "served")
    problem = "is a serving wave, which cannot be paused, resumed or cancelled; delete it instead"
    assert await ask(verb, "served") == (1, "", f"mint: InvalidRequest: wave {namespace}/served: {problem}\n")
    assert spec(api_server, namespace, "served") == before


@pytest.mark.parametrize("verb", ["pause", "resume"])
async def test_a_cancelled_wave_takes_no_other_order(
    api_server: ApiServer, namespace: str, ask: Ask, verb: str
) -> None:
    await ask("cancel", "lessons")
    before = spec(api_server, namespace)
    problem = "has been cancelled, which cannot be undone; create a new AdapterWave"
    assert await ask(verb, "lessons") == (1, "", f"mint: InvalidRequest: wave {namespace}/lessons: {problem}\n")
    assert spec(api_server, namespace) == before


async def test_a_user_without_permission_gets_the_api_servers_error(
    api_server: ApiServer, namespace: str, ask: Ask, tmp_path: Path
) -> None:
    reader = api_server.kubeconfig.read_text().replace(
        f'user: {{token: "{api_server.token}"}}',
        f'user: {{token: "{api_server.token}", as: reader}}',
    )
    (tmp_path / "kubeconfig").write_text(reader)
    role = ["create", "rolebinding", "reader", "-n", namespace, "--user=reader", "--role=reader"]
    api_server.kubectl("create", "role", "reader", "-n", namespace, "--verb=get", "--resource=adapterwaves.mint.dev")
    api_server.kubectl(*role)
    code, out, err = await ask("cancel", "lessons", KUBECONFIG=str(tmp_path / "kubeconfig"))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"mint: InvalidRequest: wave {namespace}/lessons: cannot be changed: Error from server ")
    assert 'User "reader" cannot patch resource "adapterwaves"' in err
    assert not spec(api_server, namespace)["train"]["cancelled"]


async def test_without_kubectl_or_an_api_server_it_says_what_is_missing(
    api_server: ApiServer, ask: Ask, tmp_path: Path
) -> None:
    code, _, err = await ask("pause", "lessons", PATH=str(tmp_path))
    assert (code, err.split(";")[0]) == (1, "mint: InvalidRequest: kubectl: is not on the PATH")
    code, _, err = await ask("pause", "lessons", "--context", "absent")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("mint: Unavailable: API server: could not be reached by kubectl: error: context")
    elsewhere = api_server.kubeconfig.read_text().replace(api_server.url, "https://127.0.0.1:1")
    (tmp_path / "kubeconfig").write_text(elsewhere)
    code, _, err = await ask("pause", "lessons", KUBECONFIG=str(tmp_path / "kubeconfig"))
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("mint: Unavailable: API server: could not be reached by kubectl: ")


@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [
        ("x", 0o644, "InvalidRequest: kubectl: could not be run (Permission denied); check which is on the PATH"),
        (
            "#!/bin/sh\necho not json",
            0o755,
            "Unavailable: API server: what kubectl printed is not JSON of adapterwaves.mint.dev",
        ),
        (
            "#!/bin/sh\necho '{}'",
            0o755,
            "Unavailable: API server: what kubectl printed is not JSON of adapterwaves.mint.dev",
        ),
        (
            "#!/bin/sh\nprintf '\\377'",
            0o755,
            "Unavailable: API server: what kubectl printed is not JSON of adapterwaves.mint.dev",
        ),
    ],
)
async def test_a_kubectl_that_is_none_is_one_clear_error(
    tmp_path: Path, content: str, mode: int, problem: str
) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(content)
    kubectl.chmod(mode)
    code, out, err = await mint("127.0.0.1:1", "wave", "pause", "demo/lessons", PATH=str(tmp_path))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"mint: {problem}")
