"""Two tenants with the same objects, named after their owners, and a shared base; each has a scoped key."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from mint_contracts import keys
from mint_contracts.catalog_pb2 import RegisterRequest
from mint_contracts.errors import MintError, by_reason
from mint_contracts.records import BaseRecord, Held, MapChange, Mentions, Place, Placement, Tier, WaveRecord
from mint_contracts.source import Source, child
from mint_contracts.train_writer import TrainWriter
from mint_contracts.training import Dataset, Policies, Train
from mint_contracts.training_pb2 import PolicyState
from mint_contracts.training_records import Progress, Stage, TrainChange, WaveTraining
from mint_gateway.client import Client
from mint_gateway.security.door_security import DoorSecurity
from mint_gateway.security.scopes import SCOPES_FILE
from tests.contracts.catalogs import entry
from tests.gateway.catalogs import lines
from tests.gateway.scene import LIMITS, Scene, complete
from tests.gateway.scripted import ScriptedEngine
from tests.gateway.scripted_trainer import ScriptedTrainer
from tests.gateway.secrets import mount

SHARED = "models/base"
TENANTS = ("acme", "rival")
NOBODY = "nobody"  # a tenant that has nothing
STORE, TRAINING = Source("s3://store/adapters"), Source("s3://store/training")
SCOPES = {tenant: {"adapters": [f"{tenant}/"], "namespaces": [tenant, "models"]} for tenant in TENANTS}


def own(tenant: str) -> str:
    """Return the tenant's own base model."""
    return f"{tenant}/own"


def key_of(who: str) -> str:
    return f"key-of-{who}"


class Tenants:
    """A gateway with a key for each tenant, and one for `admin` that has no scope.

    Over the shared base each tenant T has T/bot (placed, for waves of both), T/twin (placed also on the other's own
    base), T/made (published by a policy of calls), T/cat and T/dog (in the catalog), the waves T/wave (waiting) and
    T/lessons (training).
    """

    def __init__(self, scene: Scene, stack: AsyncExitStack, folder: Path) -> None:
        self.scene, self._stack, self._folder = scene, stack, folder
        self.engines: dict[str, ScriptedEngine] = {}
        self.clients: dict[str, Client] = {}

    async def begin(self) -> None:
        """Write the map, start engines and the gateway, and wait until the gateway knows everything."""
        names = {who: key_of(who).encode() for who in (*TENANTS, "admin")}
        security = DoorSecurity.by(None, mount(self._folder / "keys", names), self.scope(SCOPES))
        await self._declare()
        for base in (SHARED, *map(own, TENANTS)):
            name = f"e-of-{base.partition('/')[0]}"
            self.engines[base] = await self.scene.engine(name, base, trains=base == SHARED)
        for tenant in TENANTS:
            made = Source(f"s3://training/{tenant}/made/1")
            held = Held(f"{tenant}/made", made, Tier.DISK, revision=f"sha256:of-{tenant}", published=True)
            self.engines[SHARED].held[f"{tenant}/made"] = held
            self.trainer.policies[held.adapter] = PolicyState(policy=held.adapter, life=7, base_model=SHARED)
        await self.engines[SHARED].report()
        await self.scene.open(LIMITS, security, key=key_of("admin"))
        for who in names:
            client = Client(self.scene.target, patience_s=0.0, key=key_of(who))
            self.clients[who] = await self._stack.enter_async_context(client)
        await self.scene.seen(*self.engines.values())
        for base in (SHARED, *map(own, TENANTS)):
            await complete(self.scene.redis, base)
        catalogued = lines([entry(f"{tenant}/{name}", "r1") for tenant in TENANTS for name in ("cat", "dog")])
        await self.clients["admin"].register(stream(RegisterRequest(base_model=SHARED, lines=catalogued)))

    @property
    def trainer(self) -> ScriptedTrainer:
        """The trainer of the shared base's engine."""
        trainer = self.engines[SHARED].trainer
        assert trainer is not None
        return trainer

    def scope(self, scopes: object) -> Path:
        """Replace the mounted scopes; return their folder."""
        content = scopes if isinstance(scopes, bytes) else json.dumps(scopes).encode()
        return mount(self._folder / "scopes", {SCOPES_FILE: content})

    async def http(self, who: str, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Send an HTTP request with the tenant's key; return the status and the JSON."""
        headers = {"Authorization": f"Bearer {key_of(who)}"}
        url = self.scene.url + path
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, headers=headers, json=body) as answer,
        ):
            return answer.status, await answer.json()

    async def train(self, *waves: WaveTraining) -> None:
        """Declare training waves over the shared base."""
        await TrainWriter(self.scene.redis, epoch=1).apply(SHARED, TrainChange(set_training=waves))

    async def _declare(self) -> None:
        for base, store in ((SHARED, None), *((own(tenant), STORE) for tenant in TENANTS)):
            catalog = Source(f"file://{self._folder}/catalogs/{base}")
            training = TRAINING if base == SHARED else None
            record = BaseRecord(
                base, store, catalog=catalog, device_slots=4, engines_max=2, trains=base == SHARED, training=training
            )
            await self._apply(base, MapChange(base=record))
        for number, (tenant, other) in enumerate((TENANTS, TENANTS[::-1]), start=1):
            place = (Place("e-of-models", Tier.DEVICE, "spread"),)
            both = tuple(f"{each}/wave" for each in TENANTS)
            placed = (
                Placement(f"{tenant}/bot", Source("s3://waves/bot"), both, place),
                Placement(f"{tenant}/twin", Source("s3://waves/twin"), (f"{tenant}/wave",), place),
            )
            message = f"adapter {tenant}/x is s3://a here but s3://b in wave {other}/wave, which comes first"
            wave = WaveRecord(
                *(f"{tenant}/wave", "names", 2, 1, Tier.DEVICE),
                slots=2,
                position=number,
                reason="SourceConflict",
                message=message,
                mentions=Mentions((f"{tenant}/x",), (f"{other}/wave",), others=True),
            )
            await self._apply(SHARED, MapChange(set_placements=placed, set_waves=(wave,)))
            twin = Placement(
                f"{tenant}/twin", Source("s3://waves/twin"), (), (Place(f"e-of-{other}", Tier.DEVICE, ""),)
            )
            await self._apply(own(other), MapChange(set_placements=(twin,)))
        await self.train(*(lessons(tenant) for tenant in TENANTS))
        for tenant in TENANTS:
            progress = Progress(
                f"{tenant}/lessons-0", f"{tenant}/lessons", 7, Stage.RUNNING, run="uid", step=1, steps=4
            )
            await self.scene.redis.hset(
                keys.progress(SHARED, "e-of-models"), progress.policy, msgspec.json.encode(progress).decode()
            )

    async def _apply(self, base: str, change: MapChange) -> None:
        version = await self.scene.writer.apply(base, change)
        if change.places:
            self.scene.versions[base] = version


