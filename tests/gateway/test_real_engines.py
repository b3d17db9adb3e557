"""Two real engines of a tiny base behind a gateway give the same answers, also after one is killed."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import msgspec
import openai
import pytest
from transformers import AutoTokenizer

from mint_contracts import errors, settings, training_pb2, training_pb2_grpc
from mint_contracts.map_reader import MapReader
from mint_contracts.records import Assignment, MapChange, Tier
from mint_contracts.settings import EngineSettings
from mint_contracts.source import Source, child
from mint_contracts.wire import from_rpc_error
from mint_engine.requests.spelling import Spelling
from mint_gateway.answer import Answer, collect
from mint_gateway.client import Client, question
from tests.engine.running import save_adapter, save_base
from tests.engine_views import engine_views
from tests.gateway.scene import BASE, Scene
from tests.redis_process import RedisProcess, free_port
from tests.waiting import until

ADAPTERS = ("demo/one", "demo/two")
PROMPT = "the quick brown fox"
START_S = 500.0  # importing torch twice can take minutes on a busy machine


class Process:
    """One `mint-engine` process."""

    def __init__(self, name: str, engine_settings: EngineSettings, redis_url: str, folder: Path) -> None:
        self.name, self.port = name, free_port()
        self._log = folder / f"{name}.log"
        self._environment = os.environ | {
            settings.ENGINE_SETTINGS: msgspec.json.encode(engine_settings).decode(),
            settings.ENGINE_NAME: name,
            settings.ENGINE_ADDRESS: f"127.0.0.1:{self.port}",
            settings.REDIS_URL: redis_url,
            settings.CACHE_FOLDER: str(folder / name),
        }
        self.start()

    def start(self) -> None:
        ports = ("--port", str(self.port), "--metrics-port", str(free_port()))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mint_engine.main", *ports], env=self._environment, stdout=log, stderr=log
            )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(60)


@pytest.fixture
def store(tmp_path: Path) -> Source:
    """A folder with base/ and adapters/demo/{one,two}; returns the source of adapters/."""
    (tmp_path / "base").mkdir()
    base = save_base(tmp_path / "base")
    for rank, adapter in enumerate(ADAPTERS, 4):
        save_adapter(base, tmp_path / "adapters" / adapter, rank=rank)
    return Source(f"file://{tmp_path}/adapters")


@pytest.fixture
async def engines(
    fragile: Scene, own_redis: RedisProcess, store: Source, tmp_path: Path
) -> AsyncIterator[dict[str, Process]]:
    """Two ready engines with a gateway in front, and each adapter placed on one of them."""
    engine_settings = EngineSettings(
        base_model=BASE,
        source=Source(f"file://{tmp_path}/base"),
        device="cpu",
        dtype="float32",
        context_length=128,
        kv_cache_bytes=1 << 20,
        max_rank=16,
        device_slots=4,
        host_bytes=1 << 20,
        disk_bytes=1 << 20,
        store=store,
        training_store=Source(f"file://{tmp_path}/training"),
    )
    (tmp_path / "training").mkdir()
    with ExitStack() as stack:
        started = {}
        for name in ("e-0", "e-1"):
            started[name] = Process(name, engine_settings, own_redis.url, tmp_path)
            stack.callback(started[name].kill)
        await fragile.base(store=store.uri, trains=True)
        for name, adapter in zip(started, ADAPTERS, strict=True):
            source = child(store, adapter)
            await fragile.place(adapter, name, source=source.uri)
            wanted = Assignment(adapter, source, Tier.DEVICE, ("demo/wave",))
            await fragile.writer.apply(BASE, MapChange(set_assigned={name: (wanted,)}))
        await fragile.open()

        def all_held() -> bool:
            view = fragile.gateway.mirror.views.get(BASE)
            held = {e.name: set(e.held) for e in view.engines.values() if e.available} if view else {}
            return held == {"e-0": {ADAPTERS[0]}, "e-1": {ADAPTERS[1]}}

        await until(all_held, START_S)
        yield started


async def ask(client: Client, adapter: str) -> Answer:
    request = question(PROMPT, adapter=adapter, raw=True, max_tokens=12, logprobs=0)
    return await client.answer(request, timeout_s=60)


async def tells_the_same_by_http(scene: Scene, first: Answer, base: Path) -> None:
    """Check that OpenAI's client gets the same answer as gRPC's, with the prompt before it if it sets `echo`."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt, spelling = tokenizer.encode(PROMPT), Spelling(tokenizer)
    async with openai.AsyncOpenAI(base_url=f"{scene.url}/v1", api_key="none") as client:
        plain, echoed = [
            await client.completions.create(
                model=first.adapter, prompt=asked, max_tokens=12, temperature=0, top_p=0, logprobs=1, echo=echo
            )
            for asked, echo in ((PROMPT, False), (prompt, True))
        ]
        pieces = await client.completions.create(
            model=first.adapter,
            prompt=PROMPT,
            max_tokens=12,
            temperature=0,
            top_p=0,
            logprobs=1,
            echo=True,
            stream=True,
        )
        streamed = [piece.choices[0].logprobs async for piece in pieces]
    assert (plain.choices[0].text, plain.system_fingerprint) == (first.text, first.revision)
    assert echoed.choices[0].text == PROMPT + first.text
    scores, every = (each.model_dump()["choices"][0]["logprobs"] for each in (plain, echoed))
    for written, token in zip(every["tokens"], (*prompt, *first.token_ids), strict=True):
        whole = spelling[token].decode(errors="replace")
        assert written == whole or ("\ufffd" in whole and written.startswith("bytes:"))
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        assert every[name][len(prompt) :] == scores[name]
    whole_text = echoed.choices[0].text
    for written, at in zip(every["tokens"], every["text_offset"], strict=True):
        assert written.startswith("bytes:") or whole_text[at:].startswith(written)
    assert [at for each in streamed if each for at in each.text_offset or ()] == every["text_offset"]
    assert every["text_offset"][len(prompt) :] == [len(PROMPT) + at for at in scores["text_offset"]]
    assert every["token_logprobs"][0] is None
    assert all(score < 0 for score in every["token_logprobs"][1:])


