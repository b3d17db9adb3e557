"""Clients that read more slowly than tokens come: others go on, and what lies unread is bounded."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from mint_contracts.byte_budget import ByteBudget
from mint_contracts.errors import CapacityExceeded, MintError, Overloaded
from mint_contracts.sampling_pb2 import GenerateEvent, GenerateRequest, SamplingParams, TokenIds
from mint_contracts.sampling_pb2_grpc import SamplerStub
from mint_contracts.wire import from_rpc_error
from mint_engine import server
from mint_engine.requests import inbox
from mint_engine.requests.events import Done, Failed, Scored, Tokens
from mint_engine.requests.inbox import CompletionEvent, Inbox, Queued
from mint_engine.scheduling.stepper import Load
from tests.engine.running import Running, ask, running
from tests.waiting import PATIENCE_S, until

PROMPT = list(range(5, 25))
WORDY = SamplingParams(n=8, max_tokens=120, logprobs=20, temperature=1.0, ignore_eos=True)
ASKED = GenerateRequest(tokens=TokenIds(ids=PROMPT), sampling=WORDY)
NARROW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 4096)]  # takes little of what nobody reads
NOBODY = Load(0, 0)


async def slow(engine: Running, asked: GenerateRequest = ASKED) -> MintError:
    """The error of a request whose answer nobody reads until the engine has nothing more to do."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{engine.server.port}", options=NARROW) as channel:
        events = aiter(SamplerStub(channel).Generate(asked, timeout=60))
        await anext(events)
        await until(lambda: engine.server.load_now == NOBODY)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await all_of(events)
        return from_rpc_error(caught.value)


async def all_of(events: AsyncIterator[GenerateEvent]) -> None:
    async for _ in events:
        pass


async def test_a_request_of_which_too_much_lies_unread_ends(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "MOST_UNREAD", 200_000)
    async with running(base) as engine:
        error = await slow(engine)
        assert isinstance(error, CapacityExceeded)
        assert "are unread; read the stream faster, or ask for fewer tokens or log-probabilities" in str(error)
        assert len((await ask(engine, PROMPT, max_tokens=120, ignore_eos=True)).tokens) == 120
        await until(lambda: engine.server._services._unread.taken == 0)


async def test_without_room_for_all_the_streams_that_are_not_read_end(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "MOST_TOGETHER", 0)
    async with running(base) as engine:
        error = await slow(engine)
        assert isinstance(error, Overloaded)
        assert "of tokens that clients have not read yet; retry later" in str(error)
        assert len((await ask(engine, PROMPT, max_tokens=120, ignore_eos=True)).tokens) == 120


async def test_one_of_several_clients_leaves_as_much_room_unread_as_it_takes(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "MOST_TOGETHER", 2 << 20)
    async with running(base) as engine:
        error = await slow(engine, GenerateRequest(tokens=ASKED.tokens, sampling=WORDY, client="hot"))
        assert isinstance(error, CapacityExceeded)
        assert "a key has 1 MiB at most" in str(error)


async def test_a_client_that_goes_away_leaves_room_to_others(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "OWN_UNREAD", 0)
    async with running(base) as engine:
        unread = engine.server._services._unread
        async with grpc.aio.insecure_channel(f"127.0.0.1:{engine.server.port}", options=NARROW) as channel:
            call = SamplerStub(channel).Generate(ASKED, timeout=60)
            await until(lambda: engine.server.load_now == NOBODY and unread.taken > 0)
            call.cancel()
            await until(lambda: unread.taken == 0)


async def test_events_that_were_read_no_longer_count_and_only_the_error_is_left() -> None:
    budget = ByteBudget(1000, "engine e-0", "is full")
    first, second = Inbox(budget.share(own=0)), Inbox(budget.share(own=0))
    event = Tokens((5,), "a", (Scored(5, -1.0, ((6, -2.0),)),))
    first.put_nowait(Queued(""))
    first.put_nowait(CompletionEvent(0, event))
    assert budget.taken == 280 + 140 + 120
    second.put_nowait(Queued(""))
    with pytest.raises(Overloaded, match="engine e-0: is full; retry later"):
        second.put_nowait(CompletionEvent(1, event))
    second.put_nowait(CompletionEvent(0, Done(stopped=True, completion_tokens=1)))
    told = await asyncio.wait_for(second.get(), PATIENCE_S)
    assert isinstance(told, CompletionEvent)
    assert isinstance(told.event, Failed)
    assert isinstance(told.event.error, Overloaded)
    assert second.empty()
    for expected in (Queued(""), CompletionEvent(0, event)):
        assert await asyncio.wait_for(first.get(), PATIENCE_S) == expected
    assert budget.taken == 0
