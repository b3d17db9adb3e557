"""The case that broke MinT's sticky hash: two engines, 512 distinct adapters, 64 parallel requests through a gateway.

The engines are real, of the sample base, each with slots for an eighth of the adapters; all others are loaded on
request. The client never retries: a refused request has failed. MinT's own figure (arXiv 2605.13779) is 49%.
"""

import asyncio
import hashlib
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from e2e.samples import prepare
from mint_contracts import settings
from mint_contracts.errors import MintError
from mint_contracts.functions import connect
from mint_contracts.map_reader import MapReader
from mint_contracts.map_writer import MapWriter
from mint_contracts.records import BaseRecord, MapChange
from mint_contracts.settings import EngineSettings
from mint_contracts.source import Source
from mint_gateway.client import Client, question
from tests.bench.adapters import make_many, names
from tests.bench.models import linears, sample_base
from tests.bench.places import LOGS, scratch
from tests.bench.rows import Row, measured
from tests.bench.scale.gateway import BASE, gateway
from tests.bench.scale.scale import Group, Scale
from tests.redis_process import free_port
from tests.waiting import until

ENGINES, ADAPTERS, TOGETHER = 2, 512, 64
MADE = 2000  # only the first are used; other benchmarks have already made this many
RANK, SLOTS = 8, 64
NEW_TOKENS = 8
START_S = 300.0
ANSWER_S = 300.0
METRIC = "scale.two_replicas_failed_share"


def measure(scale: Scale) -> list[Row]:
    """Measure the one row."""
    with scale.steps.step("base and adapters"):
        base = sample_base(prepare(scale.steps.say).base)
        key = hashlib.sha256((base / "config.json").read_bytes()).hexdigest()[:12]
        store = Source(f"file://{make_many(key, linears(base), RANK, MADE)}")
    count = scale.size(ADAPTERS)
    with scratch("engines") as folder, scale.redis() as redis, ExitStack() as stack:
        told = EngineSettings(
            base_model=BASE, source=Source(f"file://{base}"), device="cpu", dtype="bfloat16", context_length=256,
            kv_cache_bytes=256 << 20, max_rank=RANK, device_slots=SLOTS, host_bytes=256 << 20, disk_bytes=4 << 30,
            store=store,
        )  # fmt: skip
        for number in range(ENGINES):
            stack.enter_context(_engine(f"e-{number}", told, redis.url, folder))
        target = stack.enter_context(gateway(redis.url))
        with scale.steps.step("engines ready"):
            asyncio.run(_ready(redis.url, store))
        asked = [name for name in names(RANK, count) for _ in range(2)]
        random.Random(1).shuffle(asked)
        with scale.steps.step(f"{len(asked)} requests, {count} adapters") as step:
            failed, answered_by = asyncio.run(_ask_all(target, asked))
            step.note = f"{failed.total()} failed; {dict(answered_by)}"
    note = f"{len(asked)} requests to {count} adapters on {ENGINES} engines, {TOGETHER} at once; MinT: 0.49"
    if failed:
        note += f"; {', '.join(f'{times} {reason}' for reason, times in failed.most_common(3))}"
    return [measured(METRIC, [failed.total() / len(asked)], note=note)]


@contextmanager
def _engine(name: str, told: EngineSettings, redis_url: str, folder: Path) -> Iterator[None]:
    port = free_port()
    environment = os.environ | {
        settings.ENGINE_SETTINGS: msgspec.json.encode(told).decode(),
        settings.ENGINE_NAME: name,
        settings.ENGINE_ADDRESS: f"127.0.0.1:{port}",
        settings.REDIS_URL: redis_url,
        settings.CACHE_FOLDER: str(folder / name),
        "OMP_NUM_THREADS": "1",  # two engines share the machine's two cores
    }
    command = [sys.executable, "-m", "mint_engine.main", "--port", str(port), "--metrics-port", str(free_port())]
    LOGS.mkdir(parents=True, exist_ok=True)
    with (LOGS / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.kill()
        process.wait(30)


async def _ready(redis_url: str, store: Source) -> None:
    redis = connect(redis_url)
    await MapWriter(redis, epoch=1).apply(BASE, MapChange(base=BaseRecord(base_model=BASE, store=store)))

    async def all_ready() -> bool:
        pulse = await MapReader(redis).pulse(BASE)
        return sum(record is not None and record.ready for record in pulse.engines.values()) == ENGINES

    await until(all_ready, START_S)
    await redis.aclose()


async def _ask_all(target: str, asked: Sequence[str]) -> tuple[Counter[str], Counter[str]]:
    """Send all requests; return failures by reason, and answers by engine."""
    gate, failed, answered_by = asyncio.Semaphore(TOGETHER), Counter[str](), Counter[str]()
    async with Client(target, patience_s=0.0) as client:

        async def ask(number: int, adapter: str) -> None:
            request = question(f"Tell me about {number}.", adapter=adapter, raw=True, max_tokens=NEW_TOKENS)
            async with gate:
                try:
                    answer = await client.answer(request, timeout_s=ANSWER_S)
                except MintError as error:
                    failed[error.reason] += 1
                else:
                    answered_by[answer.engine] += 1

        await asyncio.gather(*[ask(number, adapter) for number, adapter in enumerate(asked)])
    return failed, answered_by


GROUP = Group((METRIC,), measure)
