"""What the courses of one engine have in common."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from mint_contracts.source import Source
from mint_engine.adapters.packed import Packed
from mint_engine.examples.render import Renderer
from mint_engine.examples.shared import Datasets
from mint_engine.policies.rollouts import Rollouts
from mint_engine.policies.updates.step_thread import StepThread
from mint_engine.residency.policy_memory import PolicyMemory
from mint_engine.residency.slots import Slots


class TrainingResidency(Protocol):
    """The engine's residency, as far as training needs it."""

    room: PolicyMemory

    async def reserve(self, adapter: str) -> int:
        """Reserve an empty slot until `release`. Raises Overloaded if none becomes free in time."""
        ...

    async def release(self, slot: int) -> None:
        """Clear a reserved slot and give it back."""
        ...

    async def read(self, adapter: str) -> Packed:
        """Return an adapter's newest revision. Raises what loading it raises."""
        ...

    def withdraw(self, adapter: str) -> None:
        """Let the map alone decide again which revision the adapter has."""
        ...

    def offer(self, adapter: str, source: Source, packed: Packed) -> None:
        """Serve a revision, published at `source`, to new requests for the adapter."""
        ...


@dataclass(frozen=True)
class TrainingContext:
    """One engine's training context.

    `claim` takes a policy's name from the Trainer service after the call under way; its second argument is since when
    (monotonic seconds) the name has been a wave's here, so that no call could take it.
    """

    step_thread: StepThread
    rollouts: Rollouts
    slots: Slots
    residency: TrainingResidency
    renderer: Renderer
    claim: Callable[[str, float], Awaitable[None]]
    datasets: Datasets = field(default_factory=Datasets)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of published weights."""
        return self.slots.dtype
