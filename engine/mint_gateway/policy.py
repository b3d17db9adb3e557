"""One policy that a program trains step by step, through a gateway or an engine.

async with Client("127.0.0.1:8470") as client:
    policy = await client.create_policy("acme/haiku", rank=8)
    await policy.forward_backward([example(prompt, completion)], loss="cross_entropy")
    await policy.optim_step(learning_rate=1e-3)
    await policy.publish()  # from now on, requests for acme/haiku get this revision
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from mint_contracts import training_pb2 as pb
from mint_contracts.errors import Internal, InvalidRequest, MintError, OutOfOrder, PolicyNotFound
from mint_contracts.transport import MOST_TOKEN_BYTES
from mint_gateway.connection import Connection
from mint_gateway.token_ids import token_ids

if TYPE_CHECKING:
    from mint_contracts.training_pb2_grpc import TrainerAsyncStub

CALL_TIMEOUT_S = 30 * 60.0  # for one attempt: an update may wait for those of many other policies

M = TypeVar("M", bound=Message)


def example(
    prompt: Sequence[int],
    completion: Sequence[int],
    *,
    advantage: float | Sequence[float] | None = None,
    sampler_logprobs: Sequence[float] = (),
    weights: Sequence[float] = (),
    old_logprobs: Sequence[float] = (),
) -> pb.Example:
    """Build a training example of a prompt and its completion (token ids), to learn the completion's tokens only.

    `weights` has one number for each of the completion's tokens, by default 1; with 0 a token is only read, such as a
    user's turn in the middle of a chat. Losses that weigh by advantage need `advantage`, one for all tokens or one
    for each, and as `sampler_logprobs` the completion's log-probabilities from its answer. `old_logprobs` are those
    of the policy before an earlier step with the same completion, for `importance_sampling_level="sequence"` and a
    ratio band: the `values` that forward_backward returned for the example, or only the completion's. Raises
    InvalidRequest for what is not a list of token ids or has another length than the completion, and if either of
    them is empty.
    """
    before = token_ids("example", "prompt", prompt)
    after = token_ids("example", "completion", completion)
    if not before or not after:
        raise InvalidRequest("example", "needs at least one token of the prompt, and one of the completion")
    if advantage is not None and not len(sampler_logprobs):
        reason = (
            "has an advantage but no sampler_logprobs; ask for the completion with logprobs=0, which returns them"
        )
        raise InvalidRequest("example", reason)
    whole, count = [*before, *after], len(after)

    def aligned(name: str, values: Sequence[float]) -> list[float]:
        if len(values) != count:
            message = f"has {len(values)} {name} for {count} tokens of the completion; give one each"
            raise InvalidRequest("example", message)
        return [0.0] * (len(before) - 1) + [float(value) for value in values]

    built = pb.Example(tokens=whole[:-1], targets=whole[1:])
    built.weights.extend(aligned("weights", weights if len(weights) else [1.0] * count))
    if advantage is not None:
        built.advantages.extend(aligned("advantages", _for_each(advantage, count)))
    if len(sampler_logprobs):
        built.sampler_logprobs.extend(aligned("sampler_logprobs", sampler_logprobs))
    if len(old_logprobs):
        own = old_logprobs[len(before) - 1 :] if len(old_logprobs) == len(whole) - 1 else old_logprobs
        built.old_logprobs.extend(aligned("old_logprobs", own))
    return built


def _for_each(given: Any, count: int) -> list[float]:
    try:
        return list(given)
    except TypeError:  # one number for all, which may also be an array or a tensor without dimensions
        return [given] * count


class Policy:
    """A handle on one policy; its calls run one after another. Made by `Client`'s create, resume and `policy`.

    A failed call is retried as by the client, under the same sequence number, so that it takes effect once. If the
    retries end without an answer (out of time, caller cancelled, no engine found that has the policy), it is unknown
    whether the call took effect: `settle` gets its answer, and other calls raise OutOfOrder until then.

    An engine saves a policy when it is told to end, or when nobody has called the policy for long; the next call then
    continues transparently, maybe on another engine. Unsaved state is lost, as when an engine is killed: calls raise
    PolicyNotFound, and `Client.resume_policy` continues from the newest checkpoint.
    """

    def __init__(
        self,
        stub: "TrainerAsyncStub",
        connection: Connection,
        state: pb.PolicyState,
        base_model: str,
    ) -> None:
        self._stub, self._connection = stub, connection
        self.name, self.life, self.base_model, self.engine = state.policy, state.life, base_model, state.engine
        self.sequence, self.step, self._lease = state.sequence, state.step, state.lease
        self._unsettled: tuple[str, Any] | None = None
        self._turn = asyncio.Lock()

    async def forward_backward(
        self,
        examples: Sequence[pb.Example],
        *,
        loss: str,
        clip_low: float = 0.0,
        clip_high: float = 0.0,
        kl_coefficient: float = 0.0,
        ratio_low: float = 0.0,
        ratio_high: float = 0.0,
        completion_tokens: int = 0,
        importance_sampling_level: str = "token",
    ) -> pb.ForwardBackwardResponse:
        """Add the gradients of a loss over examples; ForwardBackwardRequest explains the parameters.

        Split a batch that is too large for one call over several: gradients add up until the next step. Raises
        InvalidRequest for examples that are too large for one call.
        """
        request = pb.ForwardBackwardRequest(
            examples=examples,
            loss=loss,
            clip_low=clip_low,
            clip_high=clip_high,
            kl_coefficient=kl_coefficient,
            ratio_low=ratio_low,
            ratio_high=ratio_high,
            completion_tokens=completion_tokens,
            importance_sampling_level=importance_sampling_level,
        )
        if (size := request.ByteSize()) > MOST_TOKEN_BYTES - 1024:  # room for names
            message = f"have {size / 1024:,.1f} KiB, and a call takes at most {(MOST_TOKEN_BYTES >> 10) - 1:,} KiB"
            raise InvalidRequest("examples", f"{message}; split them over several calls")
        response: pb.ForwardBackwardResponse = await self._next("ForwardBackward", request)
        return response

    async def optim_step(
        self,
        *,
        learning_rate: float = 1e-4,
        beta1: float = 0.9,
        beta2: float = 0.95,
        epsilon: float = 1e-12,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
    ) -> pb.OptimStepResponse:
        """Take one AdamW step along the gradients; `max_grad_norm` 0 does not clip them."""
        request = pb.OptimStepRequest(
            learning_rate=learning_rate,
            beta1=beta1,
            beta2=beta2,
            epsilon=epsilon,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
        )
        response: pb.OptimStepResponse = await self._next("OptimStep", request)
        return response

    async def save_state(self) -> str:
        """Write a checkpoint, with the optimizer's state; return its URI."""
        saved: pb.SaveStateResponse = await self._next("SaveState", pb.SaveStateRequest())
        return saved.uri

    async def load_state(self, uri: str, *, saved_by: str = "") -> None:
        """Continue from a checkpoint that a policy of this name has saved, or another one of the base: `saved_by`.

        This restores weights, optimizer state and step, and the rank, alpha and target modules.
        """
        await self._next("LoadState", pb.LoadStateRequest(uri=uri, saved_by=saved_by))

    async def publish(self) -> pb.PublishResponse:
        """Serve the current weights under the policy's name from now on."""
        response: pb.PublishResponse = await self._next("Publish", pb.PublishRequest())
        return response

    async def settle(self) -> Any:
        """Return the answer to the call whose outcome is unknown, or None if there is no such call."""
        async with self._turn:
            if self._unsettled is None:
                return None
            return await self._settled(*self._unsettled)

    async def drop(self) -> None:
        """Drop the policy and its name; what it has saved and published stays in the store."""
        request = pb.DropPolicyRequest(policy=self.name, life=self.life, base_model=self.base_model)
        await self._connection.call(self._stub.DropPolicy, request, CALL_TIMEOUT_S)

    async def _next(self, call: str, request: Any) -> Any:
        async with self._turn:
            if self._unsettled is not None:
                message = f"has no answer yet to its call {self.sequence + 1} ({self._unsettled[0]}); settle it first"
                raise OutOfOrder(f"policy {self.name!r}", message)
            request.policy, request.life, request.base_model = self.name, self.life, self.base_model
            request.sequence = self.sequence + 1
            return await self._settled(call, request)

    async def _settled(self, call: str, request: Any) -> Any:
        self._unsettled = call, request
        try:
            answer = await self._answered(call, request)
        except MintError as error:
            # A terminal error of the engine: the call took no effect. PolicyNotFound may come from a gateway that
            # merely cannot reach the policy's engine.
            if error.terminal and not isinstance(error, Internal | PolicyNotFound):
                self._unsettled = None
            raise
        self._unsettled, self.sequence = None, request.sequence
        self.step, self._lease = getattr(answer, "step", self.step), getattr(answer, "lease", self._lease)
        return answer

    async def _answered(self, call: str, request: Any) -> Any:
        """Send the call and return its answer, from another engine if the policy's own ended after saving it."""
        sent_again = False
        while True:
            request.lease = self._lease
            try:
                return await self._connection.call(getattr(self._stub, call), request, CALL_TIMEOUT_S)
            except PolicyNotFound:
                lease = self._lease
                if not await self._resumed(request.sequence):
                    raise
                if self._lease == lease:  # the policy never moved; a gateway just did not see it
                    if sent_again:
                        raise
                    sent_again = True
                    continue
            if self.sequence == request.sequence:  # the call took effect, and its answer was lost with the engine
                message = f"continues after its call {self.sequence} ({call}), whose answer is lost; send the next"
                raise OutOfOrder(f"policy {self.name!r}", message)

    async def _resumed(self, sequence: int) -> bool:
        """Return whether the policy's engine still has it, or another engine resumed it, under a new lease.

        Raises PolicyNotFound if it was not resumed from just before or just after call `sequence`, or has been called
        since: a caller must not continue unawares from older weights or from another program's.
        """
        request = pb.ResumePolicyRequest(policy=self.name, life=self.life, base_model=self.base_model)
        try:
            state = await self._connection.call(self._stub.ResumePolicy, request, CALL_TIMEOUT_S)
        except PolicyNotFound:
            return False
        if state.lease == self._lease:
            return True
        if state.lease < self._lease:  # from an engine that does not know yet that the policy moved elsewhere
            return False
        taken_up = state.taken_up if state.HasField("taken_up") else state.sequence
        if state.sequence != taken_up or taken_up not in {sequence - 1, sequence}:
            found = (
                f"was resumed elsewhere after call {taken_up}, and is at call {state.sequence}, not {sequence - 1}"
            )
            why = "what it learnt since is lost, or another program has called it; resume it by its name"
            raise PolicyNotFound(f"policy {self.name!r}", f"{found}: {why}")
        self.engine, self.sequence, self.step, self._lease = state.engine, state.sequence, state.step, state.lease
        return True
