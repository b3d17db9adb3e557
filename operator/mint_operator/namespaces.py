"""Finds which of the configured namespaces the operator may read.

Deleting a namespace also deletes the operator's Role in it. Namespaces that cannot be read are left out, as if they
were not configured, so that work goes on in the others; their bases' records in Redis stay as long as engines of
theirs report (see leftovers). The watch and the views are made for one set of namespaces: when the set changes, the
process ends, and its Deployment restarts it.
"""

import asyncio
from collections.abc import Sequence

import structlog

from mint_contracts.errors import InvalidRequest
from mint_operator import metrics
from mint_operator.kube import Kube

LOOK_S = 10.0
KINDS = ("BaseModel", "AdapterWave")  # enough: the chart's Role grants all rights, or does not exist

log = structlog.get_logger()


async def readable(kube: Kube, namespaces: Sequence[str]) -> tuple[str, ...]:
    """Return the `namespaces` in which our kinds may be listed; all of them while the API server does not answer.

    Raises InvalidRequest if namespaces are configured and none may be read.
    """
    found = await _readable(kube, namespaces, namespaces)
    left_out = sorted(set(namespaces) - set(found))
    metrics.NAMESPACES_LEFT_OUT.set(len(left_out))
    if left_out and not found:
        missing = (
            f"the operator may not read any of {', '.join(left_out)}; the chart creates a Role in each that exists"
        )
        raise InvalidRequest("watchNamespaces", missing)
    for each in left_out:
        log.warning("namespace left out", namespace=each, error="no permission to list it; does it exist?")
    return found


async def changed(kube: Kube, namespaces: Sequence[str], before: Sequence[str]) -> None:
    """Wait until the readable namespaces differ from `before`, as far as the API server answers."""
    found = before
    while found == before:
        await asyncio.sleep(LOOK_S)
        found = await _readable(kube, namespaces, before)
    log.warning("the readable namespaces have changed since startup; exiting to be restarted", now=found)


async def _readable(kube: Kube, namespaces: Sequence[str], before: Sequence[str]) -> tuple[str, ...]:
    """Return those that may be read; where the API server does not say, those of `before`."""

    async def may_read(namespace: str) -> bool:
        may = await asyncio.gather(*[kube.may_list(kind, namespace) for kind in KINDS])
        return False not in may and (None not in may or namespace in before)

    verdicts = await asyncio.gather(*map(may_read, namespaces))
    return tuple(each for each, may in zip(namespaces, verdicts, strict=True) if may)
