"""Budgets a GPU's memory for policies: what base, slots and cache leave, less a reserve for what is computed."""

import torch

from mint_engine.model.device_memory import read_memory

# The share of a GPU's memory that stays free for a step's activations, another state of a policy while it is loaded,
# the runtime and the allocator's waste; as in `mint plan`.
RESERVE = 0.1
_PARTS = 1024  # of the memory, to which the budget is rounded down: the operator plans anew whenever it changes


class PolicyDevice:
    """The memory that policies may take on one GPU. Made once base, slots and cache have theirs."""

    def __init__(self, device: torch.device, activations: int) -> None:
        """`activations`: the bytes that an update keeps of a forward pass, beside the reserve."""
        self._device = device
        memory = read_memory(device)
        self._aside = memory.taken + activations + int(RESERVE * memory.total)
        self._budget = self.most = 0  # `most`: the largest budget so far, as other processes may end after the start
        self._look()

    @property
    def budget(self) -> int:
        """Bytes that all policies may take together. It shrinks while other processes on the GPU take more."""
        self._look()
        return self._budget

    def _look(self) -> None:
        try:
            memory = read_memory(self._device)
        except RuntimeError:  # the GPU has failed, which the engine notices by itself
            return
        left = max(0, memory.free + memory.taken - self._aside)
        self._budget = left - left % max(1, memory.total // _PARTS)
        self.most = max(self.most, self._budget)
