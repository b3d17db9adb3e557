"""A second base next to the world's own: one engine of two tensor-parallel ranks, with its own volume.

It answers as one rank does, with adapters, too; what its engine stores on the volume is there for its next pod, and
is deleted with the BaseModel.
"""

import asyncio
from collections.abc import Iterator

import pytest

from e2e import asking
from e2e.asking import NAMES
from e2e.samples import questions
from e2e.samples.answering import Answer
from e2e.samples.reference import ANSWER_TOKENS, BASE, reference
from e2e.waiting import until
from e2e.world import NAMESPACE, Waves, World, base_model, wave
from mint_contracts import sampling_pb2
from mint_gateway.answer import Answer as Reply
from mint_gateway.client import question

NAME = "halves"
POD, CLAIM = f"{NAME}-0", f"cache-{NAME}-0"
RANKS = 2
NEAR_TIE = 0.02  # logits: below this, the order in which ranks add up may choose another token


@pytest.fixture(scope="module")
def halves(world: World) -> Iterator[World]:
    """The world with the second base, which is deleted with its volume; the world's own engines have one rank."""
    base = base_model(NAME, engines=1)
    base["spec"]["engine"] |= {"tensorParallelSize": RANKS, "cache": {"size": "2Gi"}}
    del base["spec"]["training"]
    world.kube.apply(base, NAMESPACE)
    world.kube.wait(f"basemodel/{NAME}", "Ready", NAMESPACE, timeout_s=600)
    yield world
    world.kube.kubectl("delete", "basemodel", NAME, "-n", NAMESPACE, "--timeout=60s")
    until("the volume to be gone", lambda: CLAIM not in _uids(world, "persistentvolumeclaim"))
    until("the gateway to know of one base alone", lambda: _is_answered(world))


def _is_answered(world: World) -> bool:
    """Whether a request that names no base is answered: if there are several bases, it is refused."""
    [reply] = asyncio.run(asking.answers(world.gateway, [question("Hello?", max_tokens=1)]))
    return isinstance(reply, Reply)


def ask_for(answer: Answer, base: str) -> sampling_pb2.GenerateRequest:
    request = sampling_pb2.GenerateRequest(base_model=f"{NAMESPACE}/{base}", adapter=answer.adapter)
    request.tokens.ids.extend(answer.prompt_ids)
    request.sampling.max_tokens = ANSWER_TOKENS
    return request


async def test_two_ranks_give_one_ranks_tokens(halves: World, waves: Waves) -> None:
    answers = reference(halves.samples, questions()[:3], [BASE, *NAMES], ANSWER_TOKENS)
    clear = [answer for rows in answers.values() for answer in rows if answer.min_gap > NEAR_TIE]
    assert {answer.adapter for answer in clear} == {BASE, *NAMES}
    for base in ("smollm2", NAME):
        waves(f"on-{base}", wave(NAMES, base=base))
        halves.kube.wait(f"adapterwave/on-{base}", "Ready", NAMESPACE)

    one = await asking.answers(halves.gateway, [ask_for(answer, "smollm2") for answer in clear])
    two = await asking.answers(halves.gateway, [ask_for(answer, NAME) for answer in clear])

    for answer, alone, shared in zip(clear, one, two, strict=True):
        assert isinstance(alone, Reply), alone
        assert isinstance(shared, Reply), shared
        assert shared.token_ids == alone.token_ids, (answer.adapter, shared.text, alone.text)
        assert shared.token_ids in {answer.token_ids, answer.content_ids}


def _uids(world: World, kind: str) -> dict[str, str]:
    return {each["metadata"]["name"]: str(each["metadata"]["uid"]) for each in world.kube.list(kind, NAMESPACE)}


def _packed(world: World) -> str:
    """Return the packed adapters on the volume, and when each was written."""
    asked = ("exec", POD, "-n", NAMESPACE, "--", "ls", "-l", "--full-time", "/mint/cache/adapters")
    return str(world.kube.kubectl(*asked))


def test_the_next_pod_of_an_engine_finds_what_the_one_before_had_fetched(halves: World, waves: Waves) -> None:
    waves("kept", wave(NAMES, base=NAME))
    halves.kube.wait("adapterwave/kept", "Ready", NAMESPACE)
    before, claim, packed = _uids(halves, "pod")[POD], _uids(halves, "persistentvolumeclaim")[CLAIM], _packed(halves)
    assert packed.count(".mint") == len(NAMES)
    halves.kube.kubectl("delete", "pod", POD, "-n", NAMESPACE, "--grace-period=0", "--force")
    until("another pod", lambda: _uids(halves, "pod").get(POD) not in {None, before})
    halves.kube.wait(f"pod/{POD}", "Ready", NAMESPACE, timeout_s=600)
    halves.kube.wait("adapterwave/kept", "Ready", NAMESPACE)
    assert _packed(halves) == packed, "none was fetched again"
    assert _uids(halves, "persistentvolumeclaim")[CLAIM] == claim
