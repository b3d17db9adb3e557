"""Answers to gRPC calls that clients do not read take only so much of a gateway's memory."""

import asyncio
from functools import partial

import grpc
import pytest

from mint_contracts import training_pb2 as pb
from mint_contracts.errors import Overloaded
from mint_contracts.placement_pb2 import ListPlacementsRequest
from mint_contracts.sampling_pb2_grpc import SamplerStub
from mint_contracts.wire import from_rpc_error
from mint_gateway.client import Client, question
from mint_gateway.unread import CALL_BYTES
from tests.gateway.scene import BASE, LIMIT_S, STORE, Scene
from tests.waiting import until

UNREAD = (("grpc.http2.bdp_probe", 0),)  # else a client takes megabytes before it reads them
MANY = 1_000  # placements, which are told in more than what a client takes unread


async def test_unread_answers_are_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mint_gateway.arrivals.MOST_BYTES", 4 << 20)
    await scene.base(store=STORE)
    engine = await scene.engine("e-0")
    await scene.place_many([f"acme/support-{number}" for number in range(MANY)], ["e-0"])
    await scene.open()
    await scene.seen(engine)
    async with grpc.aio.insecure_channel(scene.target, options=UNREAD) as channel:
        listing: grpc.aio.UnaryStreamMultiCallable[ListPlacementsRequest, bytes] = channel.unary_stream(
            "/mint.v1.Placement/ListPlacements", ListPlacementsRequest.SerializeToString
        )
        unread = [listing(ListPlacementsRequest(), timeout=LIMIT_S) for _ in range(16)]
        ends = {asyncio.ensure_future(call.code()): call for call in unread}
        ended, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        with pytest.raises(grpc.aio.AioRpcError, match="holds too many answers that were not read yet") as error:
            await ends[ended.pop()].read()
        assert isinstance(from_rpc_error(error.value), Overloaded)
        async with Client(scene.target, patience_s=0.0) as other:
            assert (await other.explain("acme/support-7")).base_model == BASE, "there is room for short ones"
            with pytest.raises(Overloaded):
                await other.placements()
            for each in unread:
                each.cancel()

            async def answered() -> bool:
                try:
                    return len(await other.placements()) == MANY
                except Overloaded:
                    return False

            await until(answered)


@pytest.mark.parametrize("room", [False, True])
async def test_no_call_takes_effect_whose_answer_finds_no_room(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    """Its client sends it again, and would be told that there was nothing to drop."""
    monkeypatch.setattr("mint_gateway.arrivals.MOST_BYTES", (1 + room) * CALL_BYTES - 1)  # one call's, or not even
    await scene.base(trains=True)
    engine = await scene.engine("e-0", trains=True)
    assert engine.trainer
    engine.trainer.policies["acme/a"] = pb.PolicyState(policy="acme/a", life=1)
    await scene.begin(engine)
    if room:
        assert await scene.client.drop_policy("acme/a")
        return
    with pytest.raises(Overloaded, match="holds too many answers that were not read yet"):
        await scene.client.drop_policy("acme/a")
    assert engine.trainer.policies


async def test_a_stream_that_was_given_up_counts_until_its_client_has_gone(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC keeps it that long, but its place among the requests in flight is another's after a minute."""
    monkeypatch.setattr("mint_gateway.slow_clients.TAKE_S", 0.3)
    monkeypatch.setattr("mint_gateway.arrivals.MOST_BYTES", 3 * CALL_BYTES)  # so one at a time from an address
    engine = await scene.with_engine()
    engine.words = ("word " * 100_000,) * 4

    async def answered() -> bool:
        try:
            return bool(await scene.client.completions(question("Ahoy", raw=True)))
        except Overloaded as error:
            assert "holds too many answers that were not read yet" in str(error)  # noqa: PT017
            return False

    assert await answered()
    assert await answered()
    counted = partial(scene.gateway.metrics.registry.get_sample_value, "mint_gateway_requests_total")
    async with grpc.aio.insecure_channel(scene.target, options=UNREAD) as channel:
        unread = SamplerStub(channel).Generate(question("Ahoy", raw=True))
        await until(lambda: counted({"code": "CANCELLED", "client": ""}) == 1)
        assert not await answered()
        assert counted({"code": "RESOURCE_EXHAUSTED", "client": ""}) == 1
        unread.cancel()
        await until(answered)