async def test_the_map_leads_each_request_to_the_engine_that_holds_its_adapter(
    fragile: Scene, engines: dict[str, Process], tmp_path: Path
) -> None:
    bare = await ask(fragile.client, "")
    answers = {adapter: await ask(fragile.client, adapter) for adapter in ADAPTERS}
    first = answers[ADAPTERS[0]]
    assert [answers[adapter].engine for adapter in ADAPTERS] == ["e-0", "e-1"]
    assert all(answer.revision.startswith("sha256:") for answer in answers.values())
    assert len({answer.token_ids for answer in (bare, *answers.values())}) == 3
    assert len(bare.logprobs) == len(bare.token_ids) > 0

    await tells_the_same_by_http(fragile, first, tmp_path / "base")

    why = await fragile.client.explain(ADAPTERS[0])
    assert (why.chosen_engine, why.chosen_because) == ("e-0", "holds it in Device")
    with pytest.raises(errors.AdapterNotFound):
        await ask(fragile.client, "demo/nobody")
    with pytest.raises(errors.PromptTooLong):
        await fragile.client.answer(question("fox " * 500, adapter=ADAPTERS[0], raw=True), timeout_s=60)

    # The engine dies; its adapter is in the store, so the other engine loads it and gives the same answer.
    engines["e-0"].kill()
    async with Client(fragile.target, patience_s=90.0) as patient:
        again = await ask(patient, ADAPTERS[0])
    assert (again.engine, again.token_ids, again.revision) == (
        "e-1",
        first.token_ids,
        first.revision,
    )
    await until(lambda: not fragile.gateway.mirror.views[BASE].engines["e-0"].alive)
    await tells_the_same_by_http(fragile, first, tmp_path / "base")

    why = await fragile.client.explain(ADAPTERS[0])
    assert why.chosen_engine == "e-1"
    assert {holder.engine: holder.available for holder in why.holders} == {"e-0": False, "e-1": True}


