"""One engine's life: listen, load the base however long that takes, follow the map, drain, end."""

import asyncio
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial

import structlog
from redis.exceptions import ResponseError

from mint_contracts.awaiting import end_tasks
from mint_contracts.backoff import delay_s
from mint_contracts.errors import (
    CorruptFile,
    Internal,
    MapUnavailable,
    MintError,
    NonFiniteWeights,
    StaleEpoch,
    UnsupportedBase,
    WrongBase,
)
from mint_contracts.functions import connect
from mint_contracts.map_reader import MapReader
from mint_contracts.records import MOST_TOLD, Assignment, EngineRecord, Failure, Held, Tier
from mint_contracts.scraping import expose
from mint_contracts.source import Source
from mint_contracts.step_figures import Curve
from mint_contracts.training_records import Progress, TrainAssignment, WaveTraining
from mint_engine.adapters.check import Fit
from mint_engine.agent import Agent, Body
from mint_engine.background_threads import disable_thread_teams
from mint_engine.environment import Start
from mint_engine.garbage import freeze_garbage
from mint_engine.model.base import Base
from mint_engine.model.modules import unused_linears
from mint_engine.parallel.node import is_of_node
from mint_engine.policies.calls.call_context import CallContext
from mint_engine.policies.calls.name_conflicts import NameConflicts
from mint_engine.policies.courses.roster import Roster
from mint_engine.policies.stored.announcement_cache import AnnouncementCache
from mint_engine.policies.stored.resting import RestingPolicies
from mint_engine.policies.stored.store import store_of
from mint_engine.preflight import check_small_files
from mint_engine.residency.disk import DiskTier
from mint_engine.residency.host import HostTier
from mint_engine.residency.loading import Loader
from mint_engine.residency.residency import Residency
from mint_engine.residency.slots import Slots
from mint_engine.serve import EngineServer, listen
from mint_engine.sources.fetch_base import copied_marks, drop_base, drop_stale, fetch_base, source_marks
from mint_engine.sources.load_progress import LoadProgress
from mint_engine.train_link import TrainBody

PART_S = 10.0  # of the time to drain, to save policies
TELL_S = 2.0
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 30.0
RECHECK_S = 30.0  # a refused base is checked again: its source may have been repaired

DRAINED, DEFECT, REPLACED = 0, 1, 3  # exit codes

log = structlog.get_logger(__name__)


