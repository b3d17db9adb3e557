"""What the scales of quantised tensors have in common in all formats."""

from collections.abc import Sequence

from mint_engine.model.stored import Stored

FLOATS = ("F32", "BF16", "F16", "F8_E8M0")
# Scales for activations and for the cache, which are not rounded here.
UNUSED = ("input_scale", "input_scale_ub", "activation_scale", "output_scale", "q_scale", "k_scale", "v_scale")
ADVICE = "get its files again, or give the model in bfloat16"


def unpadded(shape: Sequence[int]) -> list[int]:
    """Drop a shape's trailing ones: one scale per tensor is [], [1] or [1, 1], one per row [O] or [O, 1].

    ModelOpt's scales of blocks are [rows, 1, columns, 1].
    """
    found = list(shape)
    if len(found) == 4 and found[1] == found[3] == 1:
        found = found[::2]
    while found and found[-1] == 1:
        found.pop()
    return found


def described(name: str, tensor: Stored) -> str:
    """Describe a tensor for people: its name, type and shape."""
    return f"{name} of {tensor.get_dtype()} {list(tensor.get_shape())}"
