"""The placement map's keys, one by one.

`{ns/name}` is the base model. All keys of all bases are in one Redis. A Redis Cluster cannot replace it: a client
that a cluster's node redirects reports that and does not follow.

| key                               | type   | content                               | writer   |
|-----------------------------------|--------|---------------------------------------|----------|
| mint:bases                        | set    | every base that has keys              | operator |
| mint:led                          | string | epoch of the first operator that has  | operator |
|                                   |        | written all bases here                |          |
| mint:{ns/name}:epoch              | string | newest operator epoch seen            | operator |
| mint:{ns/name}:version            | string | grows when a change is complete       | operator |
| mint:{ns/name}:version:writing    | string | token of an incomplete change         | operator |
| mint:{ns/name}:recent             | hash   | version -> adapters whose placements  | operator |
|                                   |        | it changed                            |          |
| mint:{ns/name}:base               | string | BaseRecord                            | operator |
| mint:{ns/name}:placements         | hash   | adapter -> Placement                  | operator |
| mint:{ns/name}:assigned:ENGINE    | hash   | adapter -> Assignment                 | operator |
| mint:{ns/name}:waves              | hash   | wave -> WaveRecord                    | operator |
| mint:{ns/name}:editions           | hash   | engine -> grows as its part changes,  | operator |
|                                   |        | "" -> as records in `training` do     |          |
| mint:{ns/name}:engines            | hash   | engine -> incarnation                 | engines  |
| mint:{ns/name}:engine:ENGINE      | string | EngineRecord, expires with heartbeat  | engine   |
| mint:{ns/name}:held:ENGINE        | hash   | adapter -> Held                       | engine   |
| mint:{ns/name}:held:ENGINE:recent | hash   | incarnation and sequence of a report  | engine   |
|                                   |        | -> adapters that it changed           |          |
| mint:{ns/name}:told               | hash   | engine -> incarnation and sequence of | engines  |
|                                   |        | its last report                       |          |
| mint:{ns/name}:telling:ENGINE     | hash   | adapter -> Held, of an unfinished full| engine   |
|                                   |        | report, with its mark; expires        |          |
| mint:{ns/name}:training           | hash   | wave -> WaveTraining                  | operator |
| mint:{ns/name}:trains:ENGINE      | hash   | policy -> TrainAssignment             | operator |
| mint:{ns/name}:progress:ENGINE    | hash   | policy -> Progress                    | engine   |
| mint:{ns/name}:rewards:POLICY     | list   | mean reward of each finished step     | engine   |
| mint:{ns/name}:curve:POLICY       | list   | one value: Curve (step_figures)       | engine   |
| mint:{ns/name}:changed            | pubsub | "map" or "engine NAME": something new | both     |
| mint:{ns/name}:called:ENGINE      | pubsub | its edition has grown                 | operator |
| mint:{ns/name}:catalog            | hash   | count, older, retired, version,       | gateways |
|                                   |        | sequence, complete, manifests, copy,  |          |
|                                   |        | tallied, through                      |          |
| mint:{ns/name}:catalog:directory  | zset   | the name that each leaf begins at     | gateways |
| mint:{ns/name}:catalog:leaf:NAME  | hash   | names from NAME on -> packed state    | gateways |
| mint:{ns/name}:catalog:roots      | hash   | number -> beginning of URIs           | gateways |
| mint:{ns/name}:catalog:labels     | hash   | number -> labels, JSON                | gateways |
| mint:{ns/name}:catalog:roots:numbers, :labels:numbers   | the inverses of these two           | gateways |
| mint:{ns/name}:catalog:parts      | zset   | manifest parts brought in lately      | gateways |
| mint:{ns/name}:catalog:keeper     | string | the gateway that reads manifests now  | gateways |
| mint:{ns/name}:catalog:nothing    |        | never there: deleting it shows whether| gateways |
|                                   |        | Redis takes writes                    |          |
| mint:{ns/name}:catalog:news       | pubsub | names that changed, or "*"            | gateways |

Losing all of it loses nothing: the operator rewrites its keys from the API server, each engine its own from memory,
the gateways the catalog from its manifests (catalog.lua documents its layout and is its only writer).
A missing `version` means "unknown", never "nothing is wanted": readers keep what they have.
"""