async def test_what_calls_publish_is_served_by_way_of_the_gateway_also_when_its_engine_has_died(
    fragile: Scene, engines: dict[str, Process]
) -> None:
    policy = "acme/taught"
    with pytest.raises(errors.AdapterNotFound):
        await ask(fragile.client, policy)
    async with grpc.aio.insecure_channel(fragile.target) as channel:
        trainer = training_pb2_grpc.TrainerStub(channel)
        published = await _taught(trainer, policy)
        await until(lambda: fragile.gateway.mirror.views[BASE].published.get(policy) == Source(published.uri))
        answer = await ask(fragile.client, policy)
        trained_by = (await fragile.client.policy(policy)).engine
        assert (answer.engine, answer.revision) == (trained_by, published.revision)
        assert "published by Trainer calls" in (await fragile.client.explain(policy)).chosen_because

        with pytest.raises(grpc.aio.AioRpcError) as taken:
            await _taught(trainer, ADAPTERS[0])
        refusal = from_rpc_error(taken.value)
        assert isinstance(refusal, errors.InvalidRequest)
        expected = f"policy {ADAPTERS[0]!r}: cannot be published: adapter {ADAPTERS[0]!r} of a wave has its name"
        assert expected in str(refusal)

    # The engine dies; its published revision is in the training store, from which the other engine loads it.
    engines[trained_by].kill()
    async with Client(fragile.target, patience_s=90.0) as patient:
        again = await ask(patient, policy)
        assert (again.token_ids, again.revision) == (answer.token_ids, answer.revision)
        assert again.engine != trained_by
        with pytest.raises(errors.PolicyNotFound, match="resume it from what it saved, or create it"):
            await patient.policy(policy)


async def test_what_calls_have_published_keeps_its_name_when_every_engine_starts_anew_until_it_is_dropped(
    fragile: Scene, engines: dict[str, Process]
) -> None:
    policy, mirror = "acme/taught", fragile.gateway.mirror
    async with grpc.aio.insecure_channel(f"127.0.0.1:{engines['e-0'].port}") as channel:
        published = await _taught(training_pb2_grpc.TrainerStub(channel), policy)
    await until(lambda: mirror.views[BASE].published.get(policy) == Source(published.uri))
    answer = await ask(fragile.client, policy)

    def seen(engine: str, state: str) -> bool:
        return bool(getattr(mirror.views[BASE].engines[engine], state))

    # All die at once: the next one to answer has only what is in the store.
    for engine in engines.values():
        engine.kill()
    await until(lambda: not any(each.alive for each in mirror.views[BASE].engines.values()))
    for name in ("e-1", "e-0"):
        engines[name].start()
        await until(partial(seen, name, "alive"), START_S)
        view = mirror.views[BASE].engines[name]
        assert view.published == {policy: Source(published.uri)}, "from its first report on"
        assert not view.available
        await until(partial(seen, name, "available"), START_S)
        async with Client(f"127.0.0.1:{engines[name].port}") as client:
            for asked in (client, fragile.client):
                again = await ask(asked, policy)
                assert (again.revision, again.token_ids) == (published.revision, answer.token_ids)
            assert again.engine == "e-1", "which holds it by then"

    async def unknown() -> bool:
        try:
            await ask(fragile.client, policy)
        except errors.AdapterNotFound:
            return True
        return False

    async with grpc.aio.insecure_channel(f"127.0.0.1:{engines['e-0'].port}") as channel:
        await training_pb2_grpc.TrainerStub(channel).DropPolicy(training_pb2.DropPolicyRequest(policy=policy))
    await until(unknown)


async def _taught(trainer: Any, policy: str) -> training_pb2.PublishResponse:
    """Create a policy, take one step, and publish it."""
    example = training_pb2.Example(tokens=[5, 6, 7, 8], targets=[6, 7, 8, 9], weights=[0, 1, 1, 1])
    await trainer.CreatePolicy(training_pb2.CreatePolicyRequest(policy=policy, rank=4))
    lesson = training_pb2.ForwardBackwardRequest(policy=policy, sequence=1, examples=[example], loss="cross_entropy")
    await trainer.ForwardBackward(lesson)
    await trainer.OptimStep(training_pb2.OptimStepRequest(policy=policy, sequence=2, learning_rate=1e-2))
    published: training_pb2.PublishResponse = await trainer.Publish(
        training_pb2.PublishRequest(policy=policy, sequence=3)
    )
    return published


