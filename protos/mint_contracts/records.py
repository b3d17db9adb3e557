"""The placement map's records, JSON in Redis. `keys` documents which key holds which."""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from mint_contracts.errors import MintError
from mint_contracts.source import Source


class Tier(StrEnum):
    """Where a revision is on an engine, from warmest to coldest."""

    DEVICE = "Device"
    HOST = "Host"
    DISK = "Disk"
    REMOTE = "Remote"

    @property
    def warmth(self) -> int:
        """3 for Device down to 0 for Remote."""
        return _WARMTH[self]


_WARMTH = {Tier.DEVICE: 3, Tier.HOST: 2, Tier.DISK: 1, Tier.REMOTE: 0}


class _Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record. Fields with their default values are not encoded, to keep it compact."""


class BaseRecord(_Record, frozen=True):
    """What gateways and engines need to know about a base. Writer: operator."""

    base_model: str
    store: Source | None = None
    device_slots: int = 0
    catalog: Source | None = None  # where its manifests are
    engines_max: int = 0
    created: int = 0  # when its BaseModel was created, in seconds since 1970; 0: unknown
    trains: bool = False
    training: Source | None = None  # where what policies save and publish is; unknown from an older operator
    unserved: bool = False  # no engine has ever been ready; not known from an older operator


class Place(_Record, frozen=True, gc=False):
    """One engine that must hold an adapter, and why the plan chose it.

    `demand` is how many of the adapter's requests were in flight at that time; adapters with more are loaded first.
    """

    engine: str
    residency: Tier
    why: str
    spare: bool = False  # an extra copy beyond what waves ask for, due to demand; yields to anything waves ask for
    demand: float = 0.0


class Placement(_Record, frozen=True, gc=False):
    """Everything the plan decided about one adapter. Writer: operator."""

    adapter: str
    source: Source
    waves: tuple[str, ...]
    places: tuple[Place, ...]
    priority: int = 0  # the highest of its waves


class Assignment(_Record, frozen=True, gc=False):
    """One adapter that one engine must hold, in `residency` or warmer. Writer: operator.

    Adapters with more `demand` are loaded first, then those with a higher `priority`. Adapters brought `ahead` are
    for waves that wait to be admitted: they use free disk space, yield to anything else, and answer no requests.
    """

    adapter: str
    source: Source
    residency: Tier
    waves: tuple[str, ...] = ()
    priority: int = 0
    demand: float = 0.0
    ahead: bool = False


class Mentions(_Record, frozen=True, gc=False):
    """What the message beside it mentions; used to hide messages from clients that may not see all of it.

    `adapters` are names, or prefixes of names, of adapters and policies; `others`: the message may name further ones,
    or reveal where they are stored. `waves` are "namespace/name".
    """

    adapters: tuple[str, ...] = ()
    waves: tuple[str, ...] = ()
    others: bool = False


TRAIN = "train"  # WaveRecord.chosen_by of a wave that trains
EXPIRED = "Expired"  # a WaveRecord.reason; also the phase


class WaveRecord(_Record, frozen=True, gc=False):
    """One wave: what it asks for, and whether it was admitted. Writer: operator.

    It contains nothing that changes while the wave loads, so it is seldom written. `weight` and `quota` (in slots;
    0: none) are those of its namespace. `position` is its position in the queue, from 1; 0: it does not wait. An
    expired wave is not admitted and no longer asks for anything; its record shows what it asked for.
    """

    wave: str
    chosen_by: str  # the field of the spec that selects the adapters; "placement" if the spec cannot be read
    adapters: int
    replicas: int
    residency: Tier
    slots: int = 0  # device slots of the wave alone
    priority: int = 0
    engines: tuple[str, ...] = ()  # the only ones that may hold it; empty: all may
    weight: int = 1
    quota: int = 0
    admitted: bool = False
    position: int = 0
    reason: str = ""  # why it is not admitted
    message: str = ""
    mentions: Mentions | None = None  # None: from an older operator; the message may name anything


class Failure(_Record, frozen=True):
    """Why a load failed. A terminal failure lasts until the source changes, for which engines look again."""

    reason: str
    message: str
    terminal: bool

    @classmethod
    def of(cls, error: MintError) -> "Failure":
        """Return the failure that describes an error."""
        return cls(error.reason, str(error), terminal=error.terminal)


class Held(_Record, frozen=True, gc=False):
    """One adapter as an engine holds it, or failed to. Writer: that engine.

    `published`: Trainer calls published it, on this or another engine of the base, and no wave has assigned it. The
    name then means this revision unless a wave or the catalog says otherwise.
    """

    adapter: str
    source: Source
    tier: Tier
    revision: str = ""  # content digest; empty until the files were read
    rank: int = 0
    failure: Failure | None = None
    bytes: int = 0  # the packed size in memory or on disk
    published: bool = False


COPYING, LOADING = "Copying", "Loading"  # phases of starting a base; another version may know others


class Bringing(_Record, frozen=True):
    """An engine's progress in copying its base to the node or reading it into memory."""

    phase: str
    done: int = 0  # bytes
    total: int = 0  # bytes; 0: unknown
    per_s: float = 0.0  # bytes per second; 0: not known yet

    @property
    def percent(self) -> int | None:
        """The finished part in percent; None if the total is unknown."""
        return 100 * self.done // self.total if self.total else None

    @property
    def left_s(self) -> int | None:
        """The estimated seconds for the rest; None if unknown."""
        return round((self.total - self.done) / self.per_s) if self.total and self.per_s > 0 else None


