"""Scopes that change while a gateway runs: new calls obey them, and an unreadable file closes everything."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mint_contracts import errors
from tests.gateway.tenants import SCOPES, Tenants, lessons
from tests.waiting import until


async def test_scopes_change_without_a_restart_and_what_has_begun_goes_on(tenants: Tenants) -> None:
    async def may(who: str, adapter: str) -> bool:
        status, _ = await tenants.http(who, "GET", f"/v1/models/{adapter}")
        return status == 200

    updates = tenants.clients["acme"].watch("acme/lessons")
    assert (await anext(updates)).phase == "Training"
    tenants.scope({"acme": {"adapters": ["rival/"], "namespaces": ["models"]}})
    await until(lambda: may("acme", "rival/bot"))
    assert not await may("acme", "acme/bot")
    assert await may("rival", "acme/bot"), "its scope is gone"
    with pytest.raises(errors.NotFound):
        await anext(tenants.clients["acme"].watch("acme/lessons"))
    await tenants.train(lessons("acme", "Complete"))
    async with asyncio.timeout(60):
        assert (await anext(updates)).phase == "Complete"


@pytest.mark.parametrize("content", [b"{", b"[]"])
async def test_a_file_that_cannot_be_read_closes_all_until_it_can(tenants: Tenants, content: bytes) -> None:
    async def closed() -> bool:
        return await status_of("admin") == await status_of("acme") == 401

    async def open_again() -> bool:
        return await status_of("admin") == await status_of("acme") == 200

    async def status_of(who: str) -> int:
        return (await tenants.http(who, "GET", "/v1/models"))[0]

    assert await open_again()
    with capture_logs() as logs:
        tenants.scope(content)
        await until(closed)
        with pytest.raises(errors.Unauthenticated, match="the gateway cannot read; contact its administrator"):
            await tenants.clients["admin"].placements()
    assert [line["event"] for line in logs if line["log_level"] == "error"] == [
        "scopes cannot be read; every key is rejected until they can"
    ]
    tenants.scope(SCOPES)
    await until(open_again)


async def test_a_file_that_is_gone_closes_all_too(tenants: Tenants, tmp_path: Path) -> None:
    scopes, away = tmp_path / "scopes", tmp_path / "away"

    async def answers(status: int) -> bool:
        return (await tenants.http("admin", "GET", "/v1/models"))[0] == status

    with capture_logs() as logs:
        scopes.rename(away)
        await until(lambda: answers(401))
        away.rename(scopes)
        await until(lambda: answers(200))
    [line] = [line for line in logs if line["log_level"] == "error"]
    assert line["event"] == "scopes cannot be read; every key is rejected until they can"


async def test_a_scope_that_is_torn_closes_its_key_and_no_other(tenants: Tenants) -> None:
    tenants.scope(SCOPES | {"acme": {"adapters": ["acme/"], "namespace": ["acme"]}})

    async def closed() -> bool:
        return (await tenants.http("acme", "GET", "/v1/models"))[0] == 401

    await until(closed)
    for who in ("rival", "admin"):
        assert (await tenants.http(who, "GET", "/v1/models"))[0] == 200


async def test_a_scope_of_no_key_is_told_of_once_while_it_is_there(tenants: Tenants) -> None:
    def strays(logs: list[Any]) -> list[str]:
        return [line["client"] for line in logs if line["event"] == "scope names an unknown key"]

    with capture_logs() as logs:
        tenants.scope(SCOPES | {"acmee": {"adapters": ["acme/"]}})
        await until(lambda: strays(logs))
        tenants.scope(SCOPES | {"acmee": {"adapters": ["acme/b"]}, "other": {"adapters": []}})
        await until(lambda: len(strays(logs)) > 1)
        tenants.scope(SCOPES | {"other": {"adapters": []}})
        tenants.scope(SCOPES)
        await until(lambda: [line["event"] for line in logs].count("scopes loaded") > 2)
        tenants.scope(SCOPES | {"acmee": {"adapters": ["acme/"]}})
        await until(lambda: len(strays(logs)) > 2)
    assert strays(logs) == ["acmee", "other", "acmee"]
