"""A real engine whose places are all taken by long requests of one adapter, and a newcomer of another."""

import asyncio
from pathlib import Path

from mint_engine import metrics
from mint_engine.scheduling.scheduler import Limits
from tests.engine.running import ask, running, save_adapter, save_base
from tests.waiting import until

CONTEXT = 640
PLACES = Limits().running
LONG = 600  # new tokens of each running request: far more than a place is kept for


async def test_a_newcomer_is_served_long_before_others_end_and_nobodys_tokens_change(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", max_position_embeddings=CONTEXT)
    adapters = {name: save_adapter(base, tmp_path / name, rank=rank) for name, rank in (("hot", 4), ("cold", 3))}
    sampling = {"ignore_eos": True, "temperature": 1.0, "logprobs": 0}
    turns = metrics.PREEMPTED_FOR_TURN._value.get()
    async with running(base, adapters, context_length=CONTEXT, kv_cache_bytes=24 << 20) as engine:
        prompts = [[5 + at, 6, 7] for at in range(PLACES)]
        hot = [
            asyncio.create_task(ask(engine, prompt, "hot", max_tokens=LONG, seed=at, **sampling))
            for at, prompt in enumerate(prompts)
        ]
        await until(lambda: engine.stepper.load.running == PLACES)
        newcomer = await ask(engine, [9, 8, 7], "cold", max_tokens=5, seed=1, **sampling)
        assert not any(each.done() for each in hot)
        [gave_way] = [each for each in engine.server.generation.scheduler.live if each.reached]
        together = await asyncio.gather(*hot)
        assert metrics.PREEMPTED_FOR_TURN._value.get() == turns + 1
        again = await ask(engine, [9, 8, 7], "cold", max_tokens=5, seed=1, **sampling)
        assert (newcomer.tokens, newcomer.logprobs) == (again.tokens, again.logprobs)
        for at in {0, prompts.index(list(gave_way.request.prompt))}:
            alone = await ask(engine, prompts[at], "hot", max_tokens=LONG, seed=at, **sampling)
            assert (together[at].tokens, together[at].logprobs) == (alone.tokens, alone.logprobs)
            assert together[at].text == alone.text
