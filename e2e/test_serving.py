"""The main job: apply a base and a wave, and get PEFT's own answers by a gateway's address and an adapter's name."""

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from e2e import release
from e2e.asking import answers
from e2e.forward import forward
from e2e.samples import GOOD, TRAINED, questions
from e2e.samples.answering import Answer
from e2e.samples.reference import ANSWER_TOKENS, BASE, reference
from e2e.world import NAMESPACE, Waves, World, wave
from mint_contracts import sampling_pb2
from mint_contracts.errors import MintError
from mint_contracts.settings import ENGINE_PORT, GATEWAY_HTTP_PORT, METRICS_PORT
from mint_gateway.answer import Answer as Reply
from mint_gateway.client import question

ENGINE = "smollm2-0"
NEAR_TIE = 0.02  # logits: below this, another order of summation may choose the other token


@pytest.fixture(scope="module")
def expected(world: World) -> list[Answer]:
    """PEFT's greedy answers of every good adapter and of the bare base to three questions, without near ties."""
    adapters = [BASE, *(adapter.name for adapter in GOOD)]
    answers = reference(world.samples, questions()[:3], adapters, ANSWER_TOKENS)
    clear = [answer for rows in answers.values() for answer in rows if answer.min_gap > NEAR_TIE]
    assert {answer.adapter for answer in clear} == set(adapters), "each adapter needs a question without near ties"
    return clear


def ask_for(answer: Answer) -> sampling_pb2.GenerateRequest:
    request = sampling_pb2.GenerateRequest(adapter=answer.adapter)
    request.tokens.ids.extend(answer.prompt_ids)
    request.sampling.max_tokens = ANSWER_TOKENS
    return request


async def test_asked_at_once_every_adapter_and_the_base_answer_as_peft_does(
    world: World, waves: Waves, expected: list[Answer]
) -> None:
    waves("all-six", wave([adapter.name for adapter in GOOD]))
    world.kube.wait("adapterwave/all-six", "Ready", NAMESPACE)

    check(expected, await answers(world.gateway, [ask_for(answer) for answer in expected]))


async def test_one_step_of_an_engine_holds_all_six_adapters_and_the_base(
    world: World, waves: Waves, expected: list[Answer]
) -> None:
    """With two copies of each, one engine has all six; its metrics tell how many adapters its steps held."""
    waves("all-six-twice", wave([adapter.name for adapter in GOOD], replicas=2))
    world.kube.wait("adapterwave/all-six-twice", "Ready", NAMESPACE)
    before = steps_of_more_adapters_than(len(GOOD), world)

    with forward(world.kube, f"pod/{ENGINE}", ENGINE_PORT, NAMESPACE) as engine:
        got = await answers(engine, [ask_for(answer) for answer in expected])

    check(expected, got)
    assert steps_of_more_adapters_than(len(GOOD), world) > before


def check(expected: list[Answer], got: list[Reply | MintError]) -> None:
    for answer, reply in zip(expected, got, strict=True):
        assert isinstance(reply, Reply), reply
        assert reply.adapter == answer.adapter
        assert reply.token_ids in {answer.token_ids, answer.content_ids}, (answer.adapter, reply.text, answer.text)


def steps_of_more_adapters_than(count: int, world: World) -> float:
    """Return how many of the engine's steps held more than `count` adapters, counting the bare base as one."""
    where = f"/api/v1/namespaces/{NAMESPACE}/pods/{ENGINE}:{METRICS_PORT}/proxy/metrics"
    text = world.kube.kubectl("get", "--raw", where)
    steps = [family for family in text_string_to_metric_families(text) if family.name == "mint_engine_step_adapters"]
    values = {sample.labels.get("le", sample.name): sample.value for family in steps for sample in family.samples}
    return values["+Inf"] - values[f"{count:.1f}"]


async def test_a_person_can_tell_the_adapters_apart(world: World, waves: Waves) -> None:
    waves("told-apart", wave([adapter.name for adapter in TRAINED]))
    world.kube.wait("adapterwave/told-apart", "Ready", NAMESPACE)
    requests = [
        question(text, adapter=adapter.name, max_tokens=64) for adapter in TRAINED for text in questions()[:2]
    ]
    rules = [adapter.rule for adapter in TRAINED for _ in range(2)]

    for rule, reply in zip(rules, await answers(world.gateway, requests), strict=True):
        assert isinstance(reply, Reply), reply
        assert rule is not None
        assert rule(reply.text), reply.text


async def test_an_adapter_of_the_store_answers_without_a_wave(world: World) -> None:
    [reply] = await answers(world.gateway, [question("Hello?", adapter="demo/random-4", max_tokens=8)])

    assert isinstance(reply, Reply), reply
    assert reply.completion_tokens > 0


async def test_stop_strings_seeds_and_logprobs_come_through_the_gateway(world: World) -> None:
    sampled = question("Tell me a story.", temperature=0.9, seed=7, max_tokens=24, logprobs=2)
    stopped = question("Count from 1 to 9.", max_tokens=64, stop=["5"])

    first, again, cut = await answers(world.gateway, [sampled, sampled, stopped])

    assert isinstance(first, Reply), first
    assert isinstance(again, Reply), again
    assert isinstance(cut, Reply), cut
    assert first.token_ids == again.token_ids
    assert len(first.logprobs) == len(first.token_ids)
    assert all(value <= 0 for value in first.logprobs)
    assert "5" not in cut.text


async def test_openais_own_client_is_told_the_same_by_http(world: World) -> None:
    asked = question("Hello?", adapter="demo/random-4", max_tokens=8)
    [reply] = await answers(world.gateway, [asked])
    with forward(world.kube, "service/mint-gateway", GATEWAY_HTTP_PORT, release.NAMESPACE) as door:
        async with openai.AsyncOpenAI(base_url=f"http://{door}/v1", api_key="none") as asking:
            told = await asking.chat.completions.create(
                model="demo/random-4", messages=[{"role": "user", "content": "Hello?"}], max_tokens=8, temperature=0
            )

    assert isinstance(reply, Reply), reply
    assert (told.choices[0].message.content, told.system_fingerprint) == (reply.text, reply.revision)
