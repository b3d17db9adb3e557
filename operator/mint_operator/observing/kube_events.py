"""Troubles of engines that only Events report: their pods cannot be created, or their volumes cannot be mounted.

Only an object's newest Event counts, and only if it is a warning: any later Event means that the trouble is over.
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence

import msgspec
import structlog

from mint_contracts.records import Failure
from mint_operator.kube import Kube, KubeError
from mint_operator.observing.decode import failure

MOST_ASKED = 16  # objects per look
FORBIDDEN = 403

log = structlog.get_logger()


class About(msgspec.Struct, frozen=True, order=True):
    """An object that may have Events. Without a `uid`, also those of earlier objects of its name count."""

    kind: str
    namespace: str
    name: str
    uid: str = ""

    @property
    def fields(self) -> str:
        """The field selector for its Events."""
        named = f"involvedObject.kind={self.kind},involvedObject.name={self.name}"
        return f"{named},involvedObject.uid={self.uid}" if self.uid else named


class _Series(msgspec.Struct, frozen=True, rename="camel"):
    last_observed_time: str | None = None


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    creation_timestamp: str | None = None


class _Event(msgspec.Struct, frozen=True, rename="camel"):
    metadata: _Metadata = _Metadata()
    type: str | None = None
    reason: str | None = None
    message: str | None = None
    last_timestamp: str | None = None
    event_time: str | None = None
    series: _Series | None = None

    @property
    def at(self) -> str:
        """When the Event was last observed."""
        last = self.series.last_observed_time if self.series else None
        return max(
            each or "" for each in (self.metadata.creation_timestamp, self.last_timestamp, self.event_time, last)
        )


async def warnings(kube: Kube, asked: Collection[About]) -> dict[About, Failure]:
    """Return the troubles of at most MOST_ASKED of these objects. Best effort: unreadable Events are left out."""
    some = sorted(asked)[:MOST_ASKED]
    answers = await asyncio.gather(*[_events(kube, each) for each in some])
    found = {about: newest(events) for about, events in zip(some, answers, strict=True)}
    return {about: each for about, each in found.items() if each is not None}


async def _events(kube: Kube, about: About) -> Sequence[msgspec.Raw]:
    try:
        return await kube.items("Event", about.namespace, "", about.fields)
    except KubeError as error:
        if error.status != FORBIDDEN:  # an older chart does not grant the right
            log.warning("events not read", error=str(error))
        return ()


def newest(events: Iterable[bytes | msgspec.Raw]) -> Failure | None:
    """Return what the newest Event warns of; None if there is no Event, or the newest is no warning."""
    found = [msgspec.json.decode(raw, type=_Event) for raw in events]
    last = max(found, key=lambda event: event.at, default=None)
    if last is None or last.type != "Warning":
        return None
    return failure(last.reason or "Warning", last.message or "")
