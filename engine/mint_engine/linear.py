"""A frozen linear map, laid out once for this CPU's matrix products.

oneDNN reorders a weight for its kernels on every call unless it is given the reordered one. Torch has that only as
private operators (its compiler uses them): they are named here and nowhere else, and a plain product takes their
place where they are missing.
"""

import torch
from torch.nn import functional

_ROWS_HINT = 64  # rows that the layout is chosen for: a full batch of decoding requests


class Linear:
    """y = x W^T + b for x [T, in], W [out, in]."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self._bias = bias
        self._ready = _reorder(weight)
        self._weight = weight if self._ready is None else None

    @property
    def reordered(self) -> bool:
        """Whether the weight is laid out for oneDNN."""
        return self._ready is not None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, in] -> [T, out]"""
        if self._ready is None:
            return functional.linear(x, self._weight, self._bias)  # type: ignore[arg-type]
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._ready, self._bias, "none", [], "")
        return y


def _reorder(weight: torch.Tensor) -> torch.Tensor | None:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        ready: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS_HINT)
        probe = weight.new_zeros((2, weight.shape[1]))
        torch.ops.mkldnn._linear_pointwise(probe, ready, None, "none", [], "")
    except (AttributeError, RuntimeError):  # no such operator in this torch, or not for this type or CPU
        return None
    return ready
