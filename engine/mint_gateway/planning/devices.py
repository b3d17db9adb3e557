"""The devices that can be planned for, with their vendors' published figures."""

import msgspec

GIB = 1 << 30
GB = 10**9


class Device(msgspec.Struct, frozen=True):
    """One accelerator, or a machine's processors."""

    name: str
    memory: int  # bytes
    link: float  # bytes per second from the host's memory
    node: int = 8  # devices in one node, as vendors build them
    one_memory: bool = False  # the ranks of a node share one memory


DEVICES = {
    device.name: device
    for device in (
        Device("a100", 80 * GB, 32e9),  # PCIe 4.0 x16
        Device("h100", 80 * GB, 64e9),  # PCIe 5.0 x16
        Device("h200", 141 * GB, 64e9),
        Device("b200", 180 * GB, 64e9),
        Device("mi300x", 192 * GB, 64e9),
        # The memory of a small laptop, to be overridden; the link is memcpy as measured on two cores.
        Device("cpu", 16 * GIB, 18e9, 1, one_memory=True),
    )
}
