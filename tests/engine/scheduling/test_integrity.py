"""The engine detects faults in its own books."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from mint_contracts.errors import Internal
from mint_contracts.source import Source
from mint_engine.requests.parameters import Sampling
from mint_engine.residency.holding import Tenant
from mint_engine.scheduling.generation import Outcome
from mint_engine.scheduling.integrity import find_imbalance
from mint_engine.scheduling.request import Party, Request, State
from mint_engine.scheduling.scheduler import Scheduler
from tests.engine.balance import Imbalances
from tests.engine.in_process import Engine, engine_of
from tests.engine.running import save_adapter, save_base
from tests.engine.scheduled import advance, completion, scheduler
from tests.engine.training.training_engine import Gate
from tests.waiting import until


def busy() -> Scheduler:
    """Two running requests that share two pages, one parked and one waiting, and idle pages of one that ended."""
    books = scheduler()
    books.add(completion(range(300, 320)))
    advance(books)
    advance(books)
    leader = completion(40, 9, "a")
    for each in (leader, completion(40, 9, "a", leader=leader)):
        books.add(each)
    while len(books.running) < 2:
        advance(books)
    late = completion(range(50, 90), 9, "b")
    for each in (late, completion(range(50, 90), 9, "b", leader=late), *(completion(40, 9, "c") for _ in range(2))):
        books.add(each)
    books._admit()
    assert (len(books.running), len(books.waiting), len(books.parked), len(books.prefix.idle)) == (3, 2, 1, 1)
    assert find_imbalance(books) == ""
    return books


def lose_a_page(books: Scheduler) -> None:
    books.running[0].tables[0].pop()


def own_a_page_twice(books: Scheduler) -> None:
    books.running[2].tables[0].append(books.running[0].pages[-1])


def leak_a_page(books: Scheduler) -> None:
    books.pages.take(1)


def refer_to_an_idle_page(books: Scheduler) -> None:
    [page] = books.prefix.idle
    books.pages.share(page)


def swap_shared_pages(books: Scheduler) -> None:
    for each in books.running[:2]:
        each.tables[0][:2] = each.tables[0][1::-1]


def write_to_a_shared_page(books: Scheduler) -> None:
    books.running[0].computed = 20


def keep_pages_while_waiting(books: Scheduler) -> None:
    next(iter(books.waiting)).tables = ([1],)


def mistake_a_state(books: Scheduler) -> None:
    books.parked[0].state = State.RUNNING


def forget_a_key(books: Scheduler) -> None:
    books.prefix._page_of.popitem()


def change_a_slots_tenant(books: Scheduler) -> None:
    other = completion(5, 1, "z")
    other.request = type(other.request)((1,), other.request.sampling, "z", "sha256:z", books.running[0].request.slot)
    books.add(other)


def forget_an_active_party(books: Scheduler) -> None:
    books.fairness.leave(Party("c", False))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lose_a_page, "references"),
        (own_a_page_twice, "references"),
        (leak_a_page, "references"),
        (refer_to_an_idle_page, "references"),
        (swap_shared_pages, "other tokens"),
        (write_to_a_shared_page, "still written to"),
        (keep_pages_while_waiting, "owns pages"),
        (mistake_a_state, "another state"),
        (forget_a_key, "no pairs"),
        (change_a_slots_tenant, "slot"),
        (forget_an_active_party, "active"),
    ],
)
def test_damage_is_found(damage: Callable[[Scheduler], None], says: str) -> None:
    books = busy()
    damage(books)
    assert says in find_imbalance(books)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    base, store = save_base(tmp_path / "base"), tmp_path / "store"
    for name in ("a", "b"):
        save_adapter(base, store / name, rank=4)
    async with engine_of(
        base, tmp_path, slots=1, max_rank=4, store=Source(f"file://{store}"), host=1 << 20, disk=1 << 20
    ) as engine:
        yield engine


async def test_an_engine_looks_for_damage_when_it_has_nothing_to_do(engine: Engine, imbalances: Imbalances) -> None:
    scheduler = engine.stepper._scheduler
    leaked = scheduler.pages.take(1)
    assert leaked
    engine.stepper.submit(Request((1, 2, 3), Sampling(max_tokens=1, seed=0)), lambda event: None)
    imbalances.planted = True
    await until(lambda: imbalances.found)
    scheduler.pages.drop(leaked[0])
    scheduler.pages.free_idle(leaked)


async def test_an_engine_knows_what_its_requests_take_their_slots_to_hold(engine: Engine) -> None:
    generation = engine.stepper._generation
    step = generation.step
    with Gate(after=3) as gate:

        def held() -> list[Outcome]:
            gate.go_by()
            return step()

        generation.step = held  # type: ignore[method-assign]
        running = asyncio.create_task(engine.ask("a", (1, 2, 3), 90))
        await gate.reached()
        [tenant] = engine.stepper.tenants()
        engine.residency.check()
        copy = engine.residency.books.in_slots[tenant.slot]
        assert tenant == Tenant(0, "a", copy.revision)
        copy.revision = "sha256:other"
        with pytest.raises(Internal, match="and holds sha256:other"):
            engine.residency.check()
        copy.revision = tenant.revision
    assert (await running).revision == tenant.revision
    assert not engine.stepper.tenants()
