"""Finding the engine that has a policy of Trainer calls: the map does not say, so engines are asked.

Their answers are remembered.
"""

import asyncio
from collections import OrderedDict
from typing import NamedTuple

import grpc

from mint_contracts import training_pb2 as pb
from mint_contracts.errors import EngineUnavailable, PolicyNotFound
from mint_contracts.wire import from_rpc_error
from mint_gateway.channels import Channels
from mint_gateway.choose import Now
from mint_gateway.retries import is_away
from mint_gateway.view import Engine, MapView

ASK_S = 5.0  # engines answer immediately, whatever they compute
REMEMBERED = 4096  # policies
RETRY_S = 1.0


class PolicyLocation(NamedTuple):
    """The engine that has a policy, as it reported just now or, if `remembered`, a while ago."""

    engine: str
    address: str
    remembered: bool


def trainers(view: MapView, now: Now) -> list[Engine]:
    """Return the engines that may have policies: those that train and, as far as is known now, are alive."""
    alive = [engine for engine in view.engines.values() if engine.alive or now.map_away]
    return [engine for engine in alive if engine.record.policy_room is not None]


def policy_not_found(view: MapView, policy: str) -> PolicyNotFound:
    """Return the error that no engine has the policy."""
    message = f"is not on any engine of {view.base}: a policy ends with its engine"
    return PolicyNotFound(f"policy {policy!r}", f"{message}; resume it from what it saved, or create it")


class PolicyLocator:
    """Finds policies' engines and remembers them. An instance belongs to one event loop."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._known: OrderedDict[tuple[str, str], PolicyLocation] = OrderedDict()  # by base and policy

    async def find(self, view: MapView, now: Now, policy: str, life: int) -> PolicyLocation:
        """Return where the policy is. If several engines have one of its name, since one was away, the latest counts.

        Raises PolicyNotFound, EngineUnavailable if an engine that may have it does not answer, and AioRpcError for
        other errors from an engine.
        """
        asked, known = trainers(view, now), self._known.get((view.base, policy))
        if known is not None and any(engine.record.address == known.address for engine in asked):
            return known
        return (await self.find_all(view, now, policy, life))[0]

    async def find_all(self, view: MapView, now: Now, policy: str, life: int) -> list[PolicyLocation]:
        """Ask all engines: return the one that has the policy, then those that kept the same life while away.

        Raises as `find` does.
        """
        asked = trainers(view, now)
        request = pb.GetPolicyRequest(policy=policy, life=life, base_model=view.base)
        answers = await asyncio.gather(*(self._ask(engine, request) for engine in asked), return_exceptions=True)
        states = [(each.life, each.lease, at) for at, each in enumerate(answers) if isinstance(each, pb.PolicyState)]
        if not states:
            self._raise_instead([each.name for each in asked], answers, policy)
            raise policy_not_found(view, policy)
        latest = max(states)[0]
        found = [asked[at] for each, _, at in sorted(states, reverse=True) if each == latest]
        return [PolicyLocation(engine.name, engine.record.address, remembered=False) for engine in found]

    def forget(self, base: str, policy: str) -> None:
        """Forget the policy's engine: ask all engines next time."""
        self._known.pop((base, policy), None)

    def remember(self, base: str, policy: str, place: PolicyLocation) -> None:
        """Remember that the engine has answered a call of the policy; of too many, drop the least recently called."""
        self._known[base, policy] = place._replace(remembered=True)
        self._known.move_to_end((base, policy))
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def _raise_instead(
        self, names: list[str], answers: list[pb.PolicyState | BaseException | None], policy: str
    ) -> None:
        """Raise the error of an engine that did not deny having the policy, if any."""
        silent = []
        for name, each in zip(names, answers, strict=True):
            if isinstance(each, grpc.aio.AioRpcError) and _is_silent(each):
                silent.append(name)
            elif isinstance(each, BaseException):
                raise each
        if silent:
            message = f"may be on {', '.join(silent)}, which is not responding; retry"
            raise EngineUnavailable(f"policy {policy!r}", message, retry_after_s=RETRY_S)

    async def _ask(self, engine: Engine, request: pb.GetPolicyRequest) -> pb.PolicyState | None:
        async with self._channels.use(engine.record.address) as stubs:
            try:
                return await stubs.trainer.GetPolicy(request, timeout=ASK_S)
            except grpc.aio.AioRpcError as error:
                # An engine of a version without GetPolicy cannot have a policy that came through a gateway.
                unknown = error.code() is grpc.StatusCode.UNIMPLEMENTED
                if unknown or isinstance(from_rpc_error(error), PolicyNotFound):
                    return None
                raise


def _is_silent(error: grpc.aio.AioRpcError) -> bool:
    return is_away(error) or error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
