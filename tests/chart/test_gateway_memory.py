"""What a gateway may hold in memory fits in the memory that the chart gives it."""

import yaml
from kubernetes.utils.quantity import parse_quantity

from mint_contracts.byte_budget import OWN_BYTES
from mint_contracts.transport import MOST_TOKEN_BYTES
from mint_gateway import answering, arrivals, health, unread
from mint_gateway.catalog import servicer as catalog
from mint_gateway.field_count import ELEMENT_BYTES, MOST_BYTES, MOST_FIELDS
from mint_gateway.http import door
from mint_gateway.server import Limits
from mint_gateway.trainer import servicer as trainer
from tests.chart.rendering import CHART

MIB = 1 << 20
UNRECEIVED = 64 << 10  # what gRPC takes of a request that waits for a place, as tests of arrivals measure
# As measured, 70 MiB at rest, 100 more with 2,000 requests in flight, and 140 more with 64,000 adapters placed and
# held; and 50 for the catalog's cache.
PROCESS = 384 * MIB
# Of an idle connection by TLS, as measured: 57 and 50 KiB.
HTTP_CONNECTION, GRPC_CONNECTION = 58 << 10, 52 << 10
# More, of one by HTTP whose request has the longest head, in a hundred fields, and after which as much has come; as
# measured, 67 KiB.
HTTP_AHEAD = 68 << 10
HEALTH_WATCH = 43 << 10  # as measured, 33 KiB with 7 KiB of metadata, of which gRPC takes at most 16


def test_all_that_a_gateway_may_hold_fits_in_its_memory_limit() -> None:
    places = arrivals.PLACES + arrivals.OPEN_PLACES
    bounds = {
        "gRPC requests that are arriving": places * MOST_TOKEN_BYTES,
        "gRPC requests that wait for a place": places * arrivals.WAITING * UNRECEIVED,
        "HTTP requests that are arriving": door.MOST_ARRIVING,
        "requests in flight": answering.MOST_BYTES,
        "prompts' log-probabilities": answering.MOST_SCORES,
        "HTTP answers that are not streamed": door.MOST_KEPT,
        "connections by HTTP": (Limits().connections + door.MOST_OUTSIDE) * (HTTP_CONNECTION + HTTP_AHEAD),
        "connections by gRPC": Limits().connections * GRPC_CONNECTION,
        "their own allowances": (Limits().connections + Limits().requests) * OWN_BYTES,
        "calls of the Trainer": trainer.MOST_BYTES,
        "names that are retired": catalog.MOST_RETIRING,
        "gRPC calls and answers that are not read": unread.MOST_BYTES + unread.OPEN_BYTES,
        "watches of its health": health.MOST_WATCHES * HEALTH_WATCH,
        "other calls": (Limits().calls + Limits().watches) * MOST_BYTES,
        "messages of registrations": catalog.STREAMS * (MOST_TOKEN_BYTES + MOST_FIELDS * ELEMENT_BYTES),
    }
    limit = memory("limits")
    assert PROCESS + sum(bounds.values()) <= limit, {what: size // MIB for what, size in bounds.items()}


def test_who_upgrades_is_told_the_memory_that_a_gateway_takes() -> None:
    requested, limit = memory("requests") // MIB, memory("limits") // (MIB << 10)
    told = f"A gateway requests {requested} MiB of memory and may take {limit} GiB"
    assert told in (CHART / "README.md").read_text()


def memory(bound: str) -> int:
    """Return the memory that the chart's values give a gateway, in bytes."""
    resources = yaml.safe_load((CHART / "values.yaml").read_text())["gateway"]["resources"]
    return int(parse_quantity(resources[bound]["memory"]))  # type: ignore[no-untyped-call]
