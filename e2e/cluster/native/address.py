"""Chooses the /30 network between the machine and a cluster's node, so that it overlaps nothing on the machine."""

import json
from collections.abc import Iterable
from ipaddress import IPv4Network

from e2e.cluster.commands import run
from e2e.cluster.errors import ClusterError
from e2e.cluster.native.layout import POD_NETWORK, SERVICE_NETWORK

POOL = IPv4Network("10.213.0.0/16")
LINK_BITS = 30


def choose_link(identity: str, taken: Iterable[IPv4Network]) -> IPv4Network:
    """Return the first free /30 of the pool, starting where `identity` (hex) points; stable if nothing changes.

    Raises ClusterError if the entire pool is taken.
    """
    busy = [network for network in taken if network.prefixlen > 0]
    count = 2 ** (LINK_BITS - POOL.prefixlen)
    size = 2 ** (32 - LINK_BITS)
    start = int(identity, 16) % count
    for step in range(count):
        offset = ((start + step) % count) * size
        link = IPv4Network((int(POOL.network_address) + offset, LINK_BITS))
        if not any(link.overlaps(other) for other in busy):
            return link
    raise ClusterError(f"no free network in {POOL}: something on this machine routes all of it")


def routed_networks() -> list[IPv4Network]:
    """Return every IPv4 network in the machine's routing tables, plus the cluster's own inner networks."""
    routes = json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"]) or "[]")
    named = [route["dst"] for route in routes if route.get("dst") not in (None, "default")]
    return [POD_NETWORK, SERVICE_NETWORK, *(IPv4Network(name, strict=False) for name in named)]
