"""Stores outside a closed network are asked through the proxy that the environment names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contracts.lookup import ASK, CREDENTIALS
from tests.engine import stores

ELSEWHERE = "http://store.example"
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


@pytest.mark.parametrize(
    ("path", "variables"),
    [
        (f"{ELSEWHERE}/file", {}),
        ("s3://bucket/file", {"AWS_ENDPOINT_URL": ELSEWHERE} | CREDENTIALS),
        ("gs://bucket/file", {"STORAGE_EMULATOR_HOST": ELSEWHERE}),
        ("hf://owner/model/file", {"HF_ENDPOINT": ELSEWHERE}),
    ],
)
def test_a_store_is_asked_through_the_proxy(tmp_path: Path, path: str, variables: dict[str, str]) -> None:
    there = {name: value for name, value in os.environ.items() if name.lower() not in PROXIES}
    with stores.serving(stores.Files, tmp_path) as (address, proxy):
        command = [sys.executable, "-c", ASK, path.partition(":")[0], path]
        environment = there | variables | {"HTTP_PROXY": f"http://{address}", "http_proxy": f"http://{address}"}
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
        assert any(ELSEWHERE in asked for asked in proxy.seen)
