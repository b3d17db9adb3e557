"""The operator connects to the API server that it is told to, and to no other."""

import json
from pathlib import Path

import pytest
from kubernetes.config import ConfigException

from mint_operator.kube import connect

DEFAULT = {
    "current-context": "there",
    "contexts": [{"name": "there", "context": {"cluster": "there", "user": "me"}}],
    "clusters": [{"name": "there", "cluster": {"server": "https://127.0.0.1:1"}}],
    "users": [{"name": "me", "user": {"token": "t"}}],
}


def test_a_kubeconfig_that_is_missing_is_an_error_although_there_is_a_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = tmp_path / "default"
    default.write_text(json.dumps(DEFAULT))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(default))
    connect().close()
    with pytest.raises(ConfigException):
        connect(str(tmp_path / "none"))
