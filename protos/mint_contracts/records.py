"""The placement map's records, JSON in Redis. `keys` says which lives where."""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from mint_contracts.errors import MintError
from mint_contracts.source import Source


class Tier(StrEnum):
    """Where a revision is on an engine, warmest first."""

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
    """A record; unset fields stay off the wire so that it is compact."""


class BaseRecord(_Record, frozen=True):
    """What the gateway and engines must know of a base. Writer: operator."""

    base_model: str
    store: Source | None = None
    context_length: int = 0
    device_slots: int = 0
    catalog: Source | None = None  # where its manifests are
    engines_max: int = 0
    created: int = 0  # when its BaseModel was made, in seconds since 1970; 0: not told
    trains: bool = False


class Place(_Record, frozen=True, gc=False):
    """One engine that must hold an adapter, and why the plan chose it.

    `demand` is how many of its requests were in flight when the plan did so: among loads it comes first by that.
    """

    engine: str
    residency: Tier
    why: str
    spare: bool = False  # beyond what waves ask for, because it is in demand; gives way to anything that they do
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

    What is in `demand` is loaded first, then what has the higher `priority`. What is brought `ahead` is for waves
    that wait to be admitted: it takes room on the disk that is free, gives way to anything, and answers no request.
    """

    adapter: str
    source: Source
    residency: Tier
    waves: tuple[str, ...] = ()
    priority: int = 0
    demand: float = 0.0
    ahead: bool = False


class Mentions(_Record, frozen=True, gc=False):
    """What the message beside it names, for those who may not learn of everything.

    `adapters` are names of adapters and of policies, and what such names begin with; `others`: it may name more of
    them, or tell where they lie. `waves` are "namespace/name".
    """

    adapters: tuple[str, ...] = ()
    waves: tuple[str, ...] = ()
    others: bool = False


TRAIN = "train"  # of WaveRecord.chosen_by: a wave that trains
EXPIRED = "Expired"  # of WaveRecord.reason; also the phase


class WaveRecord(_Record, frozen=True, gc=False):
    """One wave: what it asks for, and what was decided over its admission. Writer: operator.

    It holds nothing that changes while the wave loads, so that it is seldom written. `weight` and `quota` (in slots;
    0: none) are its namespace's. `position` is its place in the queue, from 1; 0: it does not wait. One that has
    expired is not admitted, asks for nothing any more, and tells what it asked for.
    """

    wave: str
    chosen_by: str  # the field of the spec that says which adapters; "placement" where the spec cannot be read
    adapters: int
    replicas: int
    residency: Tier
    slots: int = 0  # device slots of the wave alone
    priority: int = 0
    engines: tuple[str, ...] = ()  # the only ones that may hold it; none: any may
    weight: int = 1
    quota: int = 0
    admitted: bool = False
    position: int = 0
    reason: str = ""  # why it is not admitted
    message: str = ""
    mentions: Mentions | None = None  # None: older operators do not tell, and it may name anything


class Failure(_Record, frozen=True):
    """Why a load failed; a terminal one is not tried again until its source changes."""

    reason: str
    message: str
    terminal: bool

    @classmethod
    def of(cls, error: MintError) -> "Failure":
        """An error in words alone."""
        return cls(error.reason, str(error), terminal=error.terminal)


class Held(_Record, frozen=True, gc=False):
    """One adapter as an engine holds it, or failed to. Writer: that engine.

    What Trainer calls have `published`, to it or to another engine of its base, and no wave has told it of, is what
    the name means to those whom neither a wave nor the catalog tells otherwise.
    """

    adapter: str
    source: Source
    tier: Tier
    revision: str = ""  # content digest; empty until the files were read
    rank: int = 0
    failure: Failure | None = None
    bytes: int = 0  # packed, as it lies in memory or on disk
    published: bool = False


COPYING, LOADING = "Copying", "Loading"  # phases of bringing a base up; another version may know others


class Bringing(_Record, frozen=True):
    """How far an engine is with its base: copied to its node, or read into memory."""

    phase: str
    done: int = 0  # bytes
    total: int = 0  # bytes; 0: not known
    per_s: float = 0.0  # bytes; 0: not known yet

    @property
    def percent(self) -> int | None:
        """How much of it is done; None where nobody knows how much there is."""
        return 100 * self.done // self.total if self.total else None

    @property
    def left_s(self) -> int | None:
        """About how long the rest takes; None where that is not known."""
        return round((self.total - self.done) / self.per_s) if self.total and self.per_s > 0 else None


class PolicyRoom(_Record, frozen=True):
    """What policies in training may take of an engine's host memory, and what each would take of it.

    One of rank R over some modules has R times the `weights` of these. Names are those of modules within a layer.
    """

    budget: int  # bytes, of which adapters that waves want in memory take theirs
    weights: Mapping[str, int]  # of a policy of rank 1, by the module's name
    own: int  # bytes that a policy takes for each of its weights, as long as it trains; 0: they are on a device
    copies: int  # bytes that are free beside that for each weight of the largest, for it to be saved
    calls: int = 0  # bytes that policies take which no wave trains
    calls_copies: int = 0  # and what the largest of these needs beside
    # Bytes that ranks hold of a policy of rank 1 beside its `own`, by the module's name; nothing of one rank alone.
    shared: Mapping[str, int] = {}


MOST_TOLD = 16  # adapters of which an engine tells the demand: those that fill a quarter of a batch at least


class EngineRecord(_Record, frozen=True):
    """One engine's word on itself, kept alive by its heartbeat. Writer: that engine."""

    engine: str
    address: str
    incarnation: int  # start time in ns: later starts of an engine have larger ones, unless its clock is put back
    ready: bool  # a request sent now is answered
    slots_used: int
    slots_total: int
    running: int  # requests decoding
    waiting: int  # requests queued
    map_version: int  # the newest version of the map that the engine has seen
    sequence: int  # grows with every change of what it holds
    max_rank: int = 0
    failure: Failure | None = None  # why the base could not be loaded
    demand: Mapping[str, float] = {}  # requests in flight of the MOST_TOLD adapters that have most, smoothed
    training_bytes: int = 0  # of host memory, for the policies that train there: their state, and checkpoints of it
    bringing: Bringing | None = None  # while the base is brought up
    loads_per_s: float = 0.0  # adapters that it brings up in a second of loading; 0: not known yet
    policy_room: PolicyRoom | None = None  # None: it trains nothing, or does not know its base yet


class MapState(msgspec.Struct, frozen=True):
    """The operator's part of the map of one base, as it stands."""

    version: int | None  # None: never completed, or lost
    base: BaseRecord | None
    placements: Mapping[str, Placement]
    assigned: Mapping[str, Mapping[str, Assignment]]  # engine -> adapter -> Assignment
    waves: Mapping[str, WaveRecord] = {}


class EngineView(msgspec.Struct, frozen=True):
    """One engine as the map knows it; `record` is None when its heartbeat has run out."""

    engine: str
    record: EngineRecord | None
    held: dict[str, Held]


class MapChange(msgspec.Struct, frozen=True):
    """What one apply writes for one base: records to set and names to delete.

    One that does not complete the map leaves its version as it is: a map without one stays unknown.
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
        """Whether anything changes that engines and gateways follow, as they do not the records of waves."""
        lists = (self.set_placements, self.del_placements, self.set_assigned, self.del_assigned)
        return self.base is not None or any(lists)
