"""The one level-based reconcile loop: wait for dirt, observe what may have changed, plan, apply the difference."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog

from mint_contracts.backoff import delay_s
from mint_contracts.errors import StaleEpoch
from mint_operator import metrics
from mint_operator.apply import Applier
from mint_operator.epoch import LeadershipLost
from mint_operator.garbage import Garbage
from mint_operator.kube import KubeError
from mint_operator.observing.dirt import EVERYTHING, Dirt, Part
from mint_operator.observing.observe import Observer
from mint_operator.planning.base_plan import Known
from mint_operator.planning.defects import Defect
from mint_operator.planning.plan import plan

log = structlog.get_logger()


class Loop:
    """The loop. `once` runs one pass, so that tests can drive it; `run` runs passes while it may write."""

    def __init__(self, observer: Observer, applier: Applier, dirt: Dirt) -> None:
        self._observer = observer
        self._applier = applier
        self._dirt = dirt
        self._planner = ThreadPoolExecutor(1, thread_name_prefix="plan")  # its own, so that no other work delays it
        self._failures = 0
        self._cut_off = False  # the last pass ended before what it observed was planned and written
        self._known: Mapping[str, Known] = {}
        self._defects: Mapping[str, Defect] = {}
        self._due: float | None = None  # when the passage of time alone makes the last plan outdated
        self._last_pass = time.monotonic()  # when a pass last ended, successfully or not

    @property
    def moved_at(self) -> float:
        """When the loop last made progress, by the monotonic clock: a pass or a write within one ended."""
        return max(self._last_pass, self._applier.moved_at)

    async def run(self) -> None:
        """Run passes forever. Raises LeadershipLost, or StaleEpoch when another operator writes the map.

        Survives everything else.
        """
        garbage = Garbage()
        while True:
            metrics.DIRTY.set(len(self._dirt))
            parts = await self._dirt.take()
            try:
                await self.once(parts)
            except (LeadershipLost, StaleEpoch):
                raise
            except KubeError as error:
                await self._pause(str(error), parts)
            except Exception:  # a defect in one pass must not end the control plane; logged with its traceback
                log.exception("pass failed")
                await self._pause("a defect", EVERYTHING)
            else:
                self._failures = 0
            garbage.collect()
            self._last_pass = time.monotonic()
            metrics.LAST_PASS.set_to_current_time()

    async def once(self, parts: frozenset[Part] = EVERYTHING) -> Counter[str]:
        """Run one pass over the dirty parts; returns the number of writes by kind."""
        owed, self._cut_off = self._cut_off, True
        started = time.perf_counter()
        snapshot = await self._observer.observe(parts, self._applier.failures)
        observed = time.perf_counter()
        due = self._due is not None and snapshot.now >= self._due  # late by MAP_READ_EVERY_S at most, see Dirt
        if self._observer.quiet and not self._applier.owes and not owed and not due:
            self._cut_off = False
            return Counter()
        work = partial(plan, snapshot, self._known, self._defects)
        wanted = await asyncio.get_running_loop().run_in_executor(self._planner, work)
        self._tell(wanted.defects)
        self._known, self._defects, self._due = wanted.known, wanted.defects, wanted.due
        planned = time.perf_counter()
        counts = await self._applier.apply(wanted, snapshot)
        self._cut_off = False
        ended = time.perf_counter()
        seconds = {"observe": observed - started, "plan": planned - observed, "apply": ended - planned}
        for part, value in seconds.items():
            metrics.PASS_SECONDS.labels(part).observe(value)
        metrics.PASSES.labels("failed" if counts["failed"] or wanted.defects else "done").inc()
        metrics.observe(snapshot, wanted)
        # A pass that found everything right is told only by the metrics: there are several a minute.
        say = log.info if counts.total() or wanted.defects or parts >= EVERYTHING else log.debug
        say(
            "pass",
            parts=sorted(parts),
            bases=len(snapshot.bases),
            waves=len(snapshot.waves),
            redis_ok=snapshot.redis_ok,
            **dict(sorted(counts.items())),
            **{f"{part}_s": round(value, 4) for part, value in seconds.items()},
        )
        return counts

    def _tell(self, defects: Mapping[str, Defect]) -> None:
        """Log each new defect with its traceback: one per plan of its base that failed."""
        for base, defect in defects.items():
            if self._defects.get(base) is not defect:
                log.error("planning failed for a base", base=base, exc_info=defect.error)

    async def _pause(self, error: str, parts: frozenset[Part]) -> None:
        self._failures += 1
        metrics.PASSES.labels("failed").inc()
        pause = delay_s(self._failures, first_s=0.2, cap_s=10.0)
        log.warning("pass cut off", error=error, parts=sorted(parts), retry_in_s=round(pause, 2))
        for part in parts:
            self._dirt.mark(part)
        await asyncio.sleep(pause)
