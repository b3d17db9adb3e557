"""What Kubernetes says of engines in Events alone: that their pods may not be made, or their volumes not be mounted.

An object's newest Event counts, if it is a warning: what comes after tells that the trouble is over.
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence

import msgspec
import structlog

from mint_contracts.records import Failure
from mint_operator.kube import Kube, KubeError
from mint_operator.observing.decode import failure

MOST_ASKED = 16  # objects a look
FORBIDDEN = 403

log = structlog.get_logger()


class About(msgspec.Struct, frozen=True, order=True):
    """An object that may have Events."""

    kind: str
    namespace: str
    name: str

    @property
    def fields(self) -> str:
        """The field selector of its Events."""
        return f"involvedObject.kind={self.kind},involvedObject.name={self.name}"


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
        """When it was last so."""
        last = self.series.last_observed_time if self.series else None
        return max(
            each or "" for each in (self.metadata.creation_timestamp, self.last_timestamp, self.event_time, last)
        )


async def warnings(kube: Kube, asked: Collection[About]) -> dict[About, Failure]:
    """What is wrong with some of these objects. A courtesy: where Events cannot be read, nothing is told."""
    some = sorted(asked)[:MOST_ASKED]
    answers = await asyncio.gather(*[_events(kube, each) for each in some])
    found = {about: newest(events) for about, events in zip(some, answers, strict=True)}
    return {about: each for about, each in found.items() if each is not None}


async def _events(kube: Kube, about: About) -> Sequence[msgspec.Raw]:
    try:
        return await kube.items("Event", about.namespace, "", about.fields)
    except KubeError as error:
        if error.status != FORBIDDEN:  # by the rights of an older chart
            log.warning("events not read", error=str(error))
        return ()


def newest(events: Iterable[bytes | msgspec.Raw]) -> Failure | None:
    """What the newest Event warns of; None if there is none, or it is no warning."""
    found = [msgspec.json.decode(raw, type=_Event) for raw in events]
    last = max(found, key=lambda event: event.at, default=None)
    if last is None or last.type != "Warning":
        return None
    return failure(last.reason or "Warning", last.message or "")
