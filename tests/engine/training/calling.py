"""A training engine and a client of its Trainer service, connected by a real socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from mint_contracts import training_pb2 as pb
from mint_contracts import training_pb2_grpc
from mint_contracts.errors import MintError, SourceUnavailable
from mint_contracts.wire import from_rpc_error
from mint_engine.policies.calls.call_context import CallContext
from mint_engine.policies.stored.announcement_cache import AnnouncementCache
from mint_engine.policies.stored.checkpoints import RECORD
from mint_engine.policies.stored.resting import RestingPolicies
from mint_engine.policies.stored.store import Content, LocalStore, store_of
from tests.engine.training.training_engine import Scene, training

BASE = "tests/tiny"


@asynccontextmanager
async def called(base: Path, folder: Path, **settings: Any) -> AsyncIterator[tuple[Scene, Any]]:
    async with training(base, folder, **settings) as scene:
        await answer_calls(scene)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{scene.server.port}") as channel:
            yield scene, training_pb2_grpc.TrainerStub(channel)


async def answer_calls(scene: Scene, engine: str = "tiny-0") -> AnnouncementCache:
    """Open the engine's Trainer service; the engine serves the names announced in its store so far."""
    cache = AnnouncementCache(scene.store, BASE, engine)
    cache.on_change = lambda: scene.residency.lending.announce(cache.known)
    await cache.look()
    store, roster = store_of(scene.store), scene.roster
    resting = RestingPolicies(store, BASE)
    scene.server.register.context = CallContext(
        scene.context, store, lambda: roster.policies, nobody_else, cache, resting
    )
    return cache


async def nobody_else(_policy: str) -> None:
    """Report every policy name as free: no other engine or wave has it."""


def lesson(policy: str, sequence: int, **changes: Any) -> pb.ForwardBackwardRequest:
    example = pb.Example(tokens=[5, 6, 7, 8], targets=[6, 7, 8, 9], weights=[0, 1, 1, 1])
    options: dict[str, Any] = {"examples": [example], "loss": "cross_entropy"} | changes
    return pb.ForwardBackwardRequest(policy=policy, sequence=sequence, **options)


def step(policy: str, sequence: int) -> pb.OptimStepRequest:
    return pb.OptimStepRequest(policy=policy, sequence=sequence, learning_rate=1e-2)


async def taught(stub: Any, policy: str) -> pb.PolicyState:
    """Create a policy, take a step, and accumulate a gradient for the next."""
    made: pb.PolicyState = await stub.CreatePolicy(pb.CreatePolicyRequest(policy=policy, rank=4, seed=3))
    await stub.ForwardBackward(lesson(policy, 1))
    await stub.OptimStep(step(policy, 2))
    await stub.ForwardBackward(lesson(policy, 3))
    return made


def resume(policy: str, life: int = 0) -> pb.ResumePolicyRequest:
    return pb.ResumePolicyRequest(policy=policy, life=life)


def away(*_: object) -> None:
    """Fail as a method of a store that does not answer."""
    raise SourceUnavailable("store", "does not answer")


def fail_after_records(patch: pytest.MonkeyPatch) -> None:
    """Have stores write policies' records and then fail, as if only the answer were lost."""
    write = LocalStore.write

    def half_way(self: LocalStore, path: str, content: Content) -> None:
        write(self, path, content)
        if path.endswith(RECORD):
            away()

    patch.setattr(LocalStore, "write", half_way)


async def refused(call: Any) -> MintError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return from_rpc_error(error.value)
