"""Checks whether the sample's policies have learnt their lessons, by their steps' rewards and their answers now."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mint_contracts.training import Reward
from mint_contracts.training_pb2 import PolicyProgress
from mint_engine.rewards.builtin import built_in
from mint_engine.rewards.completion import Completion
from mint_gateway.client import Client, question

GOAL = 0.8  # mean reward of a policy's last step, and of its served adapter's answers


class Lesson(msgspec.Struct, frozen=True):
    """One policy: mean rewards of its first step (taken with the bare base), of its last, and of greedy answers."""

    policy: str
    first: float
    last: float
    served: float
    example: str

    @property
    def learnt(self) -> bool:
        """Whether it now does what it hardly ever did at first, both in training and when served."""
        return self.first < GOAL / 2 and self.last > GOAL and self.served > GOAL


async def lessons(gateway: str, base: str, wave: str, train: Mapping[str, Any]) -> list[Lesson]:
    """Return the result of each policy of a wave that is Complete and served. `base` and `wave`: NAMESPACE/NAME."""
    rewards = {each["name"]: msgspec.convert(each["reward"], Reward) for each in train["policies"]["list"]}
    prompts = [msgspec.json.decode(line)["prompt"] for line in train["dataset"]["lines"]]
    tokens = train["sampling"]["maxTokens"]
    async with Client(gateway) as client:
        updates = client.watch(wave, history=True)
        progress = await anext(updates)
        await updates.aclose()
        return [
            await _lesson(client, base, each, rewards[each.policy], prompts, tokens) for each in progress.policies
        ]


def table(found: list[Lesson]) -> Table:
    """Return a table with one row per policy."""
    shown = Table("policy", "first step", "last step", "served", "says now", "")
    for each in found:
        verdict = "[green]learnt[/]" if each.learnt else "[red]not learnt[/]"
        numbers = (f"{value:.2f}" for value in (each.first, each.last, each.served))
        shown.add_row(escape(each.policy), *numbers, escape(each.example), verdict)
    return shown


async def show(gateway: str, base: str, wave: str, train: Mapping[str, Any]) -> bool:
    """Print the table; returns whether every policy has learnt."""
    found = await lessons(gateway, base, wave, train)
    Console(highlight=False).print(table(found))
    return all(each.learnt for each in found)


async def _lesson(
    client: Client, base: str, progress: PolicyProgress, reward: Reward, prompts: list[str], tokens: int
) -> Lesson:
    judge = built_in(reward).judge
    scores, texts = [], []
    for prompt in prompts:
        answer = await client.answer(question(prompt, base_model=base, adapter=progress.policy, max_tokens=tokens))
        texts.append(answer.text)
        scores.append(judge(Completion(prompt, answer.text)))
    return Lesson(progress.policy, progress.rewards[0], progress.rewards[-1], fmean(scores), texts[0])
