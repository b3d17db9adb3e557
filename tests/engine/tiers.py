"""One engine's residency with real slots and real files, which records what it does and can be made to wait."""

import os
import threading
from pathlib import Path
from typing import Any

import msgspec
import torch

from mint_contracts.errors import Internal
from mint_contracts.records import Assignment, Tier
from mint_contracts.source import Source
from mint_engine.adapters.packed import Packed
from mint_engine.residency.arrival import Arrival
from mint_engine.residency.disk import DiskTier
from mint_engine.residency.host import HostTier
from mint_engine.residency.limits import ResidencyLimits
from mint_engine.residency.loading import Loader
from mint_engine.residency.residency import Residency
from mint_engine.residency.slots import Slots
from tests.engine.made import tiny_fit
from tests.waiting import until

NAMES = [f"team/a{index}" for index in range(8)]
Q0 = "model.layers.0.self_attn.q_proj"


class Watched(Slots):
    """Real slots that also remember who is in which, and can be made to wait."""

    def __init__(self, count: int) -> None:
        super().__init__(tiny_fit().modules, count, 16, torch.float32, torch.device("cpu"))
        self.tenants: dict[int, str] = {}  # revisions
        self.loads: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def load(self, slot: int, packed: Packed, *, keep: bool = True, arrival: Arrival | None = None) -> None:
        assert self.gate.wait(60)
        super().load(slot, packed, keep=keep, arrival=arrival)
        self.tenants[slot] = packed.revision
        self.loads.append(packed.revision)

    def clear(self, slot: int) -> None:
        self.tenants.pop(slot, None)
        super().clear(slot)

    def empty(self, slot: int) -> bool:
        """Whether nothing of any tenant is left in a slot."""
        return not (self.memory[slot].any() or self.scalings[:, slot].any() or self.ranks[:, slot].any())


def source(name: str) -> Source:
    return Source(f"https://store/{name}")


def own_nice() -> int:
    """This thread's niceness."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


class CountingLoader(Loader):
    """A real loader that records its fetches, and can be made to wait."""

    def __init__(self, disk: DiskTier) -> None:
        super().__init__(disk, tiny_fit(), torch.float32)
        self.fetches: list[str] = []
        self.nice: dict[str, int] = {}  # by source, of the thread that loaded it last
        self.gate = threading.Event()
        self.gate.set()

    def held(self, source: Source, state: str | None) -> Packed | None:
        found = super().held(source, state)
        if found is not None:  # otherwise `load` comes next
            self.fetches.append(source.uri)
            assert self.gate.wait(60)
        return found

    def load(self, source: Source) -> Packed:
        self.fetches.append(source.uri)
        self.nice[source.uri] = own_nice()
        assert self.gate.wait(60)
        return super().load(source)


class Scene:
    """One engine's residency, with its parts accessible."""

    def __init__(
        self, folder: Path, slots: int, host: int, store: Source | None, disk: int = 1 << 20, **limits: Any
    ) -> None:
        self.slots, self.host = Watched(slots), HostTier(host)
        self.loader = CountingLoader(DiskTier(folder / "disk", disk))
        self.residency = Residency(self.slots, self.loader, self.host, store=store, limits=ResidencyLimits(**limits))
        self.changes, self.defects = 0, list[Internal]()
        self.residency.on_change = self._changed

    def _changed(self) -> None:
        self.changes += 1
        try:
            self.residency.check()
        except Internal as defect:  # the loop that has changed something would log it and go on
            self.defects.append(defect)
            raise

    async def place(self, wants: list[Assignment]) -> None:
        """Want these, and wait until the last one is in its tier."""
        self.residency.want(wants)
        await until(lambda: self.tier(wants[-1].adapter) is wants[-1].residency)

    def tier(self, adapter: str) -> Tier:
        held = self.residency.report().get(adapter)
        return held.tier if held else Tier.REMOTE

    def failure(self, adapter: str) -> str:
        held = self.residency.report().get(adapter)
        return held.failure.reason if held and held.failure else ""


def wanted(store: Path, *names: str, tier: Tier = Tier.DEVICE, version: str = "") -> list[Assignment]:
    return [Assignment(name, Source(f"file://{store}/{name}", version), tier) for name in names]


async def once(here: Scene, name: str, client: str = "") -> str:
    async with here.residency.hold(name, client=client) as held:
        return held.revision


def loader(tmp_path: Path, budget: int = 1 << 20) -> Loader:
    """A loader over a disk tier of its own."""
    return Loader(DiskTier(tmp_path / "disk", budget), tiny_fit(), torch.float32)


def ahead(store: Path, *names: str) -> list[Assignment]:
    """The assignments of a wave that waits to be admitted."""
    return [msgspec.structs.replace(each, ahead=True) for each in wanted(store, *names, tier=Tier.DISK)]
