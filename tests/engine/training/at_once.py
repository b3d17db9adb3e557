"""Policy operations that an engine splits into parts between decode steps, each here as one blocking call."""

from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import TypeVar

from mint_contracts.training import Optimizer
from mint_engine.adapters import packed_file
from mint_engine.adapters.packed import Packed
from mint_engine.policies.updates.copying import packing
from mint_engine.policies.updates.updates import Updates
from mint_engine.training import state
from mint_engine.training.optimizer import StepOutcome
from mint_engine.training.policy import PolicySettings
from mint_engine.training.trainer import Trainer
from mint_engine.training.work import Work

T = TypeVar("T")


def create(trainer: Trainer, name: str, settings: PolicySettings, start: Packed | None = None) -> None:
    """Create a policy, either fresh or starting from a revision."""
    trainer.refuse_known(name)
    maker = trainer.maker
    trainer.add(maker.continued(name, start) if start is not None else maker.fresh(name, settings))


def restore(trainer: Trainer, name: str, data: bytes) -> None:
    """Restore a policy from its saved state."""
    trainer.refuse_known(name)
    trainer.add(trainer.maker.read(name, data))


def step_all(trainer: Trainer, wanted: Mapping[str, Optimizer]) -> dict[str, StepOutcome]:
    """Run one optimizer step for each of the given policies."""
    return {name: _step(trainer, name, optimizer) for name, optimizer in wanted.items()}


def finish(work: Work) -> None:
    """Do all parts of a piece of work, one after another."""
    while work.advance():
        pass


def finish_all(updates: Updates) -> None:
    """Do all updates, as while nobody is served."""
    while updates.busy:
        updates.advance(0, 0.0)


def packed_of(trainer: Trainer, name: str) -> Packed:
    """Return a policy's weights as the revision that would be published."""
    packed = _to_its_end(packing(trainer, name, trainer._base.dtype))
    return replace(packed, header=packed_file.complete(packed.header, packed.run))


def saved_of(trainer: Trainer, name: str) -> bytes:
    """Return a policy's state as a checkpoint stores it."""
    return bytes(state.to_bytes(trainer.policy(name)))


def _step(trainer: Trainer, name: str, optimizer: Optimizer) -> StepOutcome:
    stepping = trainer.begin_step(name, optimizer)
    while stepping.advance():
        pass
    return stepping.result()


def _to_its_end(parts: Generator[None, None, T]) -> T:
    while True:
        try:
            next(parts)
        except StopIteration as end:
            found: T = end.value
            return found