class Process:
    """The parts of one engine that live as long as its process."""

    def __init__(self, start: Start, server: EngineServer) -> None:
        self._start, self._server = start, server
        self._incarnation = time.time_ns()
        self._redis = connect()
        self._wants: tuple[Assignment, ...] = ()
        self._trains: tuple[Mapping[str, WaveTraining], Mapping[str, TrainAssignment]] = ({}, {})
        self._residency: Residency | None = None
        self._roster: Roster | None = None
        self._failure: Failure | None = None
        self._load_progress = LoadProgress()
        self._refused: tuple[Mapping[str, str], Failure] | None = None  # a deleted copy: its source's marks, and why
        self._leaving = False
        self._announcement_cache = _announcement_cache_of(start)
        training = TrainBody(self._train, self._confirm, self._progress, self._rewards, self._curves)
        trains = start.settings.training_store is not None
        body = Body(self._describe, self._holdings, self._want, training if trains else None)
        self.agent = Agent(self._redis, start.settings.base_model, start.engine, body)

    async def follow(self) -> None:
        """Follow the map and report, as `Agent.run`, and follow what Trainer calls have published on any engine.

        The published revisions are read first: readers take what the first report leaves out to be nowhere.
        """
        announcement_cache = self._announcement_cache
        if announcement_cache is None:
            await self.agent.run()
            return
        announcement_cache.on_change = self._announced
        beside = [asyncio.create_task(each) for each in (announcement_cache.run(), self._server.register.run())]
        try:
            if not await announcement_cache.first():
                announcement_cache.presume(await self._last_published())
            await self.agent.run()
        finally:
            for each in beside:
                each.cancel()

    async def _last_published(self) -> dict[str, Source]:
        """Return what this engine's last start has reported as published, as far as the map still has it."""
        base, engine = self._start.settings.base_model, self._start.engine
        try:
            held = await MapReader(self._redis).held(base, engine)
        except (MapUnavailable, ResponseError) as error:
            log.warning("published_names_unknown", engine=engine, error=str(error))
            return {}
        return {name: each.source for name, each in held.items() if each.published}

    async def load_base(self) -> None:
        """Fetch and load the base; retry until it works, and report to the map meanwhile why it does not."""
        attempt = 0
        while (failure := await self._try_base()) is not None:
            attempt += 1
            self._failure = failure
            self.agent.changed()
            first_s = RECHECK_S if failure.terminal else FIRST_RETRY_S
            wait_s = delay_s(attempt, first_s=first_s, cap_s=LONGEST_RETRY_S)
            log.warning("base_refused", reason=failure.reason, error=failure.message, again_in_s=round(wait_s, 1))
            await asyncio.sleep(wait_s)
        self._failure = None
        self.agent.changed()

    async def drain(self) -> None:
        """Announce that no more requests are taken, then finish the current ones."""
        self._leaving = True
        await self._server.refuse()  # before any wait: requests taken late would be cut off
        reported = await self.agent.tell(TELL_S)
        log.info("draining", told=reported, running=self._server.load_now.running)
        until = time.monotonic() + self._start.settings.drain_s
        await self._save_policies()
        finished = await self._server.drain(max(1.0, until - time.monotonic()))
        if self._residency is not None:
            await self._residency.close()
        log.info("drained", finished=finished)

    async def abort(self) -> int:
        """Report that this engine is away, after a rank or the device was lost; return the exit code to restart.

        Policies are saved first, if they can be: a rank that ends takes nothing that they have learnt with it.
        """
        log.error("engine_lost", running=self._server.load_now.running)
        self._leaving = True
        await self._server.refuse()
        await asyncio.gather(self.agent.tell(TELL_S), self._save_policies())
        return DEFECT

    async def _save_policies(self) -> None:
        """Let go of all policies, and save what they have learnt, within `PART_S`; see `Register.drain`."""
        self._server.release_training()
        saving = [self._server.register.drain(PART_S, self._server.lost.is_set)]
        if self._roster is not None:
            saving.append(self._roster.close())
        await asyncio.gather(*saving)

    async def _try_base(self) -> Failure | None:
        """Try to load the base; return why it is refused, as text: the error itself would keep the base in memory."""
        source = self._start.settings.source
        try:
            return await self._fetch_and_load()
        except Exception as defect:
            # The process stays up and reports why: a restart would load the same base and fail in the same way.
            log.exception("base_defect")
            return Failure.of(
                Internal(f"base {source.uri!r}", f"could not be loaded ({type(defect).__name__}); see the log")
            )
        finally:
            self._load_progress.end()

    async def _fetch_and_load(self) -> Failure | None:
        source, cache = self._start.settings.source, self._start.cache
        try:
            if failure := await asyncio.to_thread(self._refused_still):
                return failure
            look = partial(check_small_files, self._start.settings)
            path = await asyncio.to_thread(fetch_base, source, cache, look, self._load_progress)
            await self._server.load(path, self._make_residency, self._load_progress)
            disable_thread_teams()
            self._open_training()
        except MintError as error:
            await asyncio.to_thread(self._put_away, error)
            return Failure.of(error)
        return None

    def _put_away(self, error: MintError) -> None:
        """Delete a bad copy of the base: one that is corrupt, and one whose source has to be repaired.

        Also delete a copy of the source's earlier content, which other nodes can no longer get.
        """
        source, cache = self._start.settings.source, self._start.cache
        if is_of_node(error):
            with suppress(MintError):
                if isinstance(error, WrongBase):
                    drop_stale(source, cache)
            return
        if isinstance(error, CorruptFile):
            drop_base(source, cache)
        elif isinstance(error, NonFiniteWeights | UnsupportedBase) and (marks := copied_marks(source, cache)):
            self._refused = marks, Failure.of(error)
            drop_base(source, cache)

    def _refused_still(self) -> Failure | None:
        """Return the failure if the source still has the refused content, else None. Raises as `fetch_base` does."""
        if self._refused is not None and source_marks(self._start.settings.source) != self._refused[0]:
            self._refused = None
        return self._refused[1] if self._refused is not None else None

    def _make_residency(self, base: Base, slots: Slots) -> Residency:
        freeze_garbage()
        settings = self._start.settings
        disk = DiskTier(self._start.cache / "adapters", settings.disk_bytes)
        fit = Fit(slots.modules, settings.max_rank, settings.base_names, unused_linears(base.model))
        loader = Loader(disk, fit, slots.dtype)
        host = HostTier(settings.host_bytes, pinned=slots.device.type == "cuda")
        gpu = self._server.policy_device(base)
        residency = Residency(slots, loader, host, store=settings.store, policy_gpu=gpu)
        residency.on_change, residency.on_aside = self.agent.changed, self._server.check
        residency.in_flight, residency.trained = self._server.tenants, lambda: self._server.training_bytes
        residency.follows = self._server.follows_arrivals
        residency.want(self._wants)
        residency.start()
        self._residency = residency
        self._announced()
        return residency

    def _open_training(self) -> None:
        source, residency = self._start.settings.training_store, self._residency
        context = self._server.training_context(residency.lending) if residency is not None else None
        if context is None or source is None or self._announcement_cache is None:
            return
        roster = self._roster = Roster(context, self._incarnation, self.agent.changed)
        settings = self._start.settings
        name_conflicts = NameConflicts(self._redis, settings.base_model, source, settings.store)
        store = store_of(source)
        resting = RestingPolicies(store, settings.base_model)
        self._server.register.context = CallContext(
            context, store, lambda: roster.policies, name_conflicts.refuse, self._announcement_cache, resting
        )
        roster.want(*self._trains)

    def _train(self, waves: Mapping[str, WaveTraining], trains: Mapping[str, TrainAssignment]) -> None:
        self._trains = waves, trains
        if self._roster is not None and not self._leaving:
            self._roster.want(waves, trains)

    def _confirm(self) -> None:
        if self._roster is not None:
            self._roster.confirm()

    def _progress(self) -> dict[str, Progress]:
        return self._roster.progress() if self._roster is not None else {}

    def _rewards(self) -> dict[str, Sequence[float]]:
        return self._roster.rewards() if self._roster is not None else {}

    def _curves(self) -> dict[str, Curve]:
        return self._roster.curves() if self._roster is not None else {}

    def _want(self, assignments: Iterable[Assignment]) -> None:
        self._wants = tuple(assignments)
        if self._residency is not None:
            self._residency.want(self._wants)

    def _announced(self) -> None:
        if self._residency is not None and self._announcement_cache is not None:
            self._residency.lending.announce(self._announcement_cache.known)
        self.agent.changed()

    def _holdings(self) -> dict[str, Held]:
        if self._residency is not None:
            return self._residency.report()
        known = self._announcement_cache.known if self._announcement_cache is not None else {}
        return {name: Held(name, source, Tier.REMOTE, published=True) for name, source in known.items()}

    def _describe(self, map_version: int, sequence: int) -> EngineRecord:
        residency, load, settings = self._residency, self._server.load_now, self._start.settings
        bringing, passing = self._load_progress.now, self._failure is not None and not self._failure.terminal
        return EngineRecord(
            engine=self._start.engine,
            address=self._start.address,
            incarnation=self._incarnation,
            ready=self._server.ready and not self._leaving,
            slots_used=residency.slots.used if residency else 0,
            slots_total=settings.device_slots,
            running=load.running,
            waiting=load.waiting,
            map_version=map_version,
            sequence=sequence,
            failure=None if bringing and passing else self._failure,
            bringing=bringing,
            demand=self._server.demand(MOST_TOLD),
            training_bytes=residency.lending.room.lasting if residency else 0,
            loads_per_s=residency.rate.per_s if residency else 0.0,
            policy_room=self._server.register.room,
        )


