"""A request that kills every engine that takes it: it is sent to a few engines only, and the others keep serving."""

import asyncio
from typing import Any

import grpc
import openai
import pytest

from mint_contracts import sampling_pb2
from mint_contracts.errors import Internal
from mint_gateway.client import question
from mint_gateway.retries import Patience
from mint_gateway.server import Limits
from tests.gateway.scene import BASE, Scene
from tests.gateway.scripted import ScriptedEngine

DEADLY = "the word that ends them"


class Mortal(ScriptedEngine):
    """An engine that dies, with all its connections, on a request with DEADLY in it."""

    async def Generate(  # type: ignore[override]  # noqa: N802 - the name is the proto's
        self, request: sampling_pb2.GenerateRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> None:
        if DEADLY in str(request):
            self.seen.append(request)
            self.ending = asyncio.create_task(self.deafen())
            await asyncio.Event().wait()
        await super().Generate(request, context)


async def test_it_is_handed_on_a_few_times_and_then_refused_for_good(scene: Scene) -> None:
    await scene.base()
    engines = [await scene.engine(f"e-{number}", kind=Mortal) for number in range(6)]
    await scene.begin(*engines, limits=Limits(farewell_s=0.0))
    with pytest.raises(Internal, match=f"{Patience().deaths} engines in a row failed while processing it"):
        await scene.client.answer(question(DEADLY))
    assert sum(bool(each.seen) for each in engines) == Patience().deaths
    assert (await scene.client.answer(question("Ahoy"))).text, "who was spared serves on"


async def test_openai_clients_do_not_ask_again_by_themselves(scene: Scene) -> None:
    await scene.base()
    engines = [await scene.engine(f"e-{number}", kind=Mortal) for number in range(6)]
    await scene.begin(*engines, limits=Limits(farewell_s=0.0))
    async with openai.AsyncOpenAI(base_url=f"{scene.url}/v1", api_key="none") as client:
        with pytest.raises(openai.InternalServerError, match="it may be the cause and is not retried"):
            await client.completions.create(model=BASE, prompt=DEADLY)
    assert sum(bool(each.seen) for each in engines) == Patience().deaths
