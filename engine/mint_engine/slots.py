"""Fixed places for adapters: per module one stacked A and B, a slot of each belongs to one revision at a time.

Letters in shapes: S slots, R the largest rank, T tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mint_contracts.errors import RankTooLarge, ShapeMismatch, UnknownTargetModules
from mint_engine.adapter import AdapterWeights, Delta, Module
from mint_engine.device import zeros

NO_SLOT = -1  # the bare base


@dataclass(frozen=True)
class Stack:
    """All slots of one module. B is kept transposed, so that the rows of a rank lie together in both.

    Rows from a slot's own rank upwards are zero, in every slot, always.
    """

    module: Module
    a: torch.Tensor  # [S, R, in]
    b: torch.Tensor  # [S, R, out]
    scaling: torch.Tensor  # [S] float32
    ranks: list[int]  # [S], 0 where the slot's adapter leaves the module alone


class Slots:
    """The slots of one engine.

    `load` and `clear` run on any thread, but only on a slot that no running request refers to: a step reads
    nothing but the slots of its own rows, so it can never see half of an adapter. Who calls them sees to that.
    """

    def __init__(
        self, modules: Mapping[str, Module], count: int, max_rank: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.modules = dict(modules)
        self.count = count
        self.max_rank = max_rank
        self.dtype = dtype
        self.device = device
        self.ranks = [0] * count  # the largest rank over a slot's modules
        self.stacks = {path: self._stack(module) for path, module in self.modules.items()}

    def _stack(self, module: Module) -> Stack:
        # Rows that no adapter's rank reaches are never written, and so cost no memory on CPU.
        return Stack(
            module=module,
            a=zeros((self.count, self.max_rank, module.in_features), self.dtype, self.device),
            b=zeros((self.count, self.max_rank, module.out_features), self.dtype, self.device),
            scaling=torch.zeros(self.count, dtype=torch.float32, device=self.device),
            ranks=[0] * self.count,
        )

    @property
    def bytes(self) -> int:
        """Bytes reserved for all slots on the device."""
        return sum(stack.a.nbytes + stack.b.nbytes + stack.scaling.nbytes for stack in self.stacks.values())

    def load(self, slot: int, weights: AdapterWeights) -> None:
        """Put one revision into `slot`, in place of whatever was there.

        Raises UnknownTargetModules, RankTooLarge or ShapeMismatch before anything is written.
        """
        for path, delta in weights.deltas.items():
            self._check(weights, path, delta)
        self.clear(slot)
        for path, delta in weights.deltas.items():
            stack, rank = self.stacks[path], delta.a.shape[0]
            stack.a[slot, :rank].copy_(delta.a)
            stack.b[slot, :rank].copy_(delta.b.t())
            stack.scaling[slot] = delta.scaling
            stack.ranks[slot] = rank
        self.ranks[slot] = max((delta.a.shape[0] for delta in weights.deltas.values()), default=0)
        self._settle()

    def clear(self, slot: int) -> None:
        """Zero everything that the slot's tenant wrote."""
        for stack in self.stacks.values():
            rank = stack.ranks[slot]
            stack.a[slot, :rank].zero_()
            stack.b[slot, :rank].zero_()
            stack.scaling[slot] = 0.0
            stack.ranks[slot] = 0
        self.ranks[slot] = 0
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
