"""How a course begins: memory and a slot are had for its policy, which then is made, or read from its checkpoint."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence

from mint_engine.adapters.packed import Packed
from mint_engine.aside import aside
from mint_engine.examples.draw import draw
from mint_engine.examples.example import Example
from mint_engine.examples.lengths import check_lengths
from mint_engine.policies.checkpoints import Record, Shelf
from mint_engine.policies.terms import Terms
from mint_engine.policies.training_context import TrainingContext
from mint_engine.rewards.completion import Completion
from mint_engine.rewards.scorer import Scorer
from mint_engine.sources.asking import asked
from mint_engine.training.making import Maker
from mint_engine.training.policy import Policy

MOST_DRAWN = 1 << 14  # examples that are looked at ahead of their steps, where those take not all that there are


def holder_of(policy: str) -> str:
    """Who has the host memory of a wave's policy."""
    return f"policy {policy!r}"


async def check_examples(
    context: TrainingContext,
    terms: Terms,
    scorer: Scorer | None,
    examples: Sequence[Example],
    held_out: Sequence[Example],
) -> None:
    """Raise BadExample where something that steps or evaluations will take does not fit (see `check_lengths`).

    Or where the reward can judge no completion of it.
    """
    room, places = terms.sampling.max_tokens, terms.train.steps * terms.train.prompts_per_step

    def check() -> None:
        taken: Iterable[Example] = examples
        if places < len(examples):
            taken = (examples[at] for at in draw(len(examples), terms.draw_seed, 0, min(places, MOST_DRAWN)))
        if not terms.supervised:
            taken = _judged(taken, scorer)
        check_lengths(context.renderer, taken, room, answers=terms.supervised)
        check_lengths(context.renderer, _judged(held_out, scorer), room)

    await aside(check)


def _judged(examples: Iterable[Example], scorer: Scorer | None) -> Iterator[Example]:
    """Each of them that the scorer can judge, up to the first that it can not, which raises BadExample."""
    for each in examples:
        if scorer is not None:
            scorer.check_example(Completion(each.text, "", each.answer, each.json))
        yield each


async def reserve(context: TrainingContext, terms: Terms) -> int:
    """A slot, and host memory for what a new policy of these terms takes. Raises as `Places.reserve` and `Room.take`.

    Memory comes first: who waits for it takes nobody's slot, and who waits for a slot gives it back.
    """
    places, holder = context.places, holder_of(terms.policy)
    places.room.take(holder, await asyncio.to_thread(context.step_thread.maker.needs, terms.policy, terms.form))
    try:
        return await places.reserve(terms.policy)
    except BaseException:
        places.room.leave(holder)
        raise


async def release(context: TrainingContext, policy: str, slot: int) -> None:
    """Give both back."""
    context.places.room.leave(holder_of(policy))
    await context.places.release(slot)


async def make(context: TrainingContext, terms: Terms, shelf: Shelf, since: float) -> tuple[Policy, Record | None]:
    """The policy, which is nobody's yet, and the record of the checkpoint that it is from, if it is not new.

    Its name is a wave's here `since` then (see `TrainingContext.claim`). It has as much memory as it takes, which
    only a checkpoint or a revision may tell. Raises as `Shelf.newest`, and all that reading and making raise.
    """
    name, holder, room = terms.policy, holder_of(terms.policy), context.places.room
    await context.claim(name, since)
    await context.step_thread.call(lambda trainer: trainer.drop(name))
    async with room.copying(holder, room.of(holder).copies):
        found = await asked(shelf.newest, terms.saved)
        start = await context.places.read(terms.start_from) if found is None and terms.start_from else None
        if start is not None:
            room.take(holder, context.step_thread.maker.needs_from(start))
        policy = await _made(context, terms, found[1] if found is not None else None, start)
        room.take(holder, context.step_thread.maker.needs_for(policy))
    return policy, found[0] if found is not None else None


async def _made(context: TrainingContext, terms: Terms, saved: bytes | None, start: Packed | None) -> Policy:
    name = terms.policy

    def work(maker: Maker) -> Policy:
        if saved is not None:
            policy = maker.read(name, saved)
        else:
            policy = maker.continued(name, start) if start is not None else maker.fresh(name, terms.form)
        policy.round(context.dtype)  # or the step thread would, to hand it off
        return policy

    return await context.step_thread.make(work)