Check = Callable[[Tenants, str, str], Awaitable[None]]  # the tenant that asks, and the other one
Ask = Callable[[str, str], Awaitable[object]]  # an adapter's name, and a base's


async def refused(asking: Awaitable[object], name: str) -> tuple[str, str]:
    """Return the error's reason and message, with the requested name replaced."""
    with pytest.raises(MintError) as refusal:
        await asking
    return refusal.value.reason, str(refusal.value).replace(name, "NAME")


async def unlearnt(ask: Ask, me: str, other: str, what: str) -> None:
    """Check that asking for another tenant's adapter gives the same error as for one that nobody has."""
    for base in ("", SHARED, own(me)):
        theirs, nobodys = f"{other}/{what}", f"{NOBODY}/{what}"
        refusal = await refused(ask(theirs, base), theirs)
        assert refusal == await refused(ask(nobodys, base), nobodys), base
        assert other not in refusal[1]
        if base == SHARED:  # the tenant's own base has a store, which might have any name
            assert refusal == await refused(ask(f"{me}/none", base), f"{me}/none")
        assert refusal[0] == "AdapterNotFound"
    for base in (own(other), own(NOBODY)):
        refusal = await refused(ask(f"{me}/bot", base), base)
        known = ", ".join(sorted([own(me), SHARED]))
        assert refusal == ("BaseModelNotFound", f"base model 'NAME': is not served here; available: {known}")


def raise_error(status: int, answer: Any) -> object:
    """Raise the error in an HTTP answer."""
    kind = by_reason(answer["error"]["code"])
    assert kind
    assert kind.http_status == status
    raise kind("", answer["error"]["message"])


def lessons(tenant: str, phase: str = "Training") -> WaveTraining:
    """Return a training wave of the tenant; one of its policies has a name that no tenant's key opens."""
    train = Train(policies=Policies(), dataset=Dataset(lines=["{}"]), steps=4)
    policies = (f"{tenant}/lessons-0", "nobody/lessons-1")
    return WaveTraining(f"{tenant}/lessons", 1, train, Source("s3://runs"), "uid", policies, phase)


def stored(name: str) -> str:
    """Return the URI of an adapter in the store of the tenants' own bases."""
    return child(STORE, name).uri


async def stream(*requests: RegisterRequest) -> AsyncIterator[RegisterRequest]:
    for request in requests:
        yield request
