"""The port on which Prometheus scrapes a process, the same way for operator, gateways and engines."""

import threading
from wsgiref.simple_server import WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, disable_created_metrics, start_http_server

from mint_contracts.addresses import everywhere


def expose(port: int, registry: CollectorRegistry = REGISTRY) -> tuple[WSGIServer, threading.Thread]:
    """Serve a registry's metrics on a port of every address; returns what ends it.

    Without the times at which series were created, which nothing here reads: each counter and histogram would have a
    second series for its own.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]
    return start_http_server(port, everywhere(), registry=registry)
