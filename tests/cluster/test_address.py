"""The network between the machine and a node."""

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from e2e.cluster.errors import ClusterError
from e2e.cluster.native.address import POOL, choose_link, routed_networks
from e2e.cluster.native.layout import Layout
from e2e.cluster.paths import short_id


def test_the_same_folder_gets_the_same_link_and_another_folder_another() -> None:
    one, two = short_id(Path("/a/build/cluster")), short_id(Path("/b/build/cluster"))
    assert choose_link(one, []) == choose_link(one, [])
    assert choose_link(one, []) != choose_link(two, [])


def test_a_taken_link_is_passed_over() -> None:
    first = choose_link("0000002a", [])
    second = choose_link("0000002a", [first])
    assert second != first
    assert second.subnet_of(POOL)
    assert second.prefixlen == 30


def test_the_search_goes_round_the_end_of_the_pool() -> None:
    last = IPv4Network("10.213.255.252/30")
    assert choose_link("3fff", []) == last
    assert choose_link("3fff", [last]) == IPv4Network("10.213.0.0/30")


def test_a_default_route_reserves_nothing_and_a_route_to_the_pool_reserves_all() -> None:
    assert choose_link("0", [IPv4Network("0.0.0.0/0")]) == IPv4Network("10.213.0.0/30")
    with pytest.raises(ClusterError, match="no free network"):
        choose_link("0", [IPv4Network("10.0.0.0/8")])


def test_the_machines_own_networks_are_seen() -> None:
    assert any(network.overlaps(IPv4Network("127.0.0.1/32")) for network in routed_networks())


def test_names_of_links_and_addresses_fit_the_kernels_limits() -> None:
    layout = Layout(Path("/somewhere/build/cluster"), Path("/bin"), IPv4Network("10.213.8.0/30"))
    assert len(layout.veth) <= 15
    assert (str(layout.machine_ip), str(layout.node_ip)) == ("10.213.8.1", "10.213.8.2")
    assert layout.dns_ip in layout.pod_subnet
