"""A base that two ranks of a pod share out answers as one rank does, adapters too."""

import asyncio
from collections.abc import Iterator

import pytest

from e2e.samples import TRAINED, questions
from e2e.samples.answering import Answer
from e2e.samples.reference import ANSWER_TOKENS, BASE, reference
from e2e.waiting import until
from e2e.world import NAMESPACE, Waves, World, base_model, wave
from mint_contracts import sampling_pb2
from mint_gateway import client

NAME = "halves"
RANKS = 2
NEAR_TIE = 0.02  # logits: below this, the order in which ranks add up may choose the other token
ADAPTERS = [adapter.name for adapter in TRAINED]


@pytest.fixture(scope="module")
def halves(world: World) -> Iterator[World]:
    """A base of one engine of two ranks beside the world's own, whose engines are one rank each."""
    base = base_model(NAME, engines=1)
    base["spec"]["engine"]["tensorParallelSize"] = RANKS
    del base["spec"]["training"]
    world.kube.apply(base, NAMESPACE)
    world.kube.wait(f"basemodel/{NAME}", "Ready", NAMESPACE, timeout_s=600)
    yield world
    world.kube.kubectl("delete", "basemodel", NAME, "-n", NAMESPACE, "--timeout=60s")
    until("the gateway to know of one base alone", lambda: _is_answered(world))


def _is_answered(world: World) -> bool:
    """Whether a request that names no base is: where there are several, it is refused."""
    [reply] = asyncio.run(client.answers(world.gateway, [client.question("Hello?", max_tokens=1)]))
    return isinstance(reply, client.Answer)


def ask_for(answer: Answer, base: str) -> sampling_pb2.GenerateRequest:
    request = sampling_pb2.GenerateRequest(base_model=f"{NAMESPACE}/{base}", adapter=answer.adapter)
    request.tokens.ids.extend(answer.prompt_ids)
    request.sampling.max_tokens = ANSWER_TOKENS
    return request


async def test_two_ranks_give_one_ranks_tokens(halves: World, waves: Waves) -> None:
    answers = reference(halves.samples, questions()[:3], [BASE, *ADAPTERS], ANSWER_TOKENS)
    clear = [answer for rows in answers.values() for answer in rows if answer.min_gap > NEAR_TIE]
    assert {answer.adapter for answer in clear} == {BASE, *ADAPTERS}
    for base in ("smollm2", NAME):
        waves(f"on-{base}", wave(ADAPTERS, base=base))
        halves.kube.wait(f"adapterwave/on-{base}", "Ready", NAMESPACE)

    one = await client.answers(halves.gateway, [ask_for(answer, "smollm2") for answer in clear])
    two = await client.answers(halves.gateway, [ask_for(answer, NAME) for answer in clear])

    for answer, alone, shared in zip(clear, one, two, strict=True):
        assert isinstance(alone, client.Answer), alone
        assert isinstance(shared, client.Answer), shared
        assert shared.token_ids == alone.token_ids, (answer.adapter, shared.text, alone.text)
        assert shared.token_ids in {answer.token_ids, answer.content_ids}
