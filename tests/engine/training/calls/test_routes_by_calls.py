"""R3 through calls: Generate returns the experts of each token, and ForwardBackward uses them instead of its own."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from mint_contracts import sampling_pb2
from mint_contracts import training_pb2 as pb
from mint_contracts.errors import InvalidRequest
from mint_contracts.transport import MOST_ROUTE_BYTES
from mint_engine.model.routes import RouteShape
from mint_engine.policies.calls import primitives
from mint_engine.policies.rollouts import Ask
from mint_engine.requests import routed
from mint_engine.requests.parameters import Sampling
from mint_engine.residency.slots import NO_SLOT
from mint_engine.training.example import Example, PolicyBatch, completion
from mint_gateway.answer import Answer
from mint_gateway.client import Client, question
from tests.engine.families import FAMILIES, make_model
from tests.engine.running import running, save_base, save_tokenizer
from tests.engine.steps import refusal
from tests.engine.training.calling import called, lesson, refused
from tests.engine.training.frontier_families import SUMS, Merged, reference
from tests.engine.training.scene import awaken
from tests.engine.training.training_engine import Scene

PROMPT = tuple(range(40, 77))  # two full pages, which later requests reuse, and part of a third
LAYERS, EACH, EXPERTS = 3, 2, 6
SEED = 5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("routed")
    config = copy.deepcopy(FAMILIES["qwen3_moe"])
    config.vocab_size = save_tokenizer(folder)
    make_model(config).save_pretrained(folder)
    return folder


def model_of(base: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert isinstance(model, PreTrainedModel)
    return model


async def sampled(scene: Scene, count: int = 3, **options: Any) -> list[Answer]:
    """Sample completions of the prompt from the bare base over gRPC, with their routes."""
    options = {"max_tokens": 6, "temperature": 1.0, "logprobs": 0, "routes": True, "seed": SEED} | options
    asked = question("", n=count, **options)
    asked.tokens.ids.extend(PROMPT)
    asked.sampling.ignore_eos = True
    async with Client(f"127.0.0.1:{scene.server.port}") as client:
        return await client.completions(asked)


def told(answer: Answer, advantage: float, routes: Sequence[sampling_pb2.Routes] | None = None) -> pb.Example:
    """Return a completion as the example that a client sends to the Trainer."""
    plain = completion(PROMPT, answer.token_ids, answer.logprobs, advantage)
    return pb.Example(
        tokens=plain.tokens, targets=plain.targets, weights=plain.weights, sampler_logprobs=plain.sampler_logprobs,
        advantages=plain.advantages, routes=answer.routes if routes is None else routes,
    )  # fmt: skip


def numbers(routes: Sequence[sampling_pb2.Routes]) -> NDArray[np.uint8]:
    """Return all routes as one array [T, M, k]."""
    parts = [np.frombuffer(each.experts, np.uint8).reshape(each.tokens, LAYERS, EACH) for each in routes]
    return np.concatenate(parts)


def others(routes: Sequence[sampling_pb2.Routes]) -> list[sampling_pb2.Routes]:
    """Return routes of the same tokens to other experts."""
    return list(routed.encode((numbers(routes) + 1) % EXPERTS))


def summed(policy: str, sequence: int, examples: Sequence[pb.Example]) -> pb.ForwardBackwardRequest:
    return pb.ForwardBackwardRequest(policy=policy, sequence=sequence, examples=examples, loss="importance_sampling")


async def create(scene: Scene, stub: Any, policy: str) -> None:
    """Create a policy with nonzero B, so that every weight has a gradient."""
    await stub.CreatePolicy(pb.CreatePolicyRequest(policy=policy, rank=4, seed=3))
    await scene.context.step_thread.call(lambda trainer: awaken(trainer, policy))


async def gradient_of(scene: Scene, policy: str) -> torch.Tensor:
    def read(trainer: Any) -> torch.Tensor:
        found: torch.Tensor = trainer.policy(policy).gradient.clone()
        return found

    return await scene.context.step_thread.call(read)


@pytest.mark.parametrize("pieces", ["one message", "several"])
async def test_an_answer_tells_the_routes_of_all_tokens_but_the_last_also_of_a_prompt_that_was_found(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: str
) -> None:
    if pieces == "several":
        monkeypatch.setattr(routed, "PIECE_BYTES", 10 * LAYERS * EACH)
    async with called(base, tmp_path) as (scene, _):
        for answer in [*await sampled(scene), *await sampled(scene)]:
            tokens = [*PROMPT, *answer.token_ids[:-1]]
            with torch.no_grad():
                scores = model_of(base)(
                    input_ids=torch.tensor([tokens]), output_router_logits=True, use_cache=False
                ).router_logits
            expected = torch.stack([each.topk(EACH, dim=-1).indices for each in scores], dim=1)
            assert np.array_equal(np.sort(numbers(answer.routes), -1), expected.sort(-1).values.numpy())
            sizes = [10, 10, 10, 10, 2] if pieces == "several" else [42]
            assert [each.tokens for each in answer.routes] == sizes
            assert [each.first_token for each in answer.routes] == np.cumsum([0, *sizes[:-1]]).tolist()
            assert {(each.version, each.layers, each.experts_per_token) for each in answer.routes} == {(1, 3, 2)}
        assert [each.routes for each in await sampled(scene, routes=False)] == [()] * 3


async def test_a_clients_group_is_learnt_as_a_waves_bit_for_bit_and_a_repeat_changes_nothing(
    base: Path, tmp_path: Path
) -> None:
    advantages = (1.0, -0.5, -0.5)
    async with called(base, tmp_path) as (scene, stub):
        for policy in ("calls", "wave", "altered"):
            await create(scene, stub, policy)
        answers = await sampled(scene)
        call = summed("calls", 1, [told(each, value) for each, value in zip(answers, advantages, strict=True)])
        found = await stub.ForwardBackward(call)
        gradient = await gradient_of(scene, "calls")
        assert await stub.ForwardBackward(call) == found
        assert torch.equal(await gradient_of(scene, "calls"), gradient)

        sampling = Sampling(6, 0, temperature=1.0, logprobs=0, ignore_eos=True)
        ask = Ask("", "", NO_SLOT, PROMPT, sampling, (SEED, SEED + 1, SEED + 2), True)
        rollouts = await scene.context.rollouts.group(ask)
        assert [tuple(each.tokens) for each in rollouts] == [each.token_ids for each in answers]
        examples = [
            completion(PROMPT, each.tokens, each.logprobs, value, each.routes)
            for each, value in zip(rollouts, advantages, strict=True)
        ]
        learnt = await scene.context.step_thread.learn(PolicyBatch("wave", examples, SUMS), None)
        assert learnt.outcome.loss_sum == found.loss_sum
        assert [each.tolist() for each in learnt.outcome.logprobs] == [list(each.values) for each in found.logprobs]
        assert torch.equal(await gradient_of(scene, "wave"), gradient)

        call = summed("altered", 1, [told(each, 1.0, others(each.routes)) for each in answers])
        altered = await stub.ForwardBackward(call)
        assert np.abs(np.subtract(altered.logprobs[0].values, found.logprobs[0].values)).max() > 0.1


def forced_by(model: PreTrainedModel) -> Callable[[Example], None]:
    """Return a function that forces the routers to an example's routes; where these are -1, to their best scores."""
    routers: list[Any] = [each for path, each in model.named_modules() if path.endswith("mlp.gate")]

    def force(example: Example) -> None:
        for layer, router in enumerate(routers):
            chosen = torch.from_numpy(np.asarray(example.routes)[:, layer].astype(np.int64))

            def forced(hidden: torch.Tensor, router: Any = router, chosen: torch.Tensor = chosen) -> Any:
                scores = (hidden.reshape(-1, hidden.shape[-1]) @ router.weight.t()).softmax(-1)
                taken = torch.where(chosen < 0, scores.topk(EACH).indices, chosen)
                weights = scores.gather(1, taken)
                return None, weights / weights.sum(-1, keepdim=True), taken

            router.forward = forced

    return force


