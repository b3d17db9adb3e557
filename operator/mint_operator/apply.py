"""Carries out a plan: manifests, the placement map, statuses. A failure with one object does not affect others."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
import structlog
from redis.exceptions import ResponseError

from mint_contracts.backoff import Retry
from mint_contracts.errors import MapUnavailable
from mint_contracts.map_writer import MapWriter
from mint_contracts.records import Failure, MapState
from mint_contracts.resources import AdapterWaveStatus, BaseModelStatus
from mint_contracts.train_writer import TrainWriter
from mint_operator import metrics
from mint_operator.about import about, of_change, of_manifest, of_resource
from mint_operator.applied import Applied
from mint_operator.kube import Kube, KubeError
from mint_operator.observing import decode
from mint_operator.observing.dirt import Dirt, Part
from mint_operator.observing.feed import Feed, News
from mint_operator.observing.map_view import MapView
from mint_operator.observing.train_view import TrainView
from mint_operator.observing.written import Written
from mint_operator.planning import events, status_write
from mint_operator.planning.conditions import APPLY_FAILED
from mint_operator.planning.groups import WORKLOADS
from mint_operator.planning.manifests import MANAGED_BY, MANAGER, Manifest
from mint_operator.planning.plan import Plan
from mint_operator.planning.snapshot import Meta, ObservedBase, ObservedWave, Snapshot
from mint_operator.pruning import CRDS_OUTDATED, Pruning
from mint_operator.recorder import Recorder

AT_ONCE = 8
HUNG_S = 5.0  # a failure this slow, such as a webhook that times out, would probably recur with the next object
GONE = 404
CONFLICT = 409
REFUSED_EVERY_S = 30.0  # a status that the API server refused is sent again this often, or at once when it changes
FAILED_FIRST_S = 1.0  # a status write that failed otherwise is repeated after this long, then with growing delays

log = structlog.get_logger()


# Kind, object, its new status; and that of a wave's base.
_StatusWrite = tuple[str, ObservedBase | ObservedWave, status_write.Status, BaseModelStatus | None]


class _Refused(msgspec.Struct, frozen=True):
    """A manifest that could not be applied: tried again later, or at once when it changes."""

    digest: str
    failure: Failure
    retry: Retry
    hung: bool  # there was no answer, or a slow one


class _HeldBack(msgspec.Struct, frozen=True):
    """A status that was not written, and when to send one again. `refused`: the API server rejected its content."""

    status: status_write.Status
    refused: bool
    retry: Retry

    def holds_back(self, status: status_write.Status) -> bool:
        """Whether `status` must wait until then, too. After a refusal, one that says something else need not."""
        return not self.refused or status_write.owed_in(self.status, status, 0.0) != 0.0


class Maps(msgspec.Struct, frozen=True):
    """The placement map's two parts, each with its writer and its view (what was last read)."""

    writer: MapWriter
    view: MapView
    train_writer: TrainWriter
    train_view: TrainView


