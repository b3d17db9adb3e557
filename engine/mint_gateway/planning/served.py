"""What engines refuse today of what would fit: plans are made for what is to come too, and must say so."""

from mint_gateway.planning.devices import Device
from mint_gateway.planning.shape import BaseShape

SHARED_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # those of own kernels; a test holds them to the engine's


def refusal(shape: BaseShape, device: Device, ranks: int, nodes: int, *, float8: bool) -> str:
    """Why no engine would start so, each reason with what would; "" where one would."""
    shared = ", ".join(SHARED_FAMILIES)
    reasons = {
        "weights must be in bfloat16, float16 or float32": float8,
        f"ranks are of one pod on one node, and {ranks} of these devices are in {nodes} nodes": nodes > 1,
        "several ranks compute on CPUs alone": ranks > 1 and not device.one_memory,
        f"ranks share {shared} alone": ranks > 1 and shape.model_type not in SHARED_FAMILIES,
    }
    found = "; ".join(reason for reason, holds in reasons.items() if holds)
    return f"so far {found}" if found else ""
