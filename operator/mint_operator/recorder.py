"""Writes Kubernetes Events. One is a courtesy: whether it can be written changes nothing else."""

import time
from typing import Any

import structlog

from mint_operator.kube import Kube, KubeError

REPEAT_S = 600.0

log = structlog.get_logger()


class Recorder:
    """The operator's Events. `once` leaves out what was told of the object less than REPEAT_S ago.

    A container in back-off alternates between two or three reasons for as long as it fails.
    """

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._told: dict[tuple[str, str], float] = {}  # by the object's uid and the reason

    async def emit(self, event: dict[str, Any]) -> None:
        """Write an Event."""
        self._told[self._key(event)] = time.monotonic()
        try:
            await self._kube.create(event)
        except KubeError as error:
            log.warning("event not written", error=str(error))

    async def once(self, event: dict[str, Any]) -> None:
        """Write an Event unless its reason has been told of late."""
        last = self._told.get(self._key(event))
        if last is None or time.monotonic() - last >= REPEAT_S:
            await self.emit(event)

    def forget_old(self) -> None:
        """Forget what may be told again."""
        now = time.monotonic()
        self._told = {key: at for key, at in self._told.items() if now - at < REPEAT_S}

    @staticmethod
    def _key(event: dict[str, Any]) -> tuple[str, str]:
        return event["involvedObject"]["uid"], event["reason"]
