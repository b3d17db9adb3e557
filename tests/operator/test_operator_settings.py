"""The operator's settings are read from its environment."""

import hashlib
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
def test_an_invalid_port_is_refused_by_the_name_of_its_variable(name: str, value: str) -> None:
    with pytest.raises(
        InvalidRequest, match=f"^environment variable {name}: is '{value}', which is not a valid port"
    ):
        settings.read(ENV | {name: value})


@pytest.mark.parametrize("name", ENV)
def test_missing_settings_are_named(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^environment variable {name}: must be set"):
        settings.read({key: value for key, value in ENV.items() if key != name})


def test_engines_are_the_operators_user_of_redis_unless_they_have_one_of_their_own() -> None:
    operator = {"MINT_REDIS_USERNAME": "mint-operator", "MINT_REDIS_PASSWORD": "one"}
    engine = {settings.ENGINE_REDIS_USERNAME: "mint-engine", settings.ENGINE_REDIS_PASSWORD: "two"}
    shared, own = (settings.read(ENV | operator | given).release for given in ({}, engine))
    assert shared.redis_secret == {"username": "mint-operator", "password": "one"}
    assert own.redis_secret == {"username": "mint-engine", "password": "two"}
    default = settings.read(ENV | operator | {settings.ENGINE_REDIS_PASSWORD: "two"}).release
    assert default.redis_secret == {"password": "two"}, "Redis's default user"
    empty = settings.read(ENV | operator | dict.fromkeys(engine, "")).release
    assert empty.redis_secret == {}, "they can do nothing, rather than all that the operator can"
    digests = {each.redis_digest for each in (shared, own, default)}
    assert len(digests) == 3, "engines restart for another user"


def test_an_upgrade_restarts_no_engines_whose_password_is_the_same() -> None:
    assert settings.read(ENV).release.redis_digest == ""
    known = hashlib.pbkdf2_hmac("sha256", b"one", b"mint-engine-redis", 200_000).hex()[:8]
    assert settings.read(ENV | {"MINT_REDIS_PASSWORD": "one"}).release.redis_digest == known


def test_the_program_says_that_it_takes_no_options() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "mint_operator.main", "--help"], capture_output=True, check=True, timeout=60
    )
    assert b"usage: mint-operator" in ended.stdout
    assert b"environment variables" in ended.stdout
    assert ended.stderr == b""
