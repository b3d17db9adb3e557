"""The placement map's records about training, JSON in Redis. `keys` documents which key holds which."""

import re
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from mint_contracts.records import Failure, Mentions
from mint_contracts.source import Source, child
from mint_contracts.step_figures import StepFigures
from mint_contracts.training import Policy, Train

_PUBLISHED = re.compile(r"/\.published/([0-9]{16})-[0-9]{8}\Z")

LEASE_TTL_S = 30.0  # an engine that has not read its lease from the map for this long no longer acts on it


class Order(StrEnum):
    """What an engine must do with a policy."""

    RUN = "Run"
    PAUSE = "Pause"  # finish the step, save, keep nothing on the device
    CANCEL = "Cancel"  # save completed steps, publish nothing more, release the policy


class Stage(StrEnum):
    """The stage of a policy's training."""

    LOADING = "Loading"
    RUNNING = "Running"
    PAUSED = "Paused"
    COMPLETE = "Complete"
    CANCELLED = "Cancelled"
    FAILED = "Failed"


class _Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record. Fields with their default values are not encoded, to keep it compact."""


class Published(_Record, frozen=True):
    """A revision that a policy has published."""

    revision: str
    step: int
    source: Source


REVISIONS = "revisions"  # the folder of a training store that has all policies' revisions


def published_in(store: Source, policy: str) -> Source:
    """Return the folder of a training store that has a policy's revisions, each in a subfolder.

    No segment of a name begins with a dot, so another policy's name never leads there.
    """
    return child(store, revisions_of(policy))


def revisions_of(policy: str) -> str:
    """Return the folder of a policy's revisions, relative to the store."""
    return f"{REVISIONS}/{policy}/.published"


def trained_since(source: Source) -> int:
    """Return when the lease was granted under which a policy published this source, in seconds since 1970.

    Returns 0 if no policy published it.
    """
    found = _PUBLISHED.search(source.uri)
    return int(found[1]) // 1000 if found else 0


class Progress(_Record, frozen=True):
    """One policy's training progress. Writer: the engine that holds the lease."""

    policy: str
    wave: str
    lease: int
    stage: Stage
    run: str = ""  # as in TrainAssignment; this progress does not count for an assignment of another run
    step: int = 0  # finished steps
    steps: int = 0
    reward_mean: float | None = None  # of the last step's completions
    reward_best: float | None = None  # the best step's mean
    reward_recent: float | None = None  # mean over the last 10 steps
    evaluation: float | None = None  # mean reward of the last evaluation
    tokens: int = 0  # prompt and completion tokens trained on
    step_s: float = 0.0  # smoothed seconds per step
    published: Published | None = None
    failure: Failure | None = None
    retry: int = 0  # the wave's Train.retry that the engine last read while it trained
    figures: StepFigures | None = None  # of the last step
    saved: int = 0  # the step of this run's newest known checkpoint that is complete in the store; 0: none
    # A later lease under which the store was written before this one began, so that it could write nothing: a clock
    # was put back, or an older Redis restored. 0: none.
    newer_lease: int = 0
    incarnation: int = 0  # the start of the engine that reports this; 0: of an earlier version, which does not say


class WaveTraining(_Record, frozen=True):
    """What engines and watchers need to know about a training wave. Writer: operator."""

    wave: str  # "namespace/name"
    generation: int
    # With config maps replaced by their lines. Of its policies it lists those with config maps of their own, and only
    # these examples, for the operator: each engine gets its own.
    train: Train
    store: Source  # where checkpoints and revisions are kept; must be writable
    run: str = ""  # uid of the AdapterWave: a new one with the same name starts over, beside the old checkpoints
    policies: tuple[str, ...] = ()  # all of them, also those that wait for an engine
    phase: str = ""  # of the wave's status, with its message, for WatchWave; engines ignore all three
    message: str = ""
    mentions: Mentions | None = None  # as in WaveRecord
    last_words: tuple[Progress, ...] = ()  # of policies at rest (training_reports); engines ignore them, too


class TrainAssignment(_Record, frozen=True):
    """The exclusive right, and the duty, of one engine to train one policy. Writer: operator.

    `lease` is the fencing token: it only grows from one grant to the next (milliseconds since 1970 at the grant, or
    one more than the last), and is part of every name that the trainer writes to the store. It is granted to one
    start of the engine: a later incarnation does not use it until it is granted again, which takes a moment.
    """

    policy: str
    wave: str
    lease: int
    settings: Policy  # with the template's values; dataset, reward, loss, optimizer: None means the wave's
    order: Order = Order.RUN
    incarnation: int = 0  # EngineRecord.incarnation of the start that it was granted to
    run: str = ""  # as in WaveTraining
    saved: int = 0  # as in Progress, perhaps older; if not 0, an engine that finds no checkpoint never starts over


class PartTraining(WaveTraining, frozen=True):
    """A wave's record whose `train` this version cannot read: that field is empty, the others are as written."""


class PartAssignment(TrainAssignment, frozen=True):
    """A lease whose `settings` this version cannot read: they only name the policy. Nobody trains by it."""


class TrainState(msgspec.Struct, frozen=True):
    """The operator's part of one base's map about training, and the engines' reports on it."""

    training: Mapping[str, WaveTraining] = {}
    trains: Mapping[str, Mapping[str, TrainAssignment]] = {}  # engine -> policy -> assignment
    progress: Mapping[str, Mapping[str, Progress]] = {}  # engine -> policy -> progress, also of engines that are gone


class TrainChange(msgspec.Struct, frozen=True):
    """What one apply writes about training of one base: records to set and names to delete.

    `called` are engines to notify whose leases stay as they are, while the record of a wave that they train changes.
    """

    set_training: tuple[WaveTraining, ...] = ()
    del_training: tuple[str, ...] = ()
    set_trains: Mapping[str, tuple[TrainAssignment, ...]] = {}
    del_trains: Mapping[str, tuple[str, ...]] = {}
    del_rewards: tuple[str, ...] = ()  # policies whose rewards and curves are deleted with their wave
    called: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """True if there is anything to write."""
        lists = (self.set_training, self.del_training, self.set_trains, self.del_trains, self.del_rewards)
        return any(lists)
