"""A gateway that ends while requests are in flight tells their clients so."""

import asyncio
import json

import aiohttp
import msgspec
import pytest

from mint_contracts.errors import Unavailable
from mint_gateway.client import Client, question
from mint_gateway.http.door import listen
from mint_gateway.server import OPEN, serve
from tests.gateway.http_requests import TEXT
from tests.gateway.scene import BASE, LIMIT_S, LIMITS, Scene
from tests.redis_process import free_port
from tests.waiting import until

BRIEF = msgspec.structs.replace(LIMITS, grace_s=0.0, parting_s=LIMIT_S)
SAYS = "is shutting down; retry"


async def test_what_a_gateway_cannot_finish_fails_as_an_error_that_clients_retry(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    engine.hold_after = 1
    door = listen("127.0.0.1", free_port())
    async with asyncio.timeout(LIMIT_S), aiohttp.ClientSession() as session:
        async with serve(scene.redis, "127.0.0.1:0", door, BRIEF, OPEN) as gateway:
            await until(lambda: gateway.mirror.first_read.is_set() and gateway.mirror.views[BASE].engines)
            begun = asyncio.Event()
            url = f"http://127.0.0.1:{gateway.http_port}{TEXT}"

            async def posted(*, stream: bool) -> tuple[int, str, str]:
                body = {"model": BASE, "prompt": "Ahoy?", "stream": stream}
                async with session.post(url, json=body) as answer:
                    if stream:
                        begun.set()
                    return answer.status, answer.headers.get("Retry-After", ""), await answer.text()

            async def asked() -> None:
                async with Client(f"127.0.0.1:{gateway.port}", patience_s=0.0) as client:
                    await client.answer(question("Ahoy?", base_model=BASE))

            answered = asyncio.create_task(asked())
            whole, streamed = asyncio.create_task(posted(stream=False)), asyncio.create_task(posted(stream=True))
            await until(lambda: len(engine.seen) == 3)
            await begun.wait()
        with pytest.raises(Unavailable, match=SAYS):
            await answered
        status, retry_after, text = await whole
        assert (status, retry_after) == (503, "1")
        assert SAYS in json.loads(text)["error"]["message"]
        status, _, text = await streamed
        *_, error, done = text.strip().split("\n\n")
        assert (status, done) == (200, "data: [DONE]")
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "Unavailable"
