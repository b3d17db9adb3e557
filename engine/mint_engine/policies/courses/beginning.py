"""How a course begins: reserve memory and a slot for its policy, then make it or read it from a checkpoint."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from mint_engine.adapters.packed import Packed
from mint_engine.background_threads import run_in_background
from mint_engine.examples.draw import draw
from mint_engine.examples.example import Example
from mint_engine.examples.lengths import check_lengths
from mint_engine.policies.courses.terms import Terms
from mint_engine.policies.stored.checkpoints import Checkpoints, Record
from mint_engine.policies.training_context import TrainingContext
from mint_engine.rewards.completion import Completion
from mint_engine.rewards.scorer import Scorer
from mint_engine.sources.blocking import run_blocking
from mint_engine.training.making import Maker
from mint_engine.training.policy import Policy

MOST_DRAWN = 1 << 14  # examples checked in advance at most, if the steps do not use all of them


def holder_of(policy: str) -> str:
    """Return the name under which a wave's policy holds memory (see `PolicyMemory`)."""
    return f"policy {policy!r}"


async def check_examples(
    context: TrainingContext,
    terms: Terms,
    scorer: Scorer | None,
    examples: Sequence[Example],
    held_out: Sequence[Example],
) -> int:
    """Return how many tokens an example to learn from may have, i.e. the longest prompt with a completion.

    Raises BadExample if an example that steps or evaluations will use does not fit (see `check_lengths`), or if the
    reward cannot judge any completion of it.
    """
    room, places = terms.sampling.max_tokens, terms.train.steps * terms.train.prompts_per_step

    def check() -> int:
        taken: Iterable[Example] = examples
        if places < len(examples):
            taken = (examples[at] for at in draw(len(examples), terms.draw_seed, 0, min(places, MOST_DRAWN)))
        if not terms.supervised:
            taken = _judged(taken, scorer)
        prompt = check_lengths(context.renderer, taken, room, answers=terms.supervised)
        check_lengths(context.renderer, _judged(held_out, scorer), room)
        return prompt + room

    return await run_in_background(check)


def _judged(examples: Iterable[Example], scorer: Scorer | None) -> Iterator[Example]:
    """Yield the examples; raise BadExample at the first one that the scorer cannot judge."""
    for each in examples:
        if scorer is not None:
            scorer.check_example(Completion(each.text, "", each.answer, each.json))
        yield each


async def reserve(context: TrainingContext, terms: Terms, longest: int) -> int:
    """Reserve memory and a slot for a new policy of these terms; returns the slot.

    `longest`: the most tokens of an example, so that policies that are here need not wait for each other to update.
    Memory comes first: waiting for memory then occupies no slot, and a failed wait for a slot returns the memory.
    Raises as `TrainingResidency.reserve` and `PolicyMemory.take`.
    """
    residency, holder = context.residency, holder_of(terms.policy)
    needs = await asyncio.to_thread(context.step_thread.maker.needs, terms.policy, terms.form)
    residency.room.take(holder, replace(needs, longest=longest))
    try:
        return await residency.reserve(terms.policy)
    except BaseException:
        residency.room.leave(holder)
        raise


async def release(context: TrainingContext, policy: str, slot: int) -> None:
    """Give back the policy's memory and its slot."""
    context.residency.room.leave(holder_of(policy))
    await context.residency.release(slot)


async def make(
    context: TrainingContext, terms: Terms, checkpoints: Checkpoints, since: float
) -> tuple[Policy, Record | None]:
    """Return a policy not yet given to the trainer, and the record of its checkpoint, or None if it is new.

    `since` is when its name became a wave's here (see `TrainingContext.claim`). The reserved memory is adjusted to
    what the policy takes, which may be known only from its checkpoint or revision. Raises as `Checkpoints.newest`,
    and whatever reading and making raise.
    """
    name, holder, room = terms.policy, holder_of(terms.policy), context.residency.room
    longest = room.of(holder).longest
    await context.claim(name, since)
    await context.step_thread.call(lambda trainer: trainer.drop(name))
    async with room.copying(holder, room.of(holder).copies):
        found = await run_blocking(checkpoints.newest, terms.saved)
        start = await context.residency.read(terms.start_from) if found is None and terms.start_from else None
        if start is not None:
            room.take(holder, replace(context.step_thread.maker.needs_from(start), longest=longest))
        policy = await _made(context, terms, found[1] if found is not None else None, start)
        room.take(holder, replace(context.step_thread.maker.needs_for(policy), longest=longest))
    return policy, found[0] if found is not None else None


async def _made(context: TrainingContext, terms: Terms, saved: bytes | None, start: Packed | None) -> Policy:
    name = terms.policy

    def work(maker: Maker) -> Policy:
        if saved is not None:
            policy = maker.read(name, saved)
        else:
            policy = maker.continued(name, start) if start is not None else maker.fresh(name, terms.form)
        policy.round(context.dtype)  # here, since otherwise the step thread would do it at hand-off
        return policy

    return await context.step_thread.make(work)
