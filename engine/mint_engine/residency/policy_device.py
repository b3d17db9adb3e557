"""Budgets a GPU's memory for policies: what base, slots and cache leave, less a reserve for what is computed.

With several ranks, the fullest of their GPUs decides: all compute every update, and if one runs out, all end.
"""

from collections.abc import Callable

import torch

from mint_engine.model.device_memory import DeviceMemory, read_memory

# The share of a GPU's memory that stays free for a step's activations, another state of a policy while it is loaded,
# the runtime and the allocator's waste; as in `mint plan`.
RESERVE = 0.1
_PARTS = 1024  # of the memory, to which the budget is rounded down: the operator plans anew whenever it changes


def room_on(device: torch.device) -> int:
    """Return the bytes that a GPU has left for updates, less the reserve."""
    return _room(read_memory(device))


def _room(memory: DeviceMemory) -> int:
    return memory.free - int(RESERVE * memory.total)


class PolicyDevice:
    """The memory that policies may take on one GPU. Made once base, slots and cache have theirs."""

    def __init__(
        self, device: torch.device, kept: Callable[[int], int], rows: int, others: int | None = None
    ) -> None:
        """`kept`: the bytes that an update keeps of a forward pass over so many rows, beside the reserve.

        Those of `rows` are always left free. `others`: the least `room_on` the GPUs of other ranks when they were
        ready; None: there are none.
        """
        self._device, self._taken = device, read_memory(device).taken
        self._kept, self._activations, self._others = kept, kept(rows), others
        self._budget = self.most = 0  # `most`: the largest budget so far, as other processes may end after the start
        self._look()

    @property
    def budget(self) -> int:
        """Bytes that all policies may take together. It shrinks while other processes on the GPU take more."""
        self._look()
        return self._budget

    def kept_of(self, tokens: int) -> int:
        """Return the bytes that an update keeps of an example, all of whose tokens it computes at once.

        Only those beyond what is always left free count.
        """
        return max(0, self._kept(tokens) - self._activations)

    def _look(self) -> None:
        try:
            memory = read_memory(self._device)
        except RuntimeError:  # the GPU has failed, which the engine notices by itself
            return
        room = _room(memory) + memory.taken - self._taken  # policies have taken the difference, of the budget
        left = max(0, min(room, room if self._others is None else self._others) - self._activations)
        self._budget = left - left % max(1, memory.total // _PARTS)
        self.most = max(self.most, self._budget)
