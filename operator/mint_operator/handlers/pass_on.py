"""What every handler does with an event: pass the object on, and wake the loop."""

import kopf
import msgspec

from mint_operator.observing.dirt import Dirt
from mint_operator.observing.feed import Feed, News


def pass_on(feed: Feed, dirt: Dirt, kind: str, body: kopf.Body, event: kopf.RawEvent) -> None:
    """Pass on an object as the watch saw it."""
    news = News(kind, msgspec.json.encode(dict(body)), gone=event["type"] == "DELETED")
    feed.put(body.metadata.uid or "", news)
    dirt.wake()
