"""Adapters through the tiers of one engine: real files, real slots; only the base is tiny."""

import asyncio
import random
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mint_contracts import errors
from mint_contracts.records import Assignment, Tier
from mint_contracts.source import Source, child
from mint_engine.adapter import AdapterWeights
from mint_engine.disk import DiskTier
from mint_engine.fetch import WEIGHTS
from mint_engine.host import HostTier
from mint_engine.loading import Loader
from mint_engine.residency import Residency
from mint_engine.slots import Slots
from tests.engine.made import edit_config, edit_tensors, lora_names, peft_adapter, tiny_fit
from tests.engine.waiting import until

NAMES = [f"team/a{index}" for index in range(8)]
Q0 = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    peft_adapter(folder / NAMES[0])
    name = lora_names(folder / NAMES[0])[0]
    for index, other in enumerate(NAMES[1:], start=1):
        shutil.copytree(folder / NAMES[0], folder / other)
        edit_tensors(folder / other, {name: load_file(folder / NAMES[0] / WEIGHTS)[name] * (index + 1)})
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A store of one's own: eight adapters."""
    return shutil.copytree(made, tmp_path / "store")


class Watched(Slots):
    """Real slots that also remember who is in which, and can be made to wait."""

    def __init__(self, count: int) -> None:
        super().__init__(tiny_fit().modules, count, 16, torch.float32, torch.device("cpu"))
        self.tenants: dict[int, str] = {}
        self.loads: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def load(self, slot: int, weights: AdapterWeights) -> None:
        assert self.gate.wait(20)
        assert slot not in self.tenants, "a slot is cleared before it is filled"
        super().load(slot, weights)
        self.tenants[slot] = weights.revision
        self.loads.append(weights.adapter)

    def clear(self, slot: int) -> None:
        self.tenants.pop(slot, None)
        super().clear(slot)

    def empty(self, slot: int) -> bool:
        """Nothing of any tenant is left in a slot."""
        stacks = self.stacks.values()
        return all(
            not stack.a[slot].any() and not stack.b[slot].any() and stack.scaling[slot] == 0 for stack in stacks
        )


class CountingLoader(Loader):
    """A real loader that counts, and can be made to wait."""

    def __init__(self, disk: DiskTier) -> None:
        super().__init__(disk, tiny_fit(), torch.float32)
        self.fetches: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def fetch(self, source: Source) -> None:
        self.fetches.append(source.uri)
        assert self.gate.wait(20)
        super().fetch(source)


class Scene:
    """One engine's residency, and its parts to look at."""

    def __init__(self, folder: Path, slots: int, host: int, store: Source | None, **limits: float) -> None:
        self.slots, self.host = Watched(slots), HostTier(host)
        self.loader = CountingLoader(DiskTier(folder / "disk", 1 << 20))
        self.residency = Residency(self.slots, self.loader, self.host, store=store, **limits)  # type: ignore[arg-type]
        self.changes = 0
        self.residency.on_change = self._changed

    def _changed(self) -> None:
        self.changes += 1
        self.residency.check()

    def tier(self, adapter: str) -> Tier:
        held = self.residency.report().get(adapter)
        return held.tier if held else Tier.REMOTE

    def failure(self, adapter: str) -> str:
        held = self.residency.report().get(adapter)
        return held.failure.reason if held and held.failure else ""


@pytest.fixture
async def scene(store: Path, tmp_path: Path) -> AsyncIterator[Callable[..., Scene]]:
    """`scene(slots=..., host=..., store=...)` makes and starts one."""
    made: list[Scene] = []
    own = Source(f"file://{store}")

    def make(slots: int = 2, host: int = 1 << 20, store: Source | None = own, **limits: float) -> Scene:
        here = Scene(tmp_path, slots, host, store, **limits)
        here.residency.start()
        made.append(here)
        return here

    yield make
    for here in made:
        here.slots.gate.set()
        here.loader.gate.set()
        await here.residency.close()
        here.residency.check()


def wanted(store: Path, *names: str, tier: Tier = Tier.DEVICE, version: str = "") -> list[Assignment]:
    return [Assignment(name, Source(f"file://{store}/{name}", version), tier) for name in names]


