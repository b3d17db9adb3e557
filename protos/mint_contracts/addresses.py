"""IPv4 and IPv6 addresses to listen on and to be reached at."""

import socket


def everywhere() -> str:
    """Return the wildcard address; it covers both IP versions if this machine supports both."""
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"


def bracketed(address: str) -> str:
    """Return a "host:port" as gRPC and URLs write it (RFC 3986). Kubernetes gives IPv6 addresses without brackets."""
    host, _, port = address.rpartition(":")
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else address
