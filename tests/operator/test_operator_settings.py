"""The operator's settings are read from its environment."""

import subprocess
import sys

import pytest

from mint_contracts.errors import InvalidRequest
from mint_operator import settings

ENV = {
    settings.NAMESPACE: "mint-system",
    settings.LEASE: "mint-operator",
    settings.ENGINE_IMAGE: "mint/engine:0.1.0",
    "MINT_REDIS_URL": "redis://redis",
}


@pytest.mark.parametrize("value", ["8081", ""])
def test_ports_may_be_left_to_the_defaults(value: str) -> None:
    found = settings.read(ENV | {settings.PORT_OF_LIVENESS: value, settings.PORT_OF_METRICS: value})
    assert found.liveness_at == f"0.0.0.0:{value or settings.LIVENESS_PORT}"
    assert str(found.metrics_port) == (value or "9470")


@pytest.mark.parametrize("name", [settings.PORT_OF_LIVENESS, settings.PORT_OF_METRICS])
@pytest.mark.parametrize("value", ["tcp://10.0.0.9:9470", "0", "65536", "-1", "³"])
def test_what_is_no_port_is_refused_by_the_name_of_its_variable(name: str, value: str) -> None:
    with pytest.raises(
        InvalidRequest, match=f"^environment variable {name}: is '{value}', which is not a valid port"
    ):
        settings.read(ENV | {name: value})


@pytest.mark.parametrize("name", ENV)
def test_what_is_needed_and_missing_is_named(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^environment variable {name}: must be set"):
        settings.read({key: value for key, value in ENV.items() if key != name})


def test_the_program_says_that_it_takes_no_options() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "mint_operator.main", "--help"], capture_output=True, check=True, timeout=60
    )
    assert b"usage: mint-operator" in ended.stdout
    assert b"environment variables" in ended.stdout
    assert ended.stderr == b""