async def test_serving_goes_on_by_the_last_map_while_redis_is_away_and_an_empty_one_is_told_everything(
    fragile: Scene, own_redis: RedisProcess, engines: dict[str, Process], store: Source
) -> None:
    await fragile.base()  # without a store, which might have any name: only the map counts
    mirror, client = fragile.gateway.mirror, fragile.client
    await until(lambda: mirror.views[BASE].version == fragile.versions[BASE])
    before = {adapter: await ask(client, adapter) for adapter in ("", *ADAPTERS)}
    with pytest.raises(errors.AdapterNotFound):
        await ask(client, "demo/nobody")

    own_redis.kill()
    await until(lambda: mirror.away)
    for adapter, answer in before.items():
        again = await ask(client, adapter)
        assert (again.token_ids, again.revision) == (answer.token_ids, answer.revision)
        assert not adapter or again.engine == answer.engine
    for unknown in (question("Hi", adapter="demo/nobody"), question("Hi", base_model="demo/other")):
        with pytest.raises(errors.MapUnavailable, match="Redis is not responding; retry") as refused:
            await client.answer(unknown)
        assert refused.value.retry_after_s

    own_redis.start()  # having lost everything
    reader = MapReader(fragile.redis)

    async def held() -> bool:
        try:
            views = await engine_views(reader, BASE)
        except errors.MapUnavailable:  # this test's own connections were closed with Redis
            return False
        tiers = {view.engine: {name: each.tier for name, each in view.held.items()} for view in views if view.record}
        return tiers == {engine: {name: Tier.DEVICE} for engine, name in zip(engines, ADAPTERS, strict=True)}

    await until(held, START_S)
    await until(lambda: not mirror.away)
    assert await reader.version(BASE) is None, "what is wanted is the operator's to tell"
    for adapter in ADAPTERS:
        assert (await ask(client, adapter)).token_ids == before[adapter].token_ids
    with pytest.raises(errors.MapUnavailable, match="not complete yet; retry") as refused:
        await ask(client, "demo/nobody")
    assert refused.value.retry_after_s

    known = mirror.views[BASE]
    anew = MapChange(
        base=known.record,
        set_placements=tuple(known.placements.values()),
        set_assigned={
            engine: (Assignment(adapter, child(store, adapter), Tier.DEVICE, ("demo/wave",)),)
            for engine, adapter in zip(engines, ADAPTERS, strict=True)
        },
    )
    version = await fragile.writer.apply(BASE, anew)
    await until(lambda: mirror.views[BASE].version == version)
    with pytest.raises(errors.AdapterNotFound):
        await ask(client, "demo/nobody")
    for adapter in ADAPTERS:
        assert (await ask(client, adapter)).token_ids == before[adapter].token_ids


async def test_answers_that_had_begun_go_on_as_they_would_have_when_their_engine_is_killed(
    fragile: Scene, engines: dict[str, Process]
) -> None:
    async def listen(number: int, begun: asyncio.Event) -> list[tuple[str, tuple[int, ...], str]]:
        request = question(
            PROMPT, adapter=ADAPTERS[0], raw=True, max_tokens=100, temperature=1.0, seed=100 * number, n=2
        )
        request.sampling.ignore_eos = True
        events = []
        async for event in fragile.client.ask(request):
            events.append(event)
            if event.HasField("chunk"):
                begun.set()
        assert sum(event.HasField("started") for event in events) == 1
        return [(answer.text, answer.token_ids, answer.revision) for answer in collect(events)]

    async def listen_to_all(kill: str = "") -> list[object]:
        begun = [asyncio.Event() for _ in range(8)]
        async with asyncio.TaskGroup() as group:
            answers = [group.create_task(listen(number, each)) for number, each in enumerate(begun)]
            await asyncio.gather(*(each.wait() for each in begun))
            if kill:
                engines[kill].kill()
        return [answer.result() for answer in answers]

    counted = fragile.gateway.metrics.registry.get_sample_value
    whole = await listen_to_all()
    assert await listen_to_all(kill="e-0") == whole
    retries = counted("mint_gateway_retries_total", {"reason": "Unavailable"})
    assert retries is not None
    assert retries >= 1
