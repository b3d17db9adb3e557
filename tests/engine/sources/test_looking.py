"""Looking for names in a store that does not answer keeps few threads, and nothing of looks that were given up."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from mint_contracts.errors import Overloaded, SourceUnavailable
from mint_contracts.source import Source
from mint_engine.sources import looking
from mint_engine.sources.looking import look_for
from tests.waiting import PATIENCE_S, until

SILENT, GOOD = Source("file:///silent"), Source("file:///good")


class Folder:
    """A folder with one adapter; if silent, its reads do not return for long."""

    def __init__(self, answers: threading.Event | None) -> None:
        self._answers = answers

    def files(self, *_: str) -> dict[str, int | None]:
        if self._answers:
            self._answers.wait(PATIENCE_S)
        return {"adapter_config.json": 2}


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    answers = threading.Event()
    monkeypatch.setattr(looking, "folder_of", lambda source: Folder(answers if source == SILENT else None))
    yield
    answers.set()


async def test_requests_that_wait_for_a_silent_store_hold_up_no_policys_check() -> None:
    looks = [asyncio.create_task(look_for(SILENT, "requests")) for _ in range(8)]
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE_S):
        assert await look_for(GOOD, "policies") == ["adapter_config.json"]
    for look in looks:
        look.cancel()
    await asyncio.wait(looks)


async def test_looks_beyond_a_number_are_refused_at_once() -> None:
    looks = [asyncio.create_task(look_for(SILENT, "requests")) for _ in range(looking.MOST_LOOKS)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="is already asked for 64 names; retry later"):
        await look_for(GOOD, "requests")
    for look in looks:
        look.cancel()
    await asyncio.wait(looks)
    async with asyncio.timeout(PATIENCE_S):
        assert await look_for(GOOD, "policies")


async def test_a_look_that_is_given_up_is_kept_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "LOOK_S", 0.01)
    for _ in range(3):
        looks = [asyncio.create_task(look_for(SILENT, "requests")) for _ in range(looking.MOST_LOOKS)]
        await asyncio.wait(looks)
        assert all(isinstance(look.exception(), SourceUnavailable) for look in looks)
    await until(lambda: not looking._threads._waiting)