class Applier:
    """The operator's only writer. Raises StaleEpoch and LeadershipLost; logs and retries all other failures."""

    def __init__(self, kube: Kube, maps: Maps, dirt: Dirt, feed: Feed, written: Written) -> None:
        self._kube = kube
        self._writer = maps.writer
        self._map = maps.view
        self._train_writer = maps.train_writer
        self._train_view = maps.train_view
        self._dirt = dirt
        self._feed = feed
        self._as_written = written
        self.owes = False  # a write that failed or was held back is still to be done
        self.moved_at = time.monotonic()  # when a write last ended, successfully or not
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._objects_gate = asyncio.Semaphore(AT_ONCE)  # separate, so that objects that hang delay no other writes
        self._refused: dict[tuple[str, str, str], _Refused] = {}
        self._applied: dict[tuple[str, str, str], Applied] = {}
        self._written: dict[tuple[str, str], float] = {}
        self._settled: dict[tuple[str, str], object] = {}  # planned statuses that needed no write, by identity
        self._pruning = Pruning()
        self._recorder = Recorder(kube)
        self._held_back: dict[tuple[str, str], _HeldBack] = {}
        self.failures: dict[str, Failure] = {}  # by base: why its objects could not be applied

    async def apply(self, plan: Plan, snapshot: Snapshot) -> Counter[str]:
        """Write the difference; returns the number of writes by kind, failures under "failed"."""
        counts: Counter[str] = Counter()
        self.owes = False
        objects = asyncio.create_task(self._manifests(plan, counts))
        try:
            await self._write_map_and_statuses(plan, snapshot, counts)
            await objects
        finally:
            objects.cancel()  # still running only if the map's writes raised, as when another operator took over
        # If Redis has lost everything since it was looked at, only the next pass writes all bases.
        if snapshot.redis_ok and not counts["failed"] and not self._map.led:
            try:
                await self._writer.note_leading()
            except (MapUnavailable, ResponseError):
                self.owes = True
        self._prune(plan, snapshot)
        self.owes |= bool(counts["failed"] or self._refused)
        return counts

    async def _write_map_and_statuses(self, plan: Plan, snapshot: Snapshot, counts: Counter[str]) -> None:
        """Write the map, and then the statuses, which describe it."""
        await asyncio.gather(
            *[self._change(base, plan, snapshot, counts) for base in sorted({*plan.changes, *plan.training})],
            *[self._to_map(base, "forgets", partial(self._writer.forget, base), counts) for base in plan.forgets],
        )
        if self._pruning.check_due(time.monotonic()):
            self._settled.clear()
        waves = {wave.meta.key: wave for wave in snapshot.waves}
        statuses: list[_StatusWrite] = [
            ("BaseModel", snapshot.bases[key], status, None) for key, status in plan.base_statuses.items()
        ]
        statuses += [
            ("AdapterWave", waves[key], status, plan.base_statuses.get(waves[key].base))
            for key, status in plan.wave_statuses.items()
        ]
        new = [each for each in statuses if self._settled.get((each[0], each[1].meta.uid)) is not each[2]]
        await asyncio.gather(*[self._status(each, counts) for each in new])

    async def _manifests(self, plan: Plan, counts: Counter[str]) -> None:
        """Apply the objects of all namespaces concurrently, each namespace independently."""
        wanted = {manifest.key for manifest in plan.manifests}
        self._refused = {key: refused for key, refused in self._refused.items() if key in wanted}
        namespaces: dict[str, list[Manifest]] = {}
        for manifest in plan.manifests:
            namespaces.setdefault(manifest.namespace, []).append(manifest)
        await asyncio.gather(*[self._of_namespace(manifests, counts) for manifests in namespaces.values()])
        failing = {manifest.key: manifest.bases for manifest in plan.manifests if manifest.key in self._refused}
        self.failures = {base: self._refused[key].failure for key, bases in failing.items() for base in bases}

    async def _of_namespace(self, manifests: list[Manifest], counts: Counter[str]) -> None:
        """Apply one namespace's objects: Secrets first, then all bases concurrently, each base's objects in order.

        Workloads whose Secret could not be written are left alone: an engine that restarted now would read the old
        password, and would not restart again for the new one.
        """
        groups: dict[str, list[Manifest]] = {}
        for manifest in manifests:
            groups.setdefault("" if manifest.kind == "Secret" else manifest.bases[0], []).append(manifest)
        secrets = groups.pop("", [])
        await self._in_order(secrets, counts)
        lacking = {base for secret in secrets if secret.key in self._refused for base in secret.bases}
        for base in lacking & groups.keys():
            groups[base] = [manifest for manifest in groups[base] if manifest.kind not in WORKLOADS]
        await asyncio.gather(*[self._in_order(group, counts) for group in groups.values()])

    async def _in_order(self, manifests: list[Manifest], counts: Counter[str]) -> None:
        """Apply one after another. Stop at one that hung: the rest would hang, too, and wait until it is retried."""
        for manifest in manifests:
            applied = self._applied.get(manifest.key)
            if applied is not None and applied.holds_back(manifest):
                self.owes = True
                continue
            last = self._refused.get(manifest.key)
            if last is None or last.digest != manifest.digest or last.retry.due:
                with about(of_manifest(manifest)):
                    await self._put(manifest, last, counts)
            refused = self._refused.get(manifest.key)
            if refused is not None and refused.hung:
                return

    async def _put(self, manifest: Manifest, last: _Refused | None, counts: Counter[str]) -> None:
        async with self._objects_gate:
            began = time.monotonic()
            try:
                await self._apply_one(manifest)
            except KubeError as error:
                self._refuse(manifest, error, last, hung=not error.status or time.monotonic() - began >= HUNG_S)
                self._count(counts, "manifests", failed=True)
                log.warning("object not applied", error=str(error))
            else:
                self._refused.pop(manifest.key, None)
                self._applied[manifest.key] = Applied.after(self._applied.get(manifest.key), manifest)
                self._dirt.note(Part.WORKLOADS if manifest.kind in WORKLOADS else Part.CHILDREN)
                self._count(counts, "manifests")
                log.info("object applied")

    async def _apply_one(self, manifest: Manifest) -> None:
        live = await self._kube.get(manifest.kind, manifest.namespace, manifest.name)
        if live is not None and decode.labels(live).get(MANAGED_BY) != MANAGER:
            what = f"{manifest.kind} {manifest.namespace}/{manifest.name}"
            problem = f"exists but is not MinT's (it lacks the label {MANAGED_BY}={MANAGER}); rename one of the two"
            raise KubeError(what, CONFLICT, f"{what} {problem}")
        self._as_written.wrote(manifest.key, await self._kube.apply(manifest.body))

    def _refuse(self, manifest: Manifest, error: KubeError, last: _Refused | None, *, hung: bool) -> None:
        before = last.retry if last is not None and last.digest == manifest.digest else None
        failure = Failure(reason=APPLY_FAILED, message=error.message, terminal=error.refused)
        retry = Retry.after(before, first_s=1.0, cap_s=60.0)
        self._refused[manifest.key] = _Refused(manifest.digest, failure, retry, hung)
        self._dirt.note(Part.WORKLOADS)

    async def _change(self, base: str, plan: Plan, snapshot: Snapshot, counts: Counter[str]) -> None:
        """Write training leases before placements: a lost map counts as known again once its placements exist."""
        training = plan.training.get(base)
        if training is not None:
            self._train_view.invalidate(base, training)
            if not await self._to_map(base, "training", lambda: self._train_writer.apply(base, training), counts):
                return
        if base in plan.changes:
            await self._place(base, plan, snapshot.maps[base].state, counts)

    async def _place(self, base: str, plan: Plan, over: MapState, counts: Counter[str]) -> None:
        async def write() -> None:
            version = await self._writer.apply(base, plan.changes[base], over)
            if not plan.changes[base].completes:
                self._map.invalidate(base)  # the map still has no version
            elif base in plan.known:
                self._map.wrote(base, plan.known[base].written(version))

        with about(of_change(plan.changes[base])):
            await self._to_map(base, "changes", write, counts)

    async def _to_map(self, base: str, what: str, write: Callable[[], Awaitable[Any]], counts: Counter[str]) -> bool:
        """Write to the map; return whether that succeeded."""
        with about({"base": base, "what": what}):
            try:
                async with self._gate:
                    await write()
            except (MapUnavailable, ResponseError) as error:
                self._map.invalidate(base)
                self._count(counts, what, failed=True)
                log.warning("placement map not written", error=str(error))
                return False
            self._count(counts, what)
            log.info("placement map written", epoch=self._writer.epoch)
            return True

    async def _status(self, write: _StatusWrite, counts: Counter[str]) -> None:
        with about(of_resource(write[1])):
            await self._write_status(write, counts)

    async def _write_status(self, write: _StatusWrite, counts: Counter[str]) -> None:
        kind, of, status, _ = write
        meta, now = of.meta, time.monotonic()
        key = (kind, meta.uid)
        readable = self._pruning.readable(kind, status)
        wait_s = status_write.owed_in(of.status, readable, now - self._written.get(key, float("-inf")))
        if wait_s is None:
            self._settled[key] = status
            return
        last = self._held_back.get(key)
        if last is not None and last.holds_back(status):
            wait_s = max(wait_s, last.retry.at - now)
        if wait_s > 0:
            self._dirt.mark_in(Part.MAP, wait_s)
            self.owes = True
            return
        # With the uid the write fails if the object has been deleted and recreated since.
        patch = {"metadata": {"uid": meta.uid}, "status": status_write.body(status)}
        try:
            async with self._gate:
                raw = await self._kube.patch_status(kind, meta.namespace, meta.name, patch)
        except KubeError as error:
            if error.status not in {GONE, CONFLICT}:
                self._count(counts, "statuses", failed=True)
                log.warning("status not written", error=str(error))
            self._hold_back(key, status, error, last)
            return
        self._held_back.pop(key, None)
        self._written[key] = now
        self._feed.put(meta.uid, News(kind, raw, own=True))
        self._count(counts, "statuses")
        if of.status.phase != status.phase:
            log.info("phase changed", before=of.status.phase, phase=status.phase)
        for failure in events.failures(of.status, status):
            with about({"adapter": failure.adapter, "engine": failure.engine}):
                log.warning("adapter failed", reason=failure.reason, error=failure.message)
        await self._tell(write)
        await self._note_pruning(kind, meta, status, raw)

    def _hold_back(
        self, key: tuple[str, str], status: status_write.Status, error: KubeError, last: _HeldBack | None
    ) -> None:
        """Hold back a status that was not written. If its object is gone or replaced, have the kind listed again."""
        first_s = REFUSED_EVERY_S if error.refused else FAILED_FIRST_S
        retry = Retry.after(None if last is None else last.retry, first_s=first_s, cap_s=REFUSED_EVERY_S)
        self._held_back[key] = _HeldBack(status, error.refused, retry)
        if error.status in {GONE, CONFLICT}:
            self._dirt.note(Part.BASES if key[0] == "BaseModel" else Part.WAVES)

    async def _note_pruning(
        self, kind: str, meta: Meta, status: BaseModelStatus | AdapterWaveStatus, raw: bytes
    ) -> None:
        """Check which fields the API server kept. If that has changed, all statuses are compared again."""
        message = self._pruning.learn(kind, status, raw, time.monotonic())
        if message is not None:
            self._settled.clear()
        if message:
            async with self._gate:
                await self._recorder.emit(events.event(kind, meta, "Warning", CRDS_OUTDATED, message, time.time()))

    async def _tell(self, write: _StatusWrite) -> None:
        """Write the Event of a changed status, if it has one."""
        kind, of, status, base = write
        changed = events.transition(kind, of.meta, of.status, status, time.time())
        told = changed or events.waiting(kind, of.meta, of.status, status, time.time(), base)
        if told is None:
            return
        each_time = changed is not None and not events.alternates(of.status, status)
        async with self._gate:
            await (self._recorder.emit(told) if each_time else self._recorder.once(told))

    def _prune(self, plan: Plan, snapshot: Snapshot) -> None:
        self._recorder.forget_old()
        there = snapshot.children.keys() | {manifest.key for manifest in plan.manifests}
        self._applied = {key: each for key, each in self._applied.items() if key in there}
        alive = {("BaseModel", base.meta.uid) for base in snapshot.bases.values()}
        alive |= {("AdapterWave", wave.meta.uid) for wave in snapshot.waves}
        self._written = {key: at for key, at in self._written.items() if key in alive}
        self._settled = {key: status for key, status in self._settled.items() if key in alive}
        self._held_back = {key: each for key, each in self._held_back.items() if key in alive}

    def _count(self, counts: Counter[str], what: str, *, failed: bool = False) -> None:
        self.moved_at = time.monotonic()
        counts["failed" if failed else what] += 1
        metrics.WRITES.labels(what, "failed" if failed else "done").inc()
