"""The devices that a plan may be made for, by what their vendors publish."""

import msgspec

GIB = 1 << 30
GB = 10**9


class Device(msgspec.Struct, frozen=True):
    """One accelerator, or a machine's processors: the memory, and how fast bytes get there from the host's memory."""

    name: str
    memory: int  # bytes
    link: float  # bytes a second
    node: int = 8  # of them in one node, as vendors build these
    one_memory: bool = False  # ranks of a node compute in the same memory, not each in its own


DEVICES = {
    device.name: device
    for device in (
        Device("a100", 80 * GB, 32e9),  # PCIe 4.0 x16
        Device("h100", 80 * GB, 64e9),  # PCIe 5.0 x16
        Device("h200", 141 * GB, 64e9),
        Device("b200", 180 * GB, 64e9),
        Device("mi300x", 192 * GB, 64e9),
        # Memory as small as a laptop's, give your own; memcpy as measured on two cores.
        Device("cpu", 16 * GIB, 18e9, 1, one_memory=True),
    )
}
