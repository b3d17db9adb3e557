"""OpenAI's own client, of a gateway before a real engine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import openai

from tests.engine.running import running
from tests.gateway.scene import BASE, Scene

CONTEXT = 1024


@asynccontextmanager
async def asking(scene: Scene, base: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    """The client, while the engine serves a base of `CONTEXT` tokens, and no adapters."""
    async with running(base, base_model=BASE, context_length=CONTEXT) as real:
        await scene.base()
        engine = await scene.engine("e-0")
        engine.address = f"127.0.0.1:{real.server.port}"  # reports for it
        await engine.report()
        await scene.open()
        await scene.seen(engine)
        async with openai.AsyncOpenAI(base_url=f"{scene.url}/v1", api_key="none", max_retries=0) as client:
            yield client
