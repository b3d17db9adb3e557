"""OpenAI's own client for a gateway with a real engine behind it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import openai

from mint_contracts.records import Tier
from tests.engine.running import running
from tests.gateway.scene import BASE, STORE, Scene

CONTEXT = 1024


@asynccontextmanager
async def asking(
    scene: Scene, base: Path, adapters: Mapping[str, Path] | None = None
) -> AsyncIterator[openai.AsyncOpenAI]:
    """Yield the client while the engine serves a base of `CONTEXT` tokens with these adapters."""
    adapters = dict(adapters or {})
    async with running(base, adapters, base_model=BASE, context_length=CONTEXT) as real:
        await scene.base()
        engine = await scene.engine("e-0")
        engine.address = f"127.0.0.1:{real.server.port}"  # reports for it
        for name in adapters:
            await engine.hold(name, f"{STORE}/{name}", Tier.DEVICE)
            await scene.place(name, "e-0")
        await engine.report()
        await scene.begin(engine)
        async with openai.AsyncOpenAI(base_url=f"{scene.url}/v1", api_key="none", max_retries=0) as client:
            yield client
