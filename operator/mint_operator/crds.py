"""Waits for the CRDs: helm installs them unless it is told not to, and never anew once somebody has removed them.

Kopf looks for kinds once, when it begins, and never watches those that came later.
"""

import asyncio
from collections.abc import Collection

import structlog

from mint_contracts.backoff import delay_s
from mint_contracts.resources import GROUP, VERSION
from mint_operator.kube import OWN, Kube, KubeError

log = structlog.get_logger()


async def awaited(kube: Kube) -> bool:
    """Wait until the API server has our kinds; returns whether it lacked some.

    One that cannot be asked is not waited for: who watches and lists will tell why.
    """
    tries = 0
    while True:
        try:
            lacking = OWN - await kube.kinds()
        except KubeError as error:
            if not tries or error.refused:
                return bool(tries)
            lacking = OWN
        if not lacking:
            break
        tries += 1
        pause = delay_s(tries, first_s=0.2, cap_s=10.0)
        log.warning("CRDs are missing", error=what_to_apply(lacking), retry_in_s=round(pause, 2))
        await asyncio.sleep(pause)
    if tries:
        log.info("CRDs are there")
    return bool(tries)


def what_to_apply(lacking: Collection[str]) -> str:
    """What an API server without these kinds is to be given."""
    return (
        f"the cluster lacks {' and '.join(sorted(lacking))} of {GROUP}/{VERSION}; apply MinT's CRDs "
        "(also in the chart's crds/): kubectl apply --server-side -f crds/"
    )