@pytest.mark.parametrize("ranks", [1, 2])
async def test_tokens_take_the_experts_that_routes_say_and_those_not_covered_the_routers_own(
    base: Path, tmp_path: Path, ranks: int
) -> None:
    """Compares with transformers' model with forced routers: all tokens covered, some, in two pieces, or none.

    The examples have one prompt, whose compute they share only if the same tokens of it are covered.
    """
    async with called(base, tmp_path, tensor_parallel_size=ranks) as (scene, stub):
        await create(scene, stub, "one")
        (answer,) = await sampled(scene, 1)
        plain = numbers(answer.routes)
        draw = np.random.default_rng(2)
        random = draw.random((len(plain), LAYERS, EXPERTS)).argsort(-1)[..., :EACH].astype(np.uint8)
        calls, naive = [], []
        for covered in ([(0, 42)], [(0, 42)], [(37, 42)], [(3, 20), (30, 40)], [(30, 36)], []):
            routes, parts = np.full(random.shape, -1), list[sampling_pb2.Routes]()
            for start, stop in covered:
                routes[start:stop] = random[start:stop]
                parts += routed.encode(random[start:stop])
                parts[-1].first_token = start
            calls.append(told(answer, 1.0, parts))
            naive.append(completion(PROMPT, answer.token_ids, answer.logprobs, 1.0, routes))
        found = await stub.ForwardBackward(summed("one", 1, calls))
        gradient = await gradient_of(scene, "one")
        model = model_of(base)
        merged = await scene.context.step_thread.call(lambda trainer: Merged(trainer, "one", model))
        expected, logprobs = reference(merged, naive, forced_by(model))
        assert float((gradient - expected).norm() / expected.norm()) < 1e-4
        for ours, theirs, example in zip(found.logprobs, logprobs, naive, strict=True):
            wanted = torch.tensor(example.weights) != 0
            torch.testing.assert_close(torch.tensor(ours.values)[wanted], theirs[wanted], rtol=0, atol=1e-3)
        assert min(float((each - logprobs[-1]).abs().max()) for each in logprobs[:-1]) > 0.01


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "version": ({"version": 2}, "of version 2; this engine reads version 1"),
    "layers": ({"layers": 2}, "of 2 layers with 2 experts a token; this base has 3 with 2"),
    "each": ({"experts_per_token": 1}, "of 3 layers with 1 experts a token; this base has 3 with 2"),
    "width": ({"bytes_per_expert": 4}, "with 4 bytes_per_expert; it is 1 or 2"),
    "short": ({"experts": bytes(11)}, "with 11 bytes of experts; 2 tokens have 12"),
    "wide": ({"bytes_per_expert": 2}, "with 12 bytes of experts; 2 tokens have 24"),
    "late": ({"first_token": 3}, "of tokens 3 to 5, but has 4 tokens"),
    "many": ({"tokens": 2**32 - 1}, "with 12 bytes of experts"),
    "unknown": ({"experts": bytes([0, 1] * 5 + [0, 6])}, "to expert 6 in layer 2 of token 1; this base has 6"),
    "twice": ({"experts": bytes([0, 1] * 4 + [3, 3, 0, 1])}, "twice to one expert in layer 1 of token 1"),
}  # fmt: skip


