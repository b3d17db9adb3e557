"""The layout of one native cluster: its names, addresses and paths."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from e2e.cluster.paths import short_id

KUBERNETES_VERSION = "1.34.4"
NODE_NAME = "mint"
POD_NETWORK = IPv4Network("10.244.0.0/16")
NODE_POD_BITS = 20  # addresses for 4,094 pods on the one node
SERVICE_NETWORK = IPv4Network("10.96.0.0/16")
CLUSTER_DOMAIN = "cluster.local"
HOST_DOMAIN = "host.mint.internal"
BRIDGE = "mint0"
UPLINK = "eth0"  # the inner end of the veth pair
PRIVATE = Path("/run/mint")  # where the cluster's processes see the data folder: short, so that socket paths fit


@dataclass(frozen=True)
class Layout:
    """One native cluster. `link` is the /30 between the machine and the node: gateway first, node second."""

    data: Path
    binaries: Path
    link: IPv4Network

    @property
    def veth(self) -> str:
        """The machine's end of the veth pair (12 of at most 15 characters)."""
        return veth_name(self.data)

    @property
    def cgroup(self) -> str:
        """The cgroup above all pods, in each hierarchy."""
        return cgroup_name(self.data)

    @property
    def machine_ip(self) -> IPv4Address:
        """The address at which pods and the node reach the machine."""
        return self.link[1]

    @property
    def node_ip(self) -> IPv4Address:
        """The address at which the machine and pods reach the node and its API server."""
        return self.link[2]

    @property
    def pod_subnet(self) -> IPv4Network:
        """The subnet of the only node's pods."""
        return next(POD_NETWORK.subnets(new_prefix=NODE_POD_BITS))

    @property
    def dns_ip(self) -> IPv4Address:
        """The bridge's address: the pods' gateway, and where CoreDNS listens."""
        return self.pod_subnet[1]

    @property
    def api_url(self) -> str:
        """The API server's URL, the same from the machine and from inside."""
        return f"https://{self.node_ip}:6443"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.data / "kubeconfig"

    @property
    def logs(self) -> Path:
        """The folder of logs, one file per component."""
        return self.data / "logs"


def veth_name(data: Path) -> str:
    """Return the name of the machine's end of the veth pair, for the cluster of `data`."""
    return f"mint{short_id(data)}"


def cgroup_name(data: Path) -> str:
    """Return the cgroup of the cluster of `data`, relative to each hierarchy's root."""
    return f"mint-{short_id(data)}"