async def run(start: Start) -> int:
    """Run an engine until SIGTERM or SIGINT.

    Returns the exit code: 0 drained, 3 replaced by a newer start of this engine, 1 defect. After a second signal it
    no longer waits for requests.
    """
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    expose(start.metrics_port)
    server = await listen(start.settings, start.engine, start.port, endpoint=start.endpoint)
    log.info("listening", port=server.port, metrics_port=start.metrics_port, source=start.settings.source.uri)
    process = Process(start, server)
    following = asyncio.create_task(process.follow())
    loading = asyncio.create_task(process.load_base())
    signalled, lost = asyncio.create_task(ended.wait()), asyncio.create_task(server.lost.wait())
    await asyncio.wait({following, signalled, lost}, return_when=asyncio.FIRST_COMPLETED)
    if following.done():
        return _why_ended(following, start)
    loading.cancel()
    if lost.done():
        return await process.abort()
    ended.clear()
    draining, again = asyncio.create_task(process.drain()), asyncio.create_task(ended.wait())
    await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
    if following.done():
        return _why_ended(following, start)
    await end_tasks([following])
    await process.agent.leave()
    if draining.done():
        draining.result()
    return DRAINED


def _announcement_cache_of(start: Start) -> AnnouncementCache | None:
    settings = start.settings
    if settings.training_store is None:
        return None
    return AnnouncementCache(settings.training_store, settings.base_model, start.engine)


def _why_ended(following: "asyncio.Task[None]", start: Start) -> int:
    error = following.exception()
    if isinstance(error, StaleEpoch):
        log.error("replaced", error=str(error), hint=f"another process runs as engine {start.engine}; this one ends")
        return REPLACED
    log.error("map_link_defect", exc_info=error)
    return DEFECT
