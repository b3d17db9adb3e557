"""Wires the operator's parts together and runs them until a signal, or until it may no longer write."""

import asyncio
import signal
from collections.abc import Collection, Coroutine
from typing import Any

import msgspec
import structlog

from mint_contracts import functions
from mint_contracts.awaiting import end_tasks
from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.errors import StaleEpoch
from mint_contracts.map_reader import MapReader
from mint_contracts.map_writer import MapWriter
from mint_contracts.scraping import expose
from mint_contracts.train_reader import TrainReader
from mint_contracts.train_writer import TrainWriter
from mint_operator import crds, kube, leftovers, metrics, namespaces, settings
from mint_operator.apply import Applier, Maps
from mint_operator.epoch import Leadership, LeadershipLost
from mint_operator.handlers import children
from mint_operator.loop import Loop
from mint_operator.observing import hints
from mint_operator.observing.cluster_view import ClusterView
from mint_operator.observing.dirt import Dirt
from mint_operator.observing.feed import Feed
from mint_operator.observing.map_view import MapView
from mint_operator.observing.observe import Observer
from mint_operator.observing.train_inputs import InputsView
from mint_operator.observing.train_view import TrainView
from mint_operator.observing.watch import Watch
from mint_operator.observing.wave_adapters import WaveAdapters
from mint_operator.observing.wave_lists import Lists
from mint_operator.observing.written import Written

log = structlog.get_logger()


async def run(config: settings.OperatorSettings) -> int:
    """Run the operator; returns its exit code. Raises InvalidRequest if it may read no configured namespace."""
    expose(config.metrics_port)
    stop, broken, api = asyncio.Event(), asyncio.Event(), kube.connect()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    try:
        await first(_work(config, api, broken), stop.wait(), broken.wait())
    except (LeadershipLost, StaleEpoch) as error:
        log.error("no longer the leader; exiting so that nothing stale is written", error=str(error))
        return 1
    finally:
        api.close()
    return 1 if broken.is_set() else 0


async def first(*work: Coroutine[Any, Any, Any]) -> None:
    """Run all until one ends, cancel the others, and raise what the first raised."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end_tasks(tasks)
    for task in done:
        task.result()


async def _work(config: settings.OperatorSettings, api: kube.Kube, broken: asyncio.Event) -> None:
    """Watch and lead in the readable namespaces until that set changes; sets `broken` if kopf ends.

    Raises LeadershipLost, StaleEpoch or InvalidRequest.
    """
    dirt, feed, loops = Dirt(), Feed(), list[Loop]()
    running, named = asyncio.get_running_loop(), config.namespaces
    config = msgspec.structs.replace(config, namespaces=await namespaces.readable(api, named))
    left_out = set(named) - set(config.namespaces)
    everywhere = kube.namespaced(config.namespaces)
    kinds = await children.watchable(api, everywhere)

    def kopf_ended() -> None:
        running.call_soon_threadsafe(broken.set)

    def progress() -> float | None:
        return loops[0].moved_at if loops else None

    def begin() -> Watch:
        begun = Watch(dirt, feed, config.namespaces, config.liveness_at, progress, kopf_ended, kinds)
        begun.start()
        return begun

    watch = begin()
    try:
        if await crds.awaited(api):  # the watch only answered the liveness probe: it found no kinds of ours
            await asyncio.to_thread(watch.stop)
            kinds = await children.watchable(api, everywhere)  # perhaps nobody answered before
            watch = begin()
        work = [_lead(config, left_out, api, dirt, feed, loops)]
        if named:
            work.append(namespaces.changed(api, named, config.namespaces))
        await first(*work)
    finally:
        watch.stop()


async def _lead(
    config: settings.OperatorSettings,
    left_out: Collection[str],
    api: kube.Kube,
    dirt: Dirt,
    feed: Feed,
    loops: list[Loop],
) -> None:
    """Stand by, lead, and hand over when cancelled. Raises LeadershipLost or StaleEpoch."""
    lease_api = kube.connect()  # a separate connection, so that no queue of other calls delays a renewal
    leadership = Leadership(lease_api, config.namespace, config.lease, config.identity)
    epoch = await leadership.acquire()
    api.fence = leadership.check
    metrics.LEADS.set(1)
    redis = functions.connect(config.release.redis_url)
    writer = MapWriter(redis, epoch)
    view = MapView(MapReader(redis), writer, config.namespaces)
    secrets, policies = bool(config.release.redis_secret), bool(config.release.gateway_labels)
    written = Written()
    cluster = ClusterView(api, config.namespaces, feed, written, secrets=secrets, policies=policies)
    training, inputs = TrainView(TrainReader(redis)), InputsView(api, dirt.wake)
    maps = Maps(writer, view, TrainWriter(redis, epoch), training)
    applier = Applier(api, maps, dirt, feed, written)
    adapters = WaveAdapters(Lists(CatalogReader(redis), dirt.wake))
    loop = Loop(Observer(cluster, view, training, inputs, adapters, config.release), applier, dirt)
    loops.append(loop)
    work = [leadership.renew_forever(), hints.follow(redis, dirt), loop.run()]
    if left_out:
        work.append(leftovers.forget(MapReader(redis), writer, left_out))
    try:
        await first(*work)
    except asyncio.CancelledError:
        await leadership.release()
        raise
    finally:
        metrics.LEADS.set(0)
        await redis.aclose()
        lease_api.close()
