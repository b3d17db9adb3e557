"""An asyncio client of a gateway, or of one engine: both serve the same Sampler.

async with Client("127.0.0.1:8470") as client:
    async for event in client.ask(question("Where is the sea?", adapter="demo/pirate")):
        print(event.chunk.text, end="")
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Self

import grpc

from mint_contracts import catalog_pb2, placement_pb2, sampling_pb2, training_pb2
from mint_contracts.catalog_pb2_grpc import CatalogStub
from mint_contracts.errors import EngineUnavailable
from mint_contracts.placement_pb2_grpc import PlacementStub
from mint_contracts.rewards import Rewards
from mint_contracts.sampling_pb2_grpc import SamplerStub
from mint_contracts.training_pb2_grpc import TrainerStub, WavesStub
from mint_contracts.wire import from_rpc_error
from mint_gateway.answer import Answer, collect
from mint_gateway.connection import Connection
from mint_gateway.dialling import Trust
from mint_gateway.persistence import Tell
from mint_gateway.policy import CALL_TIMEOUT_S, Policy
from mint_gateway.token_ids import token_ids

PATIENCE_S = 30.0
RETIRE_TIMEOUT_S = 60.0
TRAINING_TIMEOUT_S = 60.0  # to create or drop a policy


def question(
    prompt: str | Sequence[int],
    *,
    base_model: str = "",
    adapter: str = "",
    raw: bool = False,
    max_tokens: int = 0,
    temperature: float = 0.0,
    seed: int | None = None,
    stop: Sequence[str] = (),
    logprobs: int | None = None,
    n: int = 1,
    routes: bool = False,
) -> sampling_pb2.GenerateRequest:
    """Build a request: a chat of one user message, with `raw` the text without a chat template; or token ids.

    `max_tokens` 0 takes the engine's default; `temperature` 0 is greedy; the `n` completions are sampled with seed,
    seed + 1, and so on; `routes` asks which experts the tokens were routed to.
    """
    request = sampling_pb2.GenerateRequest(base_model=base_model, adapter=adapter)
    if not isinstance(prompt, str):
        request.tokens.ids.extend(token_ids("question", "prompt", prompt))
    elif raw:
        request.text = prompt
    else:
        request.chat.messages.add(role="user", content=prompt)
    sampling = request.sampling
    sampling.temperature, sampling.n, sampling.routes = temperature, n, routes
    if max_tokens:
        sampling.max_tokens = max_tokens
    sampling.stop.extend(stop)
    if seed is not None:
        sampling.seed = seed
    if logprobs is not None:
        sampling.logprobs = logprobs
    return request


class Client:
    """One connection, over TLS if `trust` is given; every call carries the key, if there is one.

    Calls raise MintError, with the gRPC error as its cause. Transient errors are retried for `patience_s`, unless the
    server proves not to be the one that is meant (`is_hopeless`); of a call that is retried for longer than a moment,
    `tell` gets the error and for how many seconds more it is retried.
    """

    def __init__(
        self,
        target: str,
        *,
        patience_s: float = PATIENCE_S,
        trust: Trust | None = None,
        key: str = "",
        tell: Tell | None = None,
    ) -> None:
        self._connection = Connection(target, patience_s, trust, key, tell)
        channel = self._connection.channel
        self._sampler = SamplerStub(channel)
        self._placement = PlacementStub(channel)
        self._catalog = CatalogStub(channel)
        self._waves = WavesStub(channel)
        self._trainer = TrainerStub(channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.channel.close()

    async def ask(
        self, request: sampling_pb2.GenerateRequest, *, timeout_s: float | None = None
    ) -> AsyncIterator[sampling_pb2.GenerateEvent]:
        """Yield the events of one answer as they arrive. Retries only until the first event.

        `timeout_s` bounds each attempt from its start to its last token. Raises EngineUnavailable if cut short.
        """
        patience = self._connection.patience()
        while True:
            call = self._sampler.Generate(request, timeout=timeout_s, metadata=self._connection.metadata)
            seen, finished = False, 0
            try:
                async for event in call:
                    seen = True
                    finished += event.HasField("finished")
                    yield event
                if finished < max(1, request.sampling.n):
                    raise EngineUnavailable(self._connection.target, "ended the answer too early; retry the request")
                return
            except (grpc.aio.AioRpcError, EngineUnavailable) as error:
                await patience.wait(error, final=seen)
            finally:
                call.cancel()

    async def answer(self, request: sampling_pb2.GenerateRequest, *, timeout_s: float | None = None) -> Answer:
        """Return the first completion of a request once it is complete."""
        return (await self.completions(request, timeout_s=timeout_s))[0]

    async def completions(
        self, request: sampling_pb2.GenerateRequest, *, timeout_s: float | None = None
    ) -> list[Answer]:
        """Return all n completions of a request, by index."""
        return collect([event async for event in self.ask(request, timeout_s=timeout_s)])

    async def explain(self, adapter: str, base_model: str = "") -> placement_pb2.Explanation:
        """Explain where an adapter is and why, and which engine would answer now; "" is the bare base."""
        request = placement_pb2.ExplainRequest(base_model=base_model, adapter=adapter)
        return await self._connection.call(self._placement.Explain, request)

    async def explain_wave(self, wave: str) -> placement_pb2.WaveExplanation:
        """Explain a wave's state: its admission, its copies, and what is missing."""
        request = placement_pb2.ExplainWaveRequest(wave=wave)
        return await self._connection.call(self._placement.ExplainWave, request)

    async def placements(self, base_model: str = "") -> list[placement_pb2.Explanation]:
        """Return every adapter that is placed or held, of one base or of all, fetched page by page."""
        found: list[placement_pb2.Explanation] = []
        page = await self.placements_page(base_model)
        found += page.placements
        while page.next_page_token:
            page = await self.placements_page(base_model, token=page.next_page_token)
            found += page.placements
        return found

    async def placements_page(
        self, base_model: str = "", *, size: int = 0, token: str = ""
    ) -> placement_pb2.ListPlacementsResponse:
        """Return one page of placements, by base and adapter; `token` continues after the previous page."""
        request = placement_pb2.ListPlacementsRequest(base_model=base_model, page_size=size, page_token=token)
        return await self._connection.call(self._placement.ListPlacements, request)

    async def register(
        self, requests: AsyncIterator[catalog_pb2.RegisterRequest], *, timeout_s: float | None = None
    ) -> catalog_pb2.RegisterResponse:
        """Register a stream of adapters. Never retried, since the stream is consumed; sending all again is safe.

        Also raises whatever the stream raises.
        """
        failed: list[Exception] = []

        async def sent() -> AsyncIterator[catalog_pb2.RegisterRequest]:
            try:
                async for request in requests:
                    yield request
            except Exception as error:
                failed.append(error)
                raise

        try:
            return await self._catalog.Register(sent(), timeout=timeout_s, metadata=self._connection.metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        except asyncio.CancelledError:
            if failed:  # gRPC does not report an error of the stream: it cancels the call
                raise failed[0] from None
            raise

    async def catalog_page(
        self,
        base_model: str = "",
        *,
        prefix: str = "",
        labels: Mapping[str, str] | None = None,
        size: int = 0,
        token: str = "",
    ) -> catalog_pb2.ListResponse:
        """Return one page of the catalog's adapters, by name; `token` continues after the previous page."""
        request = catalog_pb2.ListRequest(
            base_model=base_model, prefix=prefix, labels=labels, page_size=size, page_token=token
        )
        return await self._connection.call(self._catalog.List, request)

    async def resolve(self, adapter: str, base_model: str = "") -> catalog_pb2.CatalogEntry:
        """Return the catalog's entry for NAME or NAME@REVISION."""
        request = catalog_pb2.ResolveRequest(base_model=base_model, adapter=adapter)
        return await self._connection.call(self._catalog.Resolve, request)

    async def retire(self, names: Sequence[str], base_model: str = "") -> list[str]:
        """Retire names from the catalog. Return those that it did not have or that were retired before."""
        request = catalog_pb2.RetireRequest(base_model=base_model, names=names)
        response = await self._connection.call(self._catalog.Retire, request, RETIRE_TIMEOUT_S)
        return list(response.unknown)

    async def waves(self, base_model: str = "") -> list[training_pb2.WaveProgress]:
        """Return every training wave of one base or of all, in aggregate."""
        request = training_pb2.ListWavesRequest(base_model=base_model)
        reply = await self._connection.call(self._waves.ListWaves, request)
        return list(reply.waves)

    async def watch(
        self, wave: str, *, history: bool = False, curves: bool = False
    ) -> AsyncGenerator[training_pb2.WaveProgress, None]:
        """Yield a wave's progress now and at each change until it is over; a broken stream is started again.

        With `curves`, the first message of each stream has them.
        """
        request = training_pb2.WatchWaveRequest(wave=wave, history=history, new_rewards_only=history, curves=curves)
        patience = self._connection.patience()
        while True:
            call = self._waves.WatchWave(request, metadata=self._connection.metadata)
            known: dict[str, Rewards] = {}
            try:
                async for progress in call:
                    for policy in progress.policies if history else ():
                        new = Rewards(policy.rewards_from, tuple(policy.rewards))
                        whole = known[policy.policy] = known.get(policy.policy, Rewards()).followed_by(new)
                        policy.rewards_from, policy.rewards[:] = whole.first, whole.values
                    yield progress
                    patience = self._connection.patience()
                return
            except grpc.aio.AioRpcError as error:
                await patience.wait(error)
            finally:
                call.cancel()

    async def create_policy(
        self,
        name: str,
        *,
        base_model: str = "",
        rank: int = 8,
        alpha: float = 16.0,
        target_modules: Sequence[str] = (),
        seed: int = 0,
    ) -> Policy:
        """Create a policy to train by calls, on a base that trains; no `target_modules` means all the base offers."""
        request = training_pb2.CreatePolicyRequest(
            policy=name, rank=rank, alpha=alpha, target_modules=target_modules, seed=seed, base_model=base_model
        )
        state = await self._connection.call(self._trainer.CreatePolicy, request, TRAINING_TIMEOUT_S)
        return self._policy(state, base_model)

    async def resume_policy(self, name: str, *, base_model: str = "") -> Policy:
        """Return a policy to continue after its last step: one still in memory, or from its newest checkpoint.

        Waits for a call that a program left under way, and drops a gradient that no step was taken with, so that
        computing it again does not count it twice. Only the program that trains calls it; `policy` returns a policy
        as it is. Raises PolicyNotFound if nothing was saved.
        """
        request = training_pb2.ResumePolicyRequest(policy=name, base_model=base_model, drop_gradient=True)
        state = await self._connection.call(self._trainer.ResumePolicy, request, CALL_TIMEOUT_S)
        return self._policy(state, base_model)

    async def policy(self, name: str, *, base_model: str = "") -> Policy:
        """Return a policy in memory as it is, with any gradient since its last step. Raises PolicyNotFound."""
        request = training_pb2.GetPolicyRequest(policy=name, base_model=base_model)
        state = await self._connection.call(self._trainer.GetPolicy, request)
        return self._policy(state, base_model)

    async def drop_policy(self, name: str, *, base_model: str = "") -> bool:
        """Drop a policy, whoever created it; its name stops meaning anything. Return False if there is none."""
        request = training_pb2.DropPolicyRequest(policy=name, base_model=base_model)
        call = self._trainer.DropPolicy
        response, sent_before = await self._connection.call_told(call, request, TRAINING_TIMEOUT_S)
        return sent_before or not response.unknown  # the first time may have dropped it

    async def policies(self, base_model: str = "") -> training_pb2.ListPoliciesResponse:
        """List the policies that are trained by calls, of one base or of all."""
        request = training_pb2.ListPoliciesRequest(base_model=base_model)
        return await self._connection.call(self._trainer.ListPolicies, request)

    async def resting_policies(self, base_model: str = "", size: int = 1000) -> training_pb2.ListPoliciesResponse:
        """List the resting policies, of one base or of all, fetched in pages of `size`."""
        request = training_pb2.ListPoliciesRequest(base_model=base_model, resting=True, page_size=size)
        found = training_pb2.ListPoliciesResponse()
        while True:
            page = await self._connection.call(self._trainer.ListPolicies, request)
            found.policies.extend(page.policies)
            found.silent.extend(page.silent)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def _policy(self, state: training_pb2.PolicyState, base_model: str) -> Policy:
        return Policy(self._trainer, self._connection, state, state.base_model or base_model)