BASES = "mint:bases"
LED = "mint:led"


def epoch(base: str) -> str:
    """String: the newest operator epoch that has written."""
    return f"mint:{{{base}}}:epoch"


def version(base: str) -> str:
    """String: grows by one when a change of the map is complete."""
    return f"mint:{{{base}}}:version"


def writing(base: str) -> str:
    """String: the token of a change in several parts, present from its first part to its last."""
    return f"mint:{{{base}}}:version:writing"


def recent(base: str) -> str:
    """Hash: each of the last versions to the adapters whose placements it changed, so that followers read only those.

    A version that is not there changed too many, or is unknown: read all.
    """
    return f"mint:{{{base}}}:recent"


def base_record(base: str) -> str:
    """String: BaseRecord."""
    return f"mint:{{{base}}}:base"


def placements(base: str) -> str:
    """Hash: adapter to Placement."""
    return f"mint:{{{base}}}:placements"


def assigned(base: str, engine: str) -> str:
    """Hash: adapter to Assignment, for one engine."""
    return f"mint:{{{base}}}:assigned:{engine}"


def waves(base: str) -> str:
    """Hash: wave to WaveRecord."""
    return f"mint:{{{base}}}:waves"


def editions(base: str) -> str:
    """Hash: engine to a number that grows when its assignments change, so that other engines need not read theirs.

    The field "" has the number that grows when records of training waves change.
    """
    return f"mint:{{{base}}}:editions"


def engines(base: str) -> str:
    """Hash: engine to incarnation, of all engines that ever reported."""
    return f"mint:{{{base}}}:engines"


def engine(base: str, name: str) -> str:
    """String with a time to live: EngineRecord."""
    return f"mint:{{{base}}}:engine:{name}"


def held(base: str, name: str) -> str:
    """Hash: adapter to Held, as one engine reports it."""
    return f"mint:{{{base}}}:held:{name}"


def held_recently(base: str, name: str) -> str:
    """Hash: "INCARNATION SEQUENCE" of each of an engine's last reports to the adapters it changed, as in `recent`."""
    return f"{held(base, name)}:recent"


def told(base: str) -> str:
    """Hash: engine to "INCARNATION SEQUENCE" of the last report that is in its held adapters."""
    return f"mint:{{{base}}}:told"


def telling(base: str, name: str) -> str:
    """Hash with a time to live: adapter to Held, the parts so far of one engine's full report.

    The field "" has the report's "INCARNATION SEQUENCE" so far.
    """
    return f"mint:{{{base}}}:telling:{name}"


def training(base: str) -> str:
    """Hash: wave to WaveTraining."""
    return f"mint:{{{base}}}:training"


def trains(base: str, engine: str) -> str:
    """Hash: policy to TrainAssignment, for one engine."""
    return f"mint:{{{base}}}:trains:{engine}"


def progress(base: str, engine: str) -> str:
    """Hash: policy to Progress, as one engine reports it."""
    return f"mint:{{{base}}}:progress:{engine}"


def rewards(base: str, policy: str) -> str:
    """List: the mean reward of each finished step of a policy, the oldest first."""
    return f"mint:{{{base}}}:rewards:{policy}"


def curve(base: str, policy: str) -> str:
    """List of one value, since it is written like rewards: a policy's Curve of figures of its steps."""
    return f"mint:{{{base}}}:curve:{policy}"


def changed(base: str) -> str:
    """Channel: a hint that something changed; losing one only costs a poll interval."""
    return f"mint:{{{base}}}:changed"


def called(base: str, engine: str) -> str:
    """Channel: a hint that this engine's edition has grown; a channel each, so that the others do not wake for it."""
    return f"mint:{{{base}}}:called:{engine}"


def catalog(base: str, part: str = "") -> str:
    """Hash: counts and state of the complete catalog; with `part`, one of its other keys or its channel."""
    return f"mint:{{{base}}}:catalog" + (f":{part}" if part else "")


def catalog_leaves(base: str) -> str:
    """Prefix of hashes, before a name: the catalog's adapters from that name on, up to where the next leaf begins."""
    return f"mint:{{{base}}}:catalog:leaf:"
