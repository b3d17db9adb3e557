"""Policies train on the serving base: to the end, even if their engine dies, and are then served."""

import asyncio
from typing import Any

import pytest
from transformers import AutoTokenizer

from e2e.lessons import lessons
from e2e.waiting import until
from e2e.world import NAMESPACE, Waves, World
from mint_contracts.errors import PolicyNotFound
from mint_gateway.client import Client, question
from mint_gateway.policy import example

STEPS = 4
PROMPTS = ["What is the sea?", "What is the moon?", "Why does it rain?", "What do bees do?"]


def training(name: str, steps: int = STEPS, **train: Any) -> dict[str, Any]:
    """Return the spec of a wave of two small policies with quick steps."""
    lines = [f'{{"prompt": "{prompt}"}}' for prompt in PROMPTS]
    said = {
        "policies": {"count": 2, "template": {"namePrefix": name, "rank": 4, "seed": 1}},
        "dataset": {"lines": lines, "chat": True},
        "reward": {"length": {"target": 20, "tolerance": 60}},
        "steps": steps,
        "groupSize": 4,
        "promptsPerStep": 1,
        "sampling": {"maxTokens": 8},
    }
    return {"baseModelRef": {"name": "smollm2"}, "train": said | train}


def step(world: World, wave: str) -> int:
    """Return the number of finished steps of the policy that is furthest behind."""
    found: int = world.status("adapterwave", wave).get("training", {}).get("step", 0)
    return found


async def _served(world: World, name: str) -> None:
    world.kube.wait(f"adapterwave/{name}", "Ready", NAMESPACE)
    async with Client(world.gateway, patience_s=60) as client:
        for index in range(2):
            adapter = f"{NAMESPACE}/{name}-{index}"
            answer = await client.answer(question("What is the sea?", adapter=adapter, max_tokens=8))
            assert (answer.adapter, answer.completion_tokens > 0) == (adapter, True)
            assert answer.revision


async def test_a_wave_trains_to_the_end_and_its_adapters_are_served(world: World, waves: Waves) -> None:
    waves("lessons", training("lessons"))
    world.kube.wait("adapterwave/lessons", "Complete", NAMESPACE, timeout_s=300)
    status = world.status("adapterwave", "lessons")
    assert status["phase"] == "Complete"
    assert status["training"]["progress"] == f"{STEPS}/{STEPS}"
    assert status["training"]["policies"]["complete"] == 2
    assert status["training"]["tokens"] > 0
    await _served(world, "lessons")
    async with Client(world.gateway) as client:
        seen = [update async for update in client.watch(f"{NAMESPACE}/lessons", history=True)]
    assert [len(policy.rewards) for policy in seen[-1].policies] == [STEPS, STEPS]


async def test_a_program_teaches_a_policy_step_by_step_and_asks_it(world: World) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.samples.base)
    prompt, taught, base = "The sea is", " over there, matey!", f"{NAMESPACE}/smollm2"
    completion = tokenizer.encode(taught)
    lesson = example(tokenizer.encode(prompt), completion)
    async with Client(world.gateway, patience_s=300) as client:
        policy = await client.create_policy(f"{NAMESPACE}/taught", base_model=base, rank=4, seed=1)
        restarted = policy.engine
        for number in range(60):
            if number == 3:  # a planned end loses nothing: the policy continues elsewhere, or there once it is back
                world.kube.kubectl("delete", "pod", restarted, "-n", NAMESPACE, "--wait=false")
            loss = (await policy.forward_backward([lesson], loss="cross_entropy")).loss_sum
            if loss < 0.5:  # all other tokens together have less than half of the probability
                break
            await policy.optim_step(learning_rate=3e-3)
        assert loss < 0.5
        assert policy.step == number
        published = await policy.publish()
        asked = question(prompt, adapter=policy.name, base_model=base, raw=True, max_tokens=len(completion))
        answer = await client.answer(asked)
        assert (answer.text, answer.revision, answer.engine) == (taught, published.revision, policy.engine)
        assert policy.name in {each.policy for each in (await client.policies()).policies}
        unpack = (
            "mint-adapter",
            "unpack",
            published.uri,
            "/mint/cache/taught",
            "--base",
            "/mint/pvc/mint-samples/base",
        )
        assert published.revision in world.kube.kubectl("exec", policy.engine, "-n", NAMESPACE, "--", *unpack)
        await policy.drop()
        with pytest.raises(PolicyNotFound):
            await client.policy(policy.name, base_model=base)


async def test_a_killed_engine_costs_no_step_that_was_finished(world: World, waves: Waves) -> None:
    waves("survivor", training("survivor", steps=12))
    before = until("a finished step", lambda: step(world, "survivor"), timeout_s=300)
    # A checkpoint is written during the following steps, one at a time: that of `before` is done two steps later.
    until("two more", lambda: step(world, "survivor") >= before + 2, timeout_s=300)
    victim = world.status("adapterwave", "survivor")["engines"][0]["name"]
    world.kube.kubectl("delete", "pod", victim, "-n", NAMESPACE, "--grace-period=0", "--force")
    running: list[int] = []
    async with Client(world.gateway, patience_s=60) as client, asyncio.timeout(300):
        async for update in client.watch(f"{NAMESPACE}/survivor"):
            running += [policy.step for policy in update.policies if policy.stage == "Running"]
    assert running, "a step after the kill"
    assert min(running) >= before, "it goes on where it was, and not from its first step"
    world.kube.wait("adapterwave/survivor", "Complete", NAMESPACE, timeout_s=300)
    await _served(world, "survivor")


@pytest.mark.timeout(1200)  # two cores that are shared with others take longer
async def test_policies_learn_and_the_served_adapters_show_it(world: World, waves: Waves) -> None:
    policies = {
        "template": {"rank": 8, "alpha": 16, "seed": 1},
        "list": [
            {"name": "learner/exclaim", "reward": {"regex": {"pattern": "!"}}},
            {"name": "learner/aside", "reward": {"regex": {"pattern": r"\("}}},
        ],
    }
    spec = training(
        "learner", steps=15, policies=policies, optimizer={"learningRate": 1e-3},
        groupSize=8, promptsPerStep=4, sampling={"maxTokens": 20},
    )  # fmt: skip
    waves("learner", spec)
    world.kube.wait("adapterwave/learner", "Complete", NAMESPACE, timeout_s=1000)
    world.kube.wait("adapterwave/learner", "Ready", NAMESPACE)
    found = await lessons(world.gateway, f"{NAMESPACE}/smollm2", f"{NAMESPACE}/learner", spec["train"])
    assert [each.policy for each in found if not each.learnt] == []
    assert len(found) == 2
