"""Fixed places for adapters: a slot is one row of memory, in which one revision's weights lie packed.

Packed means: for each module that the adapter targets, in the order of the base's modules, A [r, in] and then B
transposed [r, out], without gaps. Small tables tell where in its row each slot's part of each module begins, so that
adapters of any ranks and targets live side by side and none is padded.

Letters in shapes: S slots, M modules, W elements of a slot, R the largest rank.
"""

from collections.abc import Mapping

import torch

from mint_contracts.errors import RankTooLarge, ShapeMismatch, UnknownTargetModules
from mint_engine.adapter import AdapterWeights, Delta, Module
from mint_engine.device import zeros

NO_SLOT = -1  # the bare base
ABSENT = -1  # the place of a module that an adapter leaves alone


class Slots:
    """The slots of one engine.

    `load` and `clear` run on any thread, but only on a slot that no running request refers to: a step reads
    nothing but the slots of its own rows, so it can never see half of an adapter. Who calls them sees to that.
    What lies in a row beyond its tenant's weights is zero, always.
    """

    def __init__(
        self, modules: Mapping[str, Module], count: int, max_rank: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.modules = dict(modules)
        self.count = count
        self.max_rank = max_rank
        self.dtype = dtype
        self.device = device
        self.index = {path: at for at, path in enumerate(self.modules)}
        self.shapes = [(module.in_features, module.out_features) for module in self.modules.values()]
        # What no adapter reaches is never written, and so costs no memory on CPU.
        self.memory = zeros((count, max_rank * sum(map(sum, self.shapes))), dtype, device)  # [S, W]
        # Always in host memory: steps are planned there.
        self.places = torch.full((len(self.shapes), count), ABSENT, dtype=torch.int64)  # [M, S], in elements
        self.ranks = torch.zeros((len(self.shapes), count), dtype=torch.int32)  # [M, S]
        self.scalings = torch.zeros((len(self.shapes), count), dtype=torch.float32)  # [M, S]
        self.filled = [0] * count  # elements of each row that its tenant has written

    @property
    def bytes(self) -> int:
        """Bytes reserved for all slots on the device."""
        return self.memory.nbytes

    def part(self, module: int, slot: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A [r, in] and B transposed [r, out] of a slot's tenant, where they lie; None where it leaves that alone."""
        place, rank = int(self.places[module, slot]), int(self.ranks[module, slot])
        if place == ABSENT:
            return None
        wide, high = self.shapes[module]
        row, middle = self.memory[slot], place + rank * wide
        return row[place:middle].view(rank, wide), row[middle : middle + rank * high].view(rank, high)

    def load(self, slot: int, weights: AdapterWeights) -> None:
        """Put one revision into `slot`, in place of whatever was there.

        Raises UnknownTargetModules, RankTooLarge or ShapeMismatch before anything is written.
        """
        for path, delta in weights.deltas.items():
            self._check(weights, path, delta)
        self.clear(slot)
        row, at = self.memory[slot], 0
        for path, module in self.index.items():
            delta_of = weights.deltas.get(path)
            if delta_of is None:
                continue
            rank, (wide, high) = delta_of.a.shape[0], self.shapes[module]
            self.filled[slot] = at + rank * (wide + high)
            row[at : at + rank * wide].view(rank, wide).copy_(delta_of.a)
            row[at + rank * wide : self.filled[slot]].view(rank, high).copy_(delta_of.b.t())
            self.places[module, slot] = at
            self.ranks[module, slot] = rank
            self.scalings[module, slot] = delta_of.scaling
            at = self.filled[slot]
        self._settle()

    def clear(self, slot: int) -> None:
        """Zero everything that the slot's tenant wrote."""
        self.places[:, slot] = ABSENT
        self.ranks[:, slot] = 0
        self.scalings[:, slot] = 0.0
        self.memory[slot, : self.filled[slot]].zero_()
        self.filled[slot] = 0
        self._settle()

    def _check(self, weights: AdapterWeights, path: str, delta: Delta) -> None:
        subject = f"adapter {weights.adapter}"
        module = self.modules.get(path)
        if module is None:
            raise UnknownTargetModules(subject, f"targets {path}, which the base model does not offer")
        rank = delta.a.shape[0]
        if rank > self.max_rank:
            raise RankTooLarge(subject, f"rank {rank} at {path} is above the base model's limit of {self.max_rank}")
        if delta.a.shape != (rank, module.in_features) or delta.b.shape != (module.out_features, rank):
            raise ShapeMismatch(
                subject,
                f"{path}: A {tuple(delta.a.shape)} and B {tuple(delta.b.shape)} do not fit a linear of "
                f"{module.in_features} to {module.out_features} features",
            )

    def _settle(self) -> None:
        """Wait until the device has the copies: a step may follow on another stream."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