async def test_a_request_loads_its_adapter_and_finds_it_warm_the_next_time(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene()
    async with here.residency.hold(NAMES[0]) as held:
        a = load_file(store / NAMES[0] / WEIGHTS)[f"base_model.model.{Q0}.lora_A.weight"]
        assert torch.equal(here.slots.stacks[Q0].a[held.slot, :4], a)
        assert held.revision == here.slots.tenants[held.slot]
        assert here.residency.states()[0].requests_in_flight == 1
    async with here.residency.hold(NAMES[0]) as again:
        assert again == held
    assert here.slots.loads == [NAMES[0]]
    assert here.tier(NAMES[0]) is Tier.DEVICE


async def test_requests_for_one_cold_adapter_share_one_load(scene: Callable[..., Scene]) -> None:
    here, slots = scene(), set()
    here.loader.gate.clear()

    async def ask() -> None:
        async with here.residency.hold(NAMES[0]) as held:
            slots.add(held)

    asking = [asyncio.create_task(ask()) for _ in range(20)]
    await until(lambda: here.loader.fetches)
    here.loader.gate.set()
    await asyncio.gather(*asking)
    assert len(slots) == len(here.loader.fetches) == len(here.slots.loads) == 1


async def test_different_cold_adapters_load_at_the_same_time(scene: Callable[..., Scene]) -> None:
    here = scene(slots=4)
    here.loader.gate.clear()

    async def ask(name: str) -> None:
        async with here.residency.hold(name):
            pass

    asking = [asyncio.create_task(ask(name)) for name in NAMES[:4]]
    await until(lambda: len(here.loader.fetches) == 4)
    here.loader.gate.set()
    await asyncio.gather(*asking)


async def test_a_client_that_goes_away_lets_go_and_the_load_ends_well(scene: Callable[..., Scene]) -> None:
    here = scene()
    here.loader.gate.clear()
    holding = here.residency.hold(NAMES[0])
    asking = asyncio.create_task(holding.__aenter__())
    await until(lambda: here.loader.fetches)
    asking.cancel()
    await asyncio.wait({asking})
    here.loader.gate.set()
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    assert here.residency.states()[0].requests_in_flight == 0


async def test_the_least_recently_used_slot_goes_to_the_next_adapter_and_is_zeroed_first(
    scene: Callable[..., Scene],
) -> None:
    here = scene(slots=2)
    for name in (NAMES[0], NAMES[1], NAMES[0], NAMES[2]):
        async with here.residency.hold(name):
            pass
    assert here.tier(NAMES[1]) is Tier.HOST, "demoted, not forgotten"
    assert {here.tier(NAMES[0]), here.tier(NAMES[2])} == {Tier.DEVICE}
    fetched = len(here.loader.fetches)
    async with here.residency.hold(NAMES[1]):
        assert len(here.loader.fetches) == fetched, "from host memory"


async def test_a_slot_in_use_is_waited_for_and_refused_when_that_takes_too_long(scene: Callable[..., Scene]) -> None:
    here = scene(slots=1, slot_wait_s=0.05)
    async with here.residency.hold(NAMES[0]):
        with pytest.raises(errors.Overloaded, match="all 1 slots") as caught:
            async with here.residency.hold(NAMES[1]):
                pass
        assert caught.value.retry_after_s
    patient = scene(slots=1, slot_wait_s=20)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(patient.residency.hold(NAMES[0]))
        waiting = asyncio.create_task(stack.enter_async_context(patient.residency.hold(NAMES[1])))
        await until(lambda: len(patient.loader.fetches) == 2)
        assert not waiting.done()
        await stack.aclose()
        await waiting
        assert patient.tier(NAMES[1]) is Tier.DEVICE
        await stack.aclose()


async def test_too_many_loads_at_once_are_refused_with_a_time_to_come_back(scene: Callable[..., Scene]) -> None:
    here = scene(slots=4, loads_waiting=2)
    here.loader.gate.clear()
    async with asyncio.TaskGroup() as group:
        for name in NAMES[:2]:
            group.create_task(_once(here, name))
        await until(lambda: len(here.loader.fetches) == 2)
        with pytest.raises(errors.Overloaded) as caught:
            await _once(here, NAMES[2])
        assert caught.value.retry_after_s
        here.loader.gate.set()
    await _once(here, NAMES[2])


async def _once(here: Scene, name: str) -> str:
    async with here.residency.hold(name) as held:
        return held.revision


async def test_unknown_adapters_are_not_found_with_and_without_a_store(scene: Callable[..., Scene]) -> None:
    with pytest.raises(errors.AdapterNotFound, match="not in the adapter store"):
        await _once(scene(), "team/none")
    with pytest.raises(errors.AdapterNotFound, match="has no adapter store"):
        await _once(scene(store=None), NAMES[0])
    with pytest.raises(errors.InvalidRequest):
        await _once(scene(), "../etc/passwd")


async def test_a_name_that_was_not_found_is_remembered_for_a_while(scene: Callable[..., Scene]) -> None:
    here = scene()
    for _ in range(5):
        with pytest.raises(errors.AdapterNotFound):
            await _once(here, "team/none")
    assert len(here.loader.fetches) == 1
    assert here.residency.report() == {}, "names that anybody may make up do not get into the map"


async def test_waves_get_what_they_want_in_the_tier_they_want(scene: Callable[..., Scene], store: Path) -> None:
    here = scene(store=None)
    here.residency.want(
        wanted(store, NAMES[0]) + wanted(store, NAMES[1], tier=Tier.HOST) + wanted(store, NAMES[2], tier=Tier.DISK)
    )
    await until(lambda: [here.tier(name) for name in NAMES[:3]] == [Tier.DEVICE, Tier.HOST, Tier.DISK])
    told = here.residency.report()
    assert all(told[name].revision.startswith("sha256:") and told[name].rank == 4 for name in NAMES[:3])
    assert len({told[name].revision for name in NAMES[:3]}) == 3
    assert await _once(here, NAMES[2]) == told[NAMES[2]].revision, "and a request finds any of them"


async def test_an_unassigned_adapter_leaves_its_slot_when_idle_and_is_zeroed(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(store=None)
    here.residency.want(wanted(store, NAMES[0]))
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    async with here.residency.hold(NAMES[0]) as held:
        here.residency.want([])
        with pytest.raises(errors.AdapterNotFound):
            await _once(here, NAMES[0])
        assert here.slots.tenants == {held.slot: held.revision}, "a running request keeps its slot"
    await until(lambda: not here.slots.tenants and here.residency.slots.free and not here.host.ledger.used)
    assert here.slots.empty(held.slot)
    await until(lambda: not here.residency.books.copies)


async def test_waves_adapters_are_not_evicted_by_requests(scene: Callable[..., Scene], store: Path) -> None:
    here = scene(slots=2, slot_wait_s=0.05)
    here.residency.want(wanted(store, NAMES[0]))
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    for name in NAMES[1:6]:
        await _once(here, name)
        assert here.tier(NAMES[0]) is Tier.DEVICE
    here.residency.want(wanted(store, NAMES[0], NAMES[1]))
    await until(lambda: here.tier(NAMES[1]) is Tier.DEVICE)
    with pytest.raises(errors.Overloaded, match="wanted by waves"):
        await _once(here, NAMES[2])


async def test_a_new_source_takes_over_and_the_old_one_serves_until_then(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(store=None)
    here.residency.want(wanted(store, NAMES[0], version="1"))
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    async with here.residency.hold(NAMES[0]) as old:
        name = lora_names(store / NAMES[0])[0]
        edit_tensors(store / NAMES[0], {name: load_file(store / NAMES[0] / WEIGHTS)[name] + 1})
        here.loader.gate.clear()
        here.residency.want(wanted(store, NAMES[0], version="2"))
        await until(lambda: len(here.loader.fetches) == 2)
        assert await _once(here, NAMES[0]) == old.revision, "while the new one loads"
        assert here.residency.report()[NAMES[0]].source.revision == "1"
        here.loader.gate.set()
        await until(lambda: here.residency.report()[NAMES[0]].source.revision == "2")
        async with here.residency.hold(NAMES[0]) as new:
            assert new.revision != old.revision
            assert here.slots.tenants == {old.slot: old.revision, new.slot: new.revision}
    await until(lambda: here.slots.tenants == {new.slot: new.revision})
    assert here.slots.empty(old.slot)


async def test_a_new_source_takes_over_even_when_every_slot_is_taken(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(slots=1, store=None)
    here.residency.want(wanted(store, NAMES[0], version="1"))
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    async with here.residency.hold(NAMES[0]) as old:
        name = lora_names(store / NAMES[0])[0]
        edit_tensors(store / NAMES[0], {name: load_file(store / NAMES[0] / WEIGHTS)[name] + 1})
        here.residency.want(wanted(store, NAMES[0], version="2"))
        await until(lambda: len(here.loader.fetches) == 2)
        waiting = asyncio.create_task(_once(here, NAMES[0]))
        assert here.slots.tenants == {old.slot: old.revision}
    assert await waiting in {old.revision, here.residency.report()[NAMES[0]].revision}
    await until(lambda: here.residency.report()[NAMES[0]].source.revision == "2")
    assert await _once(here, NAMES[0]) != old.revision


async def test_a_failed_replacement_is_told_and_keeps_the_old_revision_serving(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(slots=1, store=None)
    here.residency.want(wanted(store, NAMES[0], version="1"))
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    old = await _once(here, NAMES[0])
    tensors = load_file(store / NAMES[0] / WEIGHTS)
    name = min(tensors)
    edit_tensors(store / NAMES[0], {name: tensors[name] * float("nan")})
    here.residency.want(wanted(store, NAMES[0], version="2"))
    await until(lambda: here.failure(NAMES[0]) == "NonFiniteWeights")
    told = here.residency.report()[NAMES[0]]
    assert (told.tier, told.revision, told.source.revision) == (Tier.DEVICE, old, "2")
    assert told.failure is not None
    assert told.failure.terminal
    assert await _once(here, NAMES[0]) == old
    fetched = len(here.loader.fetches)
    here.residency.want(wanted(store, NAMES[0], version="2"))
    await _once(here, NAMES[0])
    assert len(here.loader.fetches) == fetched, "a terminal failure is not tried again"
    edit_tensors(store / NAMES[0], {name: tensors[name] * 3})
    here.residency.want(wanted(store, NAMES[0], version="3"))
    await until(lambda: here.failure(NAMES[0]) == "" and here.residency.report()[NAMES[0]].source.revision == "3")
    assert await _once(here, NAMES[0]) != old


async def test_a_retryable_failure_is_tried_again_by_itself(
    scene: Callable[..., Scene], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mint_engine.copies.FIRST_RETRY_S", 0.02)
    here, away = scene(store=None), [3]
    fetch = here.loader.fetch

    def flaky(source: Source) -> None:
        if away[0]:
            away[0] -= 1
            raise errors.SourceUnavailable("store", "does not answer")
        fetch(source)

    monkeypatch.setattr(here.loader, "fetch", flaky)
    here.residency.want(wanted(store, NAMES[0]))
    await until(lambda: here.failure(NAMES[0]) == "SourceUnavailable")
    with pytest.raises(errors.SourceUnavailable) as caught:
        await _once(here, NAMES[0])
    assert not caught.value.terminal
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    assert here.failure(NAMES[0]) == ""


async def test_each_failure_stays_with_its_adapter(scene: Callable[..., Scene], store: Path) -> None:
    here = scene(store=None, slots=4)
    edit_config(store / NAMES[0], r=99)
    (store / NAMES[1] / WEIGHTS).write_bytes(b"")
    here.residency.want(wanted(store, *NAMES[:4]))
    await until(lambda: (here.failure(NAMES[0]), here.failure(NAMES[1])) == ("RankTooLarge", "CorruptFile"))
    await until(lambda: here.tier(NAMES[2]) is here.tier(NAMES[3]) is Tier.DEVICE)
    with pytest.raises(errors.RankTooLarge):
        await _once(here, NAMES[0])
    status = next(each for each in here.residency.states() if each.adapter == NAMES[0])
    assert (status.failure_reason, status.residency) == ("RankTooLarge", Tier.REMOTE)


async def test_a_defect_in_one_load_is_told_and_survived(
    scene: Callable[..., Scene], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, load = scene(store=None), Watched.load

    def broken(self: Watched, slot: int, weights: AdapterWeights) -> None:
        load(self, slot, weights)
        if weights.adapter == NAMES[0]:
            raise RuntimeError("device says no")

    monkeypatch.setattr(Watched, "load", broken)
    here.residency.want(wanted(store, NAMES[0], NAMES[1]))
    await until(lambda: here.failure(NAMES[0]) == "Internal" and here.tier(NAMES[1]) is Tier.DEVICE)
    assert len(here.residency.slots.free) == 1
    assert here.slots.empty(here.residency.slots.free[0]), "the slot of a load that failed is cleared"


async def test_host_memory_that_can_never_hold_an_adapter_is_terminal(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(store=None, host=100)
    here.residency.want(wanted(store, NAMES[0], tier=Tier.HOST) + wanted(store, NAMES[1]))
    await until(lambda: here.failure(NAMES[0]) == "CapacityExceeded")
    await until(lambda: here.tier(NAMES[1]) is Tier.DEVICE)
    assert here.host.ledger.used == 0, "the way to the device needs no place in host memory"


async def test_host_memory_full_of_wanted_adapters_is_waited_for(
    scene: Callable[..., Scene], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mint_engine.climb.FULL_RETRY_S", 0.05)
    one = sum(tensor.nbytes for tensor in load_file(store / NAMES[0] / WEIGHTS).values())
    here = scene(store=None, host=int(one * 1.5))
    here.residency.want(wanted(store, NAMES[0], tier=Tier.HOST))
    await until(lambda: here.tier(NAMES[0]) is Tier.HOST)
    here.residency.want(wanted(store, NAMES[0], NAMES[1], tier=Tier.HOST))
    await until(lambda: here.failure(NAMES[1]) == "Overloaded")
    assert here.tier(NAMES[0]) is Tier.HOST
    here.residency.want(wanted(store, NAMES[1], tier=Tier.HOST))
    await until(lambda: here.tier(NAMES[1]) is Tier.HOST)


@pytest.mark.parametrize("seed", range(4))
async def test_books_balance_under_any_schedule(scene: Callable[..., Scene], store: Path, seed: int) -> None:
    draw = random.Random(seed)
    one = sum(tensor.nbytes for tensor in load_file(store / NAMES[0] / WEIGHTS).values())
    here = scene(slots=3, host=one * 3, slot_wait_s=0.05)
    truth = {name: await _once(here, name) for name in NAMES}
    refused = 0

    @asynccontextmanager
    async def holding(name: str) -> AsyncIterator[None]:
        async with here.residency.hold(name) as held:
            assert held.revision == truth[name] == here.slots.tenants[held.slot]
            yield
            assert here.slots.tenants[held.slot] == truth[name], "the slot was pinned throughout"

    async def client() -> None:
        nonlocal refused
        for _ in range(30):
            try:
                async with holding(draw.choice(NAMES)):
                    for _ in range(draw.randrange(5)):
                        await asyncio.sleep(0)
            except errors.Overloaded:
                refused += 1

    async def operator() -> None:
        for _ in range(25):
            names = draw.sample(NAMES, draw.randrange(3))
            here.residency.want(wanted(store, *names, tier=draw.choice([Tier.DEVICE, Tier.HOST, Tier.DISK])))
            for _ in range(draw.randrange(8)):
                await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(client())
        group.create_task(operator())
    assert refused < 90, "most are served"
    last = wanted(store, *NAMES[:3])
    here.residency.want(last)
    await until(lambda: all(here.tier(each.adapter) is Tier.DEVICE for each in last))
    here.residency.check()
    assert set(here.slots.tenants.values()) == {truth[each.adapter] for each in last}
    here.residency.want([])
    await until(lambda: len(here.residency.slots.free) == 3)
    assert all(here.slots.empty(slot) for slot in range(3))


async def test_a_store_child_is_the_same_copy_for_waves_and_requests(
    scene: Callable[..., Scene], store: Path
) -> None:
    here = scene(store=Source(f"file://{store}"))
    await _once(here, NAMES[0])
    here.residency.want([Assignment(NAMES[0], child(Source(f"file://{store}"), NAMES[0]), Tier.DEVICE)])
    await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    assert here.slots.loads == [NAMES[0]]
