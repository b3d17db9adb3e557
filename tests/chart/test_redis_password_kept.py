"""The generated Redis password outlives its release, as engines do: a new password would restart all of them."""

import json
from typing import Any

from tests.apiserver import ApiServer
from tests.chart.rendering import CHART, PUSHED, Values, helm, of_kind, render
from tests.crds.admission import merged

NAME = "keeping-mint-redis"


class Release:
    """A release in its own namespace, so that only cluster-wide names could collide with those of others."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self._server, self._namespace = server, namespace

    def install(self) -> None:
        given = merged(PUSHED, {"watchNamespaces": [self._namespace]})
        self._helm("install", "keeping", str(CHART), "--skip-crds", values=given)

    def uninstall(self) -> None:
        self._helm("uninstall", "keeping")

    def secret(self) -> dict[str, Any] | None:
        """Return the Secret, if there is one."""
        output = self._server.kubectl(
            "get", "secret", NAME, "-n", self._namespace, "--ignore-not-found", "-o", "json"
        )
        found: dict[str, Any] | None = json.loads(output) if output.strip() else None
        return found

    def delete(self) -> None:
        self._server.kubectl("delete", "secret", NAME, "-n", self._namespace)

    def _helm(self, *args: str, values: Values | None = None) -> None:
        helm(*args, "-n", self._namespace, "--kubeconfig", str(self._server.kubeconfig), values=values)


def test_an_install_reuses_the_password_that_an_uninstall_left(api_server: ApiServer) -> None:
    release = Release(api_server, api_server.namespace("redis-password-kept"))
    release.install()
    first = release.secret()
    assert first is not None
    release.uninstall()
    assert release.secret() == first
    release.install()
    again = release.secret()
    assert again is not None
    assert (again["data"], again["metadata"]["uid"]) == (first["data"], first["metadata"]["uid"])
    release.uninstall()
    release.delete()
    release.install()
    anew = release.secret()
    assert anew is not None
    assert anew["data"] != first["data"]
    release.uninstall()


def test_with_an_existing_secret_the_chart_makes_none() -> None:
    assert "mint-redis" in of_kind(render({}), "Secret")
    assert "mint-redis" not in of_kind(render({"redis": {"existingSecret": "own"}}), "Secret")
