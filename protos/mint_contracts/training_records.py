"""The placement map's records about training, JSON in Redis. `keys` says which lives where."""

import re
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from mint_contracts.records import Failure, Mentions
from mint_contracts.source import Source, child
from mint_contracts.training import Policy, Train

_PUBLISHED = re.compile(r"/\.published/([0-9]{16})-[0-9]{8}\Z")

LEASE_TTL_S = 30.0  # an engine that has not read its lease from the map for so long acts on it no more


class Order(StrEnum):
    """What the engine is to do with a policy."""

    RUN = "Run"
    PAUSE = "Pause"  # finish the step, save, keep nothing on the device
    CANCEL = "Cancel"  # save what is complete, publish nothing more, let go


class Stage(StrEnum):
    """Where a policy's training stands."""

    LOADING = "Loading"
    RUNNING = "Running"
    PAUSED = "Paused"
    COMPLETE = "Complete"
    CANCELLED = "Cancelled"
    FAILED = "Failed"


class _Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record; unset fields stay off the wire so that it is compact."""


class Published(_Record, frozen=True):
    """A revision that a policy has published."""

    revision: str
    step: int
    source: Source


def published_in(store: Source, policy: str) -> Source:
    """The folder of a training store in which a policy's revisions lie, each in a folder of its own.

    No segment of a name begins with a dot: another policy's name never leads there.
    """
    return child(store, revisions_of(policy))


def revisions_of(policy: str) -> str:
    """That folder, relative to the store."""
    return f"revisions/{policy}/.published"


def trained_since(source: Source) -> int:
    """When the lease was granted under which a policy published this, in seconds since 1970; 0: no policy has."""
    found = _PUBLISHED.search(source.uri)
    return int(found[1]) // 1000 if found else 0


class Progress(_Record, frozen=True):
    """How one policy's training stands. Writer: the engine that holds the lease."""

    policy: str
    wave: str
    lease: int
    stage: Stage
    run: str = ""  # as in TrainAssignment; an assignment of another run says nothing of this progress
    step: int = 0  # finished steps
    steps: int = 0
    reward_mean: float | None = None  # of the last step's completions
    reward_best: float | None = None  # the best step's mean
    reward_recent: float | None = None  # mean over the last 10 steps
    evaluation: float | None = None  # mean reward of the last evaluation
    tokens: int = 0  # prompt and completion tokens that were learnt from
    step_s: float = 0.0  # seconds of a step, smoothed
    published: Published | None = None
    failure: Failure | None = None
    retry: int = 0  # the wave's Train.retry as the engine last heard it while it trained
    saved: int = 0  # the step of a checkpoint of this run that is whole in the store, the newest known; 0: none is


class WaveTraining(_Record, frozen=True):
    """One training wave as its engines, and those who watch it, must know it. Writer: operator."""

    wave: str  # "namespace/name"
    generation: int
    train: Train  # config maps replaced by their lines, policies by none: each engine gets its own
    store: Source  # where checkpoints and revisions are kept; must be writable
    run: str = ""  # uid of the AdapterWave: one made anew under the same name starts anew, beside the old checkpoints
    policies: tuple[str, ...] = ()  # all of them, also those that wait for an engine
    phase: str = ""  # of the wave's status, with its message, for WatchWave; engines pass over all three
    message: str = ""
    mentions: Mentions | None = None  # as in WaveRecord
    last_words: tuple[Progress, ...] = ()  # on policies at rest (training_words); engines pass over them, too


class TrainAssignment(_Record, frozen=True):
    """The exclusive right, and the duty, of one engine to train one policy. Writer: operator.

    `lease` is the fencing token: it only grows from one grant to the next (milliseconds since 1970 at the grant, or
    one more than the last), and is part of every name that the trainer writes to the store. It is granted to one
    start of the engine: a later incarnation leaves it alone until it is granted anew, which takes a moment.
    """

    policy: str
    wave: str
    lease: int
    settings: Policy  # the template's values filled in; dataset, reward, loss, optimizer: None stands for the wave's
    order: Order = Order.RUN
    incarnation: int = 0  # EngineRecord.incarnation of the start that it was granted to
    run: str = ""  # as in WaveTraining
    saved: int = 0  # as in Progress, or an older one: who finds no checkpoint though there was one never begins anew


class PartTraining(WaveTraining, frozen=True):
    """A wave's record of which this version cannot read `train`: that says nothing, and the rest what it said."""


class PartAssignment(TrainAssignment, frozen=True):
    """A lease of which this version cannot read `settings`: these only name the policy. Nobody trains by it."""


class TrainState(msgspec.Struct, frozen=True):
    """The operator's part of the map about training of one base, and what engines say to it."""

    training: Mapping[str, WaveTraining] = {}
    trains: Mapping[str, Mapping[str, TrainAssignment]] = {}  # engine -> policy -> assignment
    progress: Mapping[str, Mapping[str, Progress]] = {}  # engine -> policy -> progress, also of engines that are gone


class TrainChange(msgspec.Struct, frozen=True):
    """What one apply writes about training of one base: records to set and names to delete.

    `called` are engines whose leases stay as they are while a wave that they train says something else.
    """

    set_training: tuple[WaveTraining, ...] = ()
    del_training: tuple[str, ...] = ()
    set_trains: Mapping[str, tuple[TrainAssignment, ...]] = {}
    del_trains: Mapping[str, tuple[str, ...]] = {}
    del_rewards: tuple[str, ...] = ()  # policies whose history goes with their wave
    called: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """True if there is anything to write."""
        lists = (self.set_training, self.del_training, self.set_trains, self.del_trains, self.del_rewards)
        return any(lists)
