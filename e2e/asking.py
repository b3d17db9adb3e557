"""Sends requests to the gateway: one, or many over and over while something happens to the cluster."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from e2e.samples import TRAINED
from e2e.world import World
from mint_contracts.errors import MintError
from mint_contracts.sampling_pb2 import GenerateRequest
from mint_gateway.answer import Answer
from mint_gateway.client import Client, question

NAMES = [adapter.name for adapter in TRAINED]
PAUSE_S = 0.1  # between each client's requests, so that an engine that starts meanwhile gets processor time, too

T = TypeVar("T")


def ask(world: World, call: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
    """Make one call to the gateway."""

    async def run() -> T:
        async with Client(world.gateway) as client:
            return await call(client)

    return asyncio.run(run())


async def answers(target: str, requests: Sequence[GenerateRequest]) -> list[Answer | MintError]:
    """Send all requests at once; return the answers or errors in the same order."""

    async def one(client: Client, request: GenerateRequest) -> Answer | MintError:
        try:
            return await client.answer(request)
        except MintError as error:
            return error

    async with Client(target) as client:
        return list(await asyncio.gather(*(one(client, request) for request in requests)))


async def while_asking(world: World, act: Callable[[], Awaitable[None]]) -> list[Answer | MintError]:
    """Ask all adapters and the bare base over and over while `act` runs; returns every outcome."""
    outcomes: list[Answer | MintError] = []
    done = asyncio.Event()

    async def go_on(client: Client, adapter: str) -> None:
        while not done.is_set():
            try:
                outcomes.append(await client.answer(question("What is the sea?", adapter=adapter, max_tokens=12)))
            except MintError as error:
                outcomes.append(error)
            await asyncio.sleep(PAUSE_S)

    async with Client(world.gateway, patience_s=60) as client, asyncio.TaskGroup() as group:
        for adapter in ["", *NAMES]:
            group.create_task(go_on(client, adapter))
        await act()
        done.set()
    return outcomes


def lost(outcomes: list[Answer | MintError]) -> list[MintError]:
    """Return the errors among `outcomes`, which must not be empty."""
    assert outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, MintError)]
