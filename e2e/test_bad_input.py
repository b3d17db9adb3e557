"""Each bad input gives one clear error, on the resource and on the wire, and everything else goes on serving."""

from functools import partial
from typing import Any

import pytest

from e2e.asking import answers
from e2e.cluster import CommandFailedError
from e2e.samples import TRAINED
from e2e.waiting import until
from e2e.world import NAMESPACE, Waves, World, base_model, wave
from mint_contracts import errors
from mint_gateway.answer import Answer
from mint_gateway.client import question

REASONS = {
    "wrong-base": errors.WrongBase,
    "wrong-shapes": errors.ShapeMismatch,
    "rank-too-high": errors.RankTooLarge,
    "unknown-module": errors.UnknownTargetModules,
    "nan-weights": errors.NonFiniteWeights,
    "truncated": errors.CorruptFile,
    "pickle-only": errors.UnsafeFormat,
    "missing-config": errors.SourceNotFound,
    "bad-config": errors.CorruptFile,
}
GOOD = TRAINED[0].name


def broken(names: list[str]) -> dict[str, Any]:
    sources = [{"name": f"broken/{name}", "uri": f"pvc://mint-samples/broken/{name}"} for name in names]
    return {"baseModelRef": {"name": "smollm2"}, "adapters": {"sources": sources}, "serve": {"replicas": 1}}


async def test_each_broken_adapter_is_refused_with_its_reason_and_the_others_serve(
    world: World, waves: Waves
) -> None:
    waves("good", wave([GOOD]))
    for name in REASONS:
        waves(f"broken-{name}", broken([name]))

    for name, error in REASONS.items():
        ready = until(f"broken-{name} to have failed", partial(_settled, world, f"broken-{name}"), timeout_s=90)
        assert ready["reason"] == error.__name__, (name, ready)
        assert f"broken/{name}" in ready["message"], ready
        status = world.status("adapterwave", f"broken-{name}")
        assert status["phase"] == "Failed"
        assert status["failures"][0]["reason"] == error.__name__
    world.kube.wait("adapterwave/good", "Ready", NAMESPACE)
    requests = [question("Hi", adapter=f"broken/{name}", max_tokens=4) for name in REASONS]
    replies = await answers(world.gateway, [question("Hi", adapter=GOOD, max_tokens=4), *requests])
    assert isinstance(replies[0], Answer), replies[0]
    for (name, error), reply in zip(REASONS.items(), replies[1:], strict=True):
        assert type(reply) is error, (name, reply)


def _settled(world: World, name: str) -> dict[str, Any]:
    if world.status("adapterwave", name).get("phase") != "Failed":
        return {}
    return world.condition("adapterwave", name, "Ready")


async def test_an_adapter_that_nobody_knows_is_not_found(world: World) -> None:
    [reply] = await answers(world.gateway, [question("Hi", adapter="nobody/knows-it")])

    assert type(reply) in {errors.AdapterNotFound, errors.SourceNotFound}, reply
    assert "nobody/knows-it" in str(reply)


async def test_an_overlong_prompt_says_how_long_it_may_be(world: World) -> None:
    [reply] = await answers(world.gateway, [question("word " * 5000, max_tokens=4)])

    assert type(reply) is errors.PromptTooLong, reply
    assert "2048" in str(reply)


def test_a_wave_over_an_unknown_base_waits_and_says_so(world: World, waves: Waves) -> None:
    waves("orphan", wave([GOOD], base="nowhere"))

    admitted = until("a verdict", lambda: world.condition("adapterwave", "orphan", "Admitted"))

    assert (admitted["status"], admitted["reason"]) == ("False", "BaseModelNotFound")
    assert "nowhere" in admitted["message"]


def test_a_wave_larger_than_capacity_is_refused_with_the_numbers(world: World, waves: Waves) -> None:
    waves("too-large", wave([f"demo/many-{index}" for index in range(17)]))

    admitted = until("a verdict", lambda: world.condition("adapterwave", "too-large", "Admitted"))

    assert (admitted["status"], admitted["reason"]) == ("False", "CapacityExceeded")
    assert "17" in admitted["message"]
    assert "16" in admitted["message"]


def test_a_base_whose_source_does_not_exist_says_so(world: World) -> None:
    world.kube.apply(base_model("nothing-there", engines=1, uri="pvc://mint-samples/nothing-there"), NAMESPACE)
    try:
        ready = until(
            "the source to be missed",
            lambda: _reason(world, "nothing-there", "SourceNotFound"),
            timeout_s=120,
        )
        assert "nothing-there" in ready["message"]
    finally:
        world.kube.kubectl("delete", "basemodel", "nothing-there", "-n", NAMESPACE, "--timeout=30s")


def _reason(world: World, name: str, reason: str) -> dict[str, Any]:
    ready = world.condition("basemodel", name, "Ready")
    return ready if ready.get("reason") == reason else {}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"adapters": {}}, "names"),
        ({"adapters": {"names": ["../../etc/passwd"]}}, "names"),
        ({"adapters": {"sources": [{"name": "a", "uri": "hf://org/repo"}]}}, "revision"),
        ({"serve": {"replicas": 0}}, "replicas"),
    ],
)
def test_what_can_be_refused_at_admission_is(
    world: World, waves: Waves, change: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(CommandFailedError, match=complaint):
        waves("refused", wave([GOOD]) | change)
