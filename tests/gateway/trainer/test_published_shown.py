"""What a policy has published answers requests for its name from the moment that Publish returns."""

import msgspec
import pytest

from mint_contracts.records import Held, Tier
from mint_contracts.source import Source
from mint_gateway.client import question
from mint_gateway.trainer import forwarding
from mint_gateway.view import MapView, live_engine, newest_published
from tests.engine_views import engine_record
from tests.gateway.scene import BASE
from tests.gateway.taught import School, learn

NAME = "acme/a"


async def test_a_name_answers_with_what_was_published_last_also_the_first_time(school: School) -> None:
    client = school.scene.client
    for name in ("acme/a", "acme/b", "acme/c", "acme/a"):
        policy = await client.create_policy(name, rank=4)
        for _ in range(3):
            published = await policy.publish()
            answer = await client.answer(question([5, 6], adapter=name, max_tokens=1))
            assert answer.revision == published.revision
            await learn(policy)
        if name != "acme/b":
            await policy.drop()


async def test_publish_returns_without_the_engines_report_in_the_end(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is published, whoever knows of it by then."""
    monkeypatch.setattr(forwarding, "SHOWN_S", 0.01)
    client = school.scene.client
    policy = await client.create_policy(NAME, rank=4)
    [where] = school.has(NAME)
    school.engines[where].fall_silent()
    published = await policy.publish()
    view = school.scene.gateway.mirror.views[policy.base_model]
    assert NAME not in view.published
    assert published.uri
    assert (policy.sequence, school.engines[where].calls[NAME].sequence) == (1, 1)


def at(lease: int, sequence: int) -> Source:
    return Source(f"file:///runs/revisions/acme/a/.published/{lease:016d}-{sequence:08d}")


def seen(**held: tuple[Source, Tier]) -> MapView:
    """Return the view of engines that report the name at these sources, each in a tier."""
    engines = {}
    for engine, (source, tier) in held.items():
        held_there = {NAME: Held(NAME, source, tier, published=True)}
        engines[engine] = live_engine(engine, engine_record(engine), held_there)
    return msgspec.structs.replace(MapView(BASE), engines=engines, published=newest_published(engines.values()))


@pytest.mark.parametrize(
    ("view", "shown"),
    [
        (seen(), False),
        (seen(a=(at(1, 2), Tier.HOST)), True),
        (seen(a=(at(1, 3), Tier.HOST)), True),
        (seen(a=(at(1, 1), Tier.HOST)), True),
        (seen(a=(at(1, 1), Tier.REMOTE)), False),
        (seen(a=(at(0, 9), Tier.HOST)), False),
        (seen(a=(at(1, 1), Tier.HOST), b=(at(1, 1), Tier.DISK)), False),
        (seen(a=(at(1, 1), Tier.HOST), b=(at(1, 1), Tier.REMOTE)), True),
        (seen(b=(at(1, 1), Tier.DISK)), False),
        (seen(a=(at(1, 2), Tier.HOST), b=(at(1, 1), Tier.DISK)), True),
    ],
    ids=[
        "unknown", "reported", "a newer one reported", "its engine is the only holder", "its engine has no copy",
        "of an earlier lease", "another engine has an older copy", "another engine knows the name only",
        "only another engine is known", "another engine's copy is known to be older",
    ],
)  # fmt: skip
def test_a_revision_answers_once_no_engine_can_be_asked_for_an_older_one(view: MapView, *, shown: bool) -> None:
    assert view.answers_with(NAME, "a", at(1, 2).uri) is shown