class DeviceRoom(_Record, frozen=True):
    """How much of a GPU's memory policies in training may take, and how much each of them takes; see `PolicyRoom`."""

    budget: int  # bytes that base, slots, cache, activations and other processes leave
    own: int  # bytes per weight that a policy takes while it trains
    calls: int = 0
    shared: Mapping[str, int] = {}  # only what the first rank holds, since each has a GPU of its own


class PolicyRoom(_Record, frozen=True):
    """How much of an engine's host memory policies in training may take, and how much each of them takes.

    A policy of rank R over some modules has R times their `weights`. Names are those of modules within a layer.
    """

    budget: int  # bytes, shared with adapters that waves want in memory
    weights: Mapping[str, int]  # number of weights of a policy of rank 1, by the module's name
    own: int  # bytes per weight that a policy takes while it trains; 0: they are on a device
    copies: int  # bytes per weight of the largest policy that stay free beside that, to save it
    calls: int = 0  # bytes that policies take which Trainer calls train, not waves
    calls_copies: int = 0  # and the bytes that saving the largest of these needs beside
    # Bytes that ranks hold for a policy of rank 1 beside its `own`, by the module's name; a single rank holds none.
    shared: Mapping[str, int] = {}
    device: DeviceRoom | None = None  # the GPU's memory, if policies train there


MOST_TOLD = 16  # number of adapters whose demand an engine reports: those that fill at least a quarter of a batch


class EngineRecord(_Record, frozen=True):
    """One engine's report about itself; expires unless its heartbeat renews it. Writer: that engine."""

    engine: str
    address: str
    incarnation: int  # start time in ns: grows with every start of the engine, unless its clock is put back
    ready: bool  # it answers requests sent now
    slots_used: int
    slots_total: int
    running: int  # requests decoding
    waiting: int  # requests queued
    map_version: int  # the newest version of the map that the engine has seen
    sequence: int  # grows with every change of its holdings
    failure: Failure | None = None  # why the base could not be loaded
    demand: Mapping[str, float] = {}  # smoothed requests in flight of the MOST_TOLD adapters that have most
    training_bytes: int = 0  # host memory of the policies that train there: their state, and checkpoints of it
    bringing: Bringing | None = None  # while the base is copied or loaded
    loads_per_s: float = 0.0  # adapters loaded per second of loading; 0: not known yet
    policy_room: PolicyRoom | None = None  # None: it trains nothing, or does not know its base yet


class MapState(msgspec.Struct, frozen=True):
    """The current state of the operator's part of one base's map."""

    version: int | None  # None: never completed, or lost
    base: BaseRecord | None
    placements: Mapping[str, Placement]
    assigned: Mapping[str, Mapping[str, Assignment]]  # engine -> adapter -> Assignment
    waves: Mapping[str, WaveRecord] = {}
    listed: bool = True  # False: the set of bases lacks it, so that gateways do not find it


class EngineView(msgspec.Struct, frozen=True):
    """One engine as the map knows it; `record` is None if its heartbeat has expired."""

    engine: str
    record: EngineRecord | None
    held: dict[str, Held]


class MapChange(msgspec.Struct, frozen=True):
    """What one apply writes for one base: records to set and names to delete.

    A change that does not complete the map leaves its version as it is: a map without a version stays unknown.
    """

    base: BaseRecord | None = None
    set_placements: tuple[Placement, ...] = ()
    del_placements: tuple[str, ...] = ()
    set_assigned: Mapping[str, tuple[Assignment, ...]] = {}
    del_assigned: Mapping[str, tuple[str, ...]] = {}
    set_waves: tuple[WaveRecord, ...] = ()
    del_waves: tuple[str, ...] = ()
    completes: bool = True

    def __bool__(self) -> bool:
        """True if there is anything to write."""
        return self.places or bool(self.set_waves or self.del_waves)

    @property
    def places(self) -> bool:
        """Whether anything changes that engines and gateways follow; they do not follow wave records."""
        lists = (self.set_placements, self.del_placements, self.set_assigned, self.del_assigned)
        return self.base is not None or any(lists)
