"""Sets up the fresh namespaces from inside: private mounts and the node's network. The supervisor does this first."""

import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from e2e.cluster.commands import answers, run
from e2e.cluster.errors import ClusterError
from e2e.cluster.native.layout import BRIDGE, PRIVATE, SERVICE_NETWORK, UPLINK, Layout

# Folders that the cluster's programs write to regardless of settings; each is covered by an empty one of our own.
COVERED = (Path("/run"), Path("/var/lib"), Path("/var/log"))
# Kernel settings that the kubelet requires. They are machine-wide, so it gets files that only look like them.
KERNEL_WISHES = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
MASQUERADE = f"""table ip mint {{
    chain postrouting {{
        type nat hook postrouting priority srcnat;
        oifname "{UPLINK}" masquerade
    }}
}}
"""
UPLINK_LIMIT_S = 20.0
FORWARDING = ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables")


def cover(needed: Iterable[Path], data: Path) -> None:
    """Cover the COVERED folders with empty ones, and mount the data folder at PRIVATE.

    `needed` are paths that must stay reachable even if they are in a covered folder: they are held open, and mounted
    back from their descriptors.
    """
    paths = [*needed, data]
    for folder in COVERED:
        kept = sorted({folder / path.relative_to(folder).parts[0] for path in paths if path.is_relative_to(folder)})
        held = [os.open(path, os.O_PATH) for path in kept]
        run(["mount", "-t", "tmpfs", "-o", "mode=755", "mint", folder])
        for path, descriptor in zip(kept, held, strict=True):
            path.mkdir()
            # Without --no-canonicalize, mount would follow the descriptor's name to the covered path.
            run(["mount", "--no-canonicalize", "--rbind", f"/proc/{os.getpid()}/fd/{descriptor}", path])
            os.close(descriptor)
    PRIVATE.mkdir()
    run(["mount", "--bind", data, PRIVATE])


def pretend_kernel_settings() -> None:
    """Cover the machine-wide settings that the kubelet would change with files that already have its values."""
    folder = Path("/run/kernel")
    for name, value in KERNEL_WISHES.items():
        setting = Path("/proc/sys", name)
        if setting.exists():
            face = folder / name
            face.parent.mkdir(parents=True, exist_ok=True)
            face.write_text(f"{value}\n")
            run(["mount", "--bind", face, setting])


def connect(layout: Layout) -> None:
    """Bring up loopback, the pods' bridge and the uplink, whose other end is on the machine.

    Traffic to an unknown service address ends at the bridge and does not leave by the uplink. What pods send to the
    machine leaves with the node's address, since the machine has no route to pods.
    """
    _ip("link", "set", "lo", "up")
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("address", "add", f"{layout.dns_ip}/{layout.pod_subnet.prefixlen}", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    _ip("route", "add", str(SERVICE_NETWORK), "dev", BRIDGE)
    _wait_for_uplink()
    _ip("address", "add", f"{layout.node_ip}/{layout.link.prefixlen}", "dev", UPLINK)
    _ip("link", "set", UPLINK, "up")
    _ip("route", "add", "default", "via", str(layout.machine_ip))
    run(["nft", "-f", "-"], stdin=MASQUERADE)
    if not Path("/proc/sys/net/bridge").exists() and shutil.which("modprobe"):
        run(["modprobe", "br_netfilter"])
    for setting in FORWARDING:
        Path("/proc/sys", setting).write_text("1\n")


def _wait_for_uplink() -> None:
    deadline = time.monotonic() + UPLINK_LIMIT_S
    while not answers(["ip", "link", "show", UPLINK]):
        if time.monotonic() > deadline:
            raise ClusterError("the machine did not hand over its end of the link")
        time.sleep(0.02)


def _ip(*words: str) -> None:
    run(["ip", *words])
