"""Stores behind TLS are verified with the CAs in the environment variables that the chart's caBundle sets in pods."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from mint_operator.planning.podspec import BUNDLE_VARIABLES
from tests.contracts.lookup import ASK, CREDENTIALS
from tests.engine import stores


@pytest.mark.parametrize(
    ("path", "environment"),
    [
        ("https://{}/file", {}),
        ("s3://bucket/file", {"AWS_ENDPOINT_URL": "https://{}"} | CREDENTIALS),
        ("gs://bucket/file", {"STORAGE_EMULATOR_HOST": "https://{}"}),
        ("hf://owner/model/file", {"HF_ENDPOINT": "https://{}"}),
    ],
)
def test_a_store_is_trusted_when_its_ca_is_in_the_bundle(
    tmp_path: Path, path: str, environment: Mapping[str, str]
) -> None:
    context, authority = stores.self_signed(tmp_path)
    with stores.serving(stores.Files, tmp_path, context) as (address, handler):

        def ask(variables: dict[str, str]) -> int:
            told = {name: value.format(address) for name, value in environment.items()}
            command = [sys.executable, "-c", ASK, path.partition(":")[0], path.format(address)]
            subprocess.run(command, env=os.environ | told | variables, check=True, capture_output=True, timeout=120)
            return len(handler.seen)

        assert ask({}) == 0
        assert ask(dict.fromkeys(BUNDLE_VARIABLES, str(authority))) > 0
