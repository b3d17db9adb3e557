"""Waits for the CRDs: helm installs them unless told not to, and never reinstalls them after somebody removed them.

Kopf looks for kinds once, when it starts, and never watches kinds that appear later.
"""

import asyncio
from collections.abc import Collection

import structlog

from mint_contracts.backoff import delay_s
from mint_contracts.resources import GROUP, VERSION
from mint_operator.kube import OWN, Kube, KubeError

log = structlog.get_logger()


async def awaited(kube: Kube) -> bool:
    """Wait until the API server answers and has our kinds; returns whether that took more than one request.

    Returns if a request is refused: watching and listing will report why.
    """
    tries = 0
    while True:
        try:
            lacking = OWN - await kube.kinds()
        except KubeError as error:
            if error.refused:
                return bool(tries)
            event, problem = "CRDs not looked up", str(error)
        else:
            if not lacking:
                break
            event, problem = "CRDs are missing", what_to_apply(lacking)
        tries += 1
        pause = delay_s(tries, first_s=0.2, cap_s=10.0)
        log.warning(event, error=problem, retry_in_s=round(pause, 2))
        await asyncio.sleep(pause)
    if tries:
        log.info("CRDs are there")
    return bool(tries)


def what_to_apply(lacking: Collection[str]) -> str:
    """Return the message that says which CRDs are missing and how to apply them."""
    return (
        f"the cluster lacks {' and '.join(sorted(lacking))} of {GROUP}/{VERSION}; apply MinT's CRDs "
        "(of the same version): kubectl apply --server-side -f charts/mint/crds/"
    )
