"""Addresses to listen at, and to be reached at, in IPv4 and IPv6."""

import socket


def everywhere() -> str:
    """The address that stands for every interface, by both versions where this machine has both."""
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"


def bracketed(address: str) -> str:
    """A "host:port" as gRPC and URLs write it (RFC 3986): Kubernetes tells an IPv6 address without brackets."""
    host, _, port = address.rpartition(":")
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else address