def two_tokens(**changes: Any) -> sampling_pb2.Routes:
    options: dict[str, Any] = {
        "version": 1, "tokens": 2, "layers": 3, "experts_per_token": 2, "bytes_per_expert": 1,
        "experts": bytes([0, 1] * 6),
    }  # fmt: skip
    return sampling_pb2.Routes(**(options | changes))


async def test_routes_that_make_no_sense_are_refused_by_what_is_wrong_and_the_number_of_the_call_is_free_again(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*routes: sampling_pb2.Routes) -> pb.ForwardBackwardRequest:
        plain: dict[str, Any] = {"tokens": [5, 6, 7, 8], "targets": [6, 7, 8, 9], "weights": [0, 1, 1, 1]}
        return lesson("one", 1, examples=[pb.Example(**plain), pb.Example(**plain, routes=routes)])

    async with called(base, tmp_path) as (_, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        for changes, says in BAD.values():
            error = await refused(stub.ForwardBackward(call(two_tokens(**changes))))
            assert (error.reason, error.subject) == ("InvalidRequest", "policy one, example 1")
            assert error.message.startswith(f"has routes {says}")
        overlap = await refused(stub.ForwardBackward(call(two_tokens(first_token=1), two_tokens(first_token=2))))
        assert (
            overlap.message
            == "has routes from token 2 on, after routes up to 3; give them in order, and each token once"
        )
        with monkeypatch.context() as patched:
            patched.setattr(primitives, "MOST_ROUTE_BYTES", 20)
            many = await refused(stub.ForwardBackward(call(two_tokens(), two_tokens(first_token=2))))
        assert str(many) == "examples: have 24 bytes of routes; give at most 20 bytes per call"
        wide = two_tokens(first_token=1, bytes_per_expert=2, experts=bytes([0, 0, 1, 0] * 6))
        assert (await stub.ForwardBackward(call(wide))).tokens == 6


async def test_a_call_may_have_the_most_routes_there_are(base: Path, tmp_path: Path) -> None:
    """A call of the maximum size gets through and is checked; here the routes fit no example and are refused."""
    async with called(base, tmp_path) as (_, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        example = pb.Example(
            tokens=[5], targets=[6], weights=[1], routes=[two_tokens(experts=bytes(MOST_ROUTE_BYTES))]
        )
        error = await refused(stub.ForwardBackward(lesson("one", 1, examples=[example])))
        assert f"with {MOST_ROUTE_BYTES} bytes of experts" in error.message


async def test_a_base_that_routes_no_experts_tells_no_routes_and_takes_none(tmp_path: Path) -> None:
    async with called(save_base(tmp_path / "base"), tmp_path) as (scene, stub):
        with pytest.raises(
            InvalidRequest, match=r"sampling\.routes: cannot be returned: this base does not route experts"
        ):
            await sampled(scene)
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        example = pb.Example(tokens=[5, 6], targets=[6, 7], weights=[1, 1], routes=[two_tokens()])
        error = await refused(stub.ForwardBackward(lesson("one", 1, examples=[example])))
        assert str(error) == "policy one, example 0: has routes, but this base does not route experts"


async def test_an_engine_that_does_not_train_tells_no_routes(base: Path) -> None:
    async with running(base) as engine:
        asked = sampling_pb2.GenerateRequest(text="x", sampling=sampling_pb2.SamplingParams(routes=True))
        error = await refusal(engine, asked)
        assert type(error) is InvalidRequest
        assert "are not kept by this engine" in error.message


def test_completions_whose_routes_no_call_would_take_are_refused_before_they_are_made() -> None:
    kimi = RouteShape(layers=60, each=8, experts=384)
    routed.check_room(kimi, 8192, 8)
    with pytest.raises(InvalidRequest, match=r"8 times 9000 tokens of 960 bytes\); at most 64 MiB are allowed"):
        routed.check_room(kimi, 9000, 8)


@pytest.mark.parametrize(("experts", "width"), [(256, 1), (384, 2)])
def test_routes_are_decoded_as_they_were_encoded(experts: int, width: int) -> None:
    shape = RouteShape(layers=3, each=2, experts=experts)
    routes = np.random.default_rng(1).random((50, 3, experts)).argsort(-1)[..., :2]
    pieces = list(routed.encode(routes.astype(np.uint8) if width == 1 else routes.astype(np.int16)))
    assert {each.bytes_per_expert for each in pieces} == {width}
    read = routed.decode(pieces, 50, shape, "example 0")
    assert read is not None
    assert np.array_equal(read, routes)
    assert routed.decode([], 50, shape, "example 0") is None
