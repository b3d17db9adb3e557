"""An engine ends in good order even if one of its ranks hangs in the middle of an update."""

import os
import signal
from pathlib import Path

import pytest

from mint_contracts.errors import EngineUnavailable, MintError
from mint_contracts.source import Source
from mint_engine import process, serve
from mint_engine.parallel import ranks
from mint_engine.policies.updates import Job, Learnt
from mint_engine.residency import residency
from mint_operator.planning.podspec import GRACE_S
from tests.engine.parallel.learning import Learning
from tests.engine.parallel.processes import followers
from tests.engine.running import running, save_base
from tests.engine.training.scene import OPTIMIZER
from tests.waiting import until

LONG_S = 1.0  # for one piece of an update of this small base


async def test_a_rank_that_hangs_within_an_update_keeps_no_engine_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for the update gets an error, and no policy has changed."""
    monkeypatch.setattr(serve, "_STOP_S", 0.5)
    monkeypatch.setattr(ranks, "_END_S", 0.5)
    base, others, told = save_base(tmp_path / "base"), followers(), list[Learnt | MintError]()
    store = Source(f"file://{tmp_path}/runs")
    async with running(base, tensor_parallel_size=2, training_store=store) as engine:
        server, updates = engine.server, engine.server._updates
        assert updates is not None
        here = Learning(updates.trainer, server.slots, server.generation)
        here.create()
        policy = updates.trainer.policy("p/0")
        before = policy.weights.clone()
        (rank,) = set(followers()) - set(others)
        os.kill(rank, signal.SIGSTOP)
        updates.put(Job(here.batches([0])[0], OPTIMIZER, lambda _: None, told.append))
        assert server._services.parts is not None
        stepper = server._services.parts.stepper
        stepper.wake()
        await until(lambda: updates._work is not None and stepper.stalled_s() > LONG_S)
    (error,) = told
    assert isinstance(error, EngineUnavailable)
    assert (policy.busy, policy.step) == (False, 0)
    assert policy.weights.equal(before)


def test_the_end_of_an_engine_whose_ranks_hang_fits_in_its_pods_grace() -> None:
    """However long its requests take, and even if each other rank of eight must be killed."""
    requests = process.TELL_S + process.DRAIN_S
    steps = serve._STOP_S + ranks._END_S + 6 * ranks._LEAST_S + serve._RELEASED_S
    assert requests + steps + 2 * serve._STOP_S + residency.CLOSE_S < GRACE_S
