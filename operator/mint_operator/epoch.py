"""Leadership through a Lease, one per release, and the epoch that fences a leader's writes.

The epoch is the Lease's leaseTransitions after acquisition. It grows with every acquisition, also by the same
holder, and lives in the API server, so it outlives Redis. It is at least the current Unix minute, so that it exceeds
the epochs that other Leases left in Redis: one that was deleted, or that of a later installation whose namespace
this one takes over.

A holder that dies is replaced when its Lease has not been renewed for LEASE_S, judged by this process's own clock.
A leader that cannot renew stops earlier, RENEW_WITHIN_S after it sent the last renewal that was answered. The map's
fence stops one that stood still, as while its machine was suspended; the API server has none, so `check` comes before
each write to it.
"""

import asyncio
import math
import time
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from mint_operator.kube import Kube, KubeError

LEASE_S = 10
RENEW_EVERY_S = 3.0
RENEW_WITHIN_S = 8.0  # so each renewal may take half of it: the next one is sent when it has been answered
RETRY_S = 1.0

log = structlog.get_logger()


def now() -> float:
    """Return seconds by a clock that goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    lease_transitions: int | None = None
    renew_time: str | None = None


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str


class _Lease(msgspec.Struct, frozen=True):
    metadata: _Metadata
    spec: _Spec = _Spec()


class LeadershipLost(Exception):
    """The Lease could not be renewed in time, or somebody else holds it."""


class Leadership:
    """One candidate. `acquire` waits until it leads; `renew_forever` renews until it raises LeadershipLost."""

    def __init__(self, kube: Kube, namespace: str, lease: str, identity: str) -> None:
        self._kube = kube
        self._namespace = namespace
        self._lease = lease
        self._identity = identity
        self._version = ""
        self._seen: tuple[str | None, str | None] = (None, None)
        self._seen_at = 0.0
        self._sent = -math.inf  # when the renewal was sent by which the Lease is ours, by `now`
        self.epoch = 0

    def check(self) -> None:
        """Raise LeadershipLost if another may lead by now."""
        if self._left_s < 0.0:
            raise self._not_renewed("this process may have stood still")

    @property
    def _left_s(self) -> float:
        """For how long the Lease is surely ours."""
        return self._sent + RENEW_WITHIN_S - now()

    def _not_renewed(self, why: str) -> LeadershipLost:
        return LeadershipLost(f"lease {self._lease} was not renewed for {RENEW_WITHIN_S:.0f} s ({why})")

    async def acquire(self) -> int:
        """Wait until the Lease is ours; returns the epoch."""
        waiting = False
        while True:
            try:
                holder = await self._try_to_acquire()
            except KubeError as error:
                log.warning("lease not read", lease=self._lease, error=str(error))
                holder = ""
            if holder is None and self._left_s > 0.0:
                log.info("leading", lease=self._lease, epoch=self.epoch, identity=self._identity)
                return self.epoch
            if holder is None:
                log.warning("lease acquired too late to lead by it", lease=self._lease, epoch=self.epoch)
            if holder and not waiting:
                log.info("standing by", lease=self._lease, holder=holder)
                waiting = True
            await asyncio.sleep(RETRY_S)

    async def renew_forever(self) -> None:
        """Renew the Lease forever. Raises LeadershipLost."""
        retry_s = 0.0
        while True:
            await asyncio.sleep(max(self._sent + RENEW_EVERY_S - now(), retry_s))
            self.check()
            try:
                async with asyncio.timeout(self._left_s):
                    await self._write_ours(self._identity)
                retry_s = 0.0
            except (KubeError, TimeoutError) as error:
                if self._left_s < RETRY_S:
                    raise self._not_renewed(str(error) or "the API server did not answer") from None
                log.warning("lease not renewed", lease=self._lease, error=str(error))
                retry_s = RETRY_S

    async def _write_ours(self, holder: str) -> None:
        """Write the Lease while it is ours. Raises LeadershipLost if somebody else holds it, and KubeError.

        A Lease that has changed unexpectedly may have been changed by this process: the answer to a renewal can get
        lost, and one that was cancelled goes on in its thread.
        """
        try:
            await self._write(holder, self.epoch)
        except KubeError as error:
            if error.status not in {404, 409}:
                raise
            raw = await self._kube.get("Lease", self._namespace, self._lease)
            lease = None if raw is None else msgspec.json.decode(raw, type=_Lease)
            if lease is None or (lease.spec.holder_identity, lease.spec.lease_transitions) != self._held:
                raise LeadershipLost(f"lease {self._lease} was taken over or removed ({error})") from error
            self._version = lease.metadata.resource_version
            await self._write(holder, self.epoch)

    @property
    def _held(self) -> tuple[str, int]:
        """The holder and epoch in the Lease while this process leads."""
        return self._identity, self.epoch

    async def release(self) -> None:
        """Let the next candidate lead at once. Only called by a leader that has stopped writing."""
        self._sent = -math.inf
        try:
            await self._write_ours("")
        except (KubeError, LeadershipLost) as error:
            log.warning("lease not released; it will expire", lease=self._lease, error=str(error))

    async def _try_to_acquire(self) -> str | None:
        """Try once; returns None if the Lease is ours now, else its holder."""
        raw, minute = await self._kube.get("Lease", self._namespace, self._lease), int(time.time() // 60)
        if raw is None:
            self.epoch = minute
            return await self._claim(create=True)
        lease = msgspec.json.decode(raw, type=_Lease)
        holder = lease.spec.holder_identity
        if holder and holder != self._identity and not self._ran_out(lease.spec):  # ours: an answer was lost
            return holder
        self._version = lease.metadata.resource_version
        self.epoch = max((lease.spec.lease_transitions or 0) + 1, minute)
        return await self._claim(create=False)

    async def _claim(self, *, create: bool) -> str | None:
        try:
            await self._write(self._identity, self.epoch, create=create)
        except KubeError as error:
            if error.status == 409:
                return "another candidate"
            raise
        return None

    def _ran_out(self, spec: _Spec) -> bool:
        """Whether this process has seen no renewal for the duration that the holder promised."""
        seen = (spec.holder_identity, spec.renew_time)
        if seen != self._seen:
            self._seen, self._seen_at = seen, time.monotonic()
        return time.monotonic() - self._seen_at > (spec.lease_duration_seconds or LEASE_S)

    async def _write(self, holder: str, transitions: int, *, create: bool = False) -> None:
        sent, stamp = now(), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        metadata: dict[str, Any] = {"namespace": self._namespace, "name": self._lease}
        if not create:
            metadata["resourceVersion"] = self._version
        spec: dict[str, Any] = {"leaseTransitions": transitions, "leaseDurationSeconds": LEASE_S, "renewTime": stamp}
        if holder:
            spec["holderIdentity"] = holder
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        raw = await (self._kube.create(body) if create else self._kube.replace(body))
        self._version = msgspec.json.decode(raw, type=_Lease).metadata.resource_version
        if holder:
            self._sent = sent
