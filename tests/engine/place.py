"""What an engine's random schedules share: a base, revisions of adapters over it, and the naive engine over each."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from mint_engine.adapters.packed import Packed
from mint_engine.residency.slots import Slots
from mint_engine.scheduling.generation import Generation
from tests.engine.running import packed, peft_model


@dataclass(eq=False)
class Place:
    """A base, both revisions of each adapter, and the naive engine over each; shared by all schedules."""

    base: Path
    revisions: dict[tuple[str, int], Path]
    slots: Slots
    generation: Generation

    def __post_init__(self) -> None:
        self.packed: dict[str, Packed] = {}
        self.owners: dict[str, tuple[str, int]] = {}
        for key, folder in self.revisions.items():
            each = packed(folder, self.slots)
            self.packed[each.revision], self.owners[each.revision] = each, key
        self.file_bytes = max(each.nbytes for each in self.packed.values())
        self.model = cache(lambda revision: peft_model(self.base, self.revisions.get(self.owners.get(revision))))  # type: ignore[arg-type]

    @cache  # noqa: B019 - lives as long as the module's tests
    @torch.inference_mode()
    def logits(self, revision: str, tokens: tuple[int, ...]) -> torch.Tensor:
        """The logits [T, V] after each token."""
        found: torch.Tensor = self.model(revision)(input_ids=torch.tensor([tokens])).logits[0]
        return found
