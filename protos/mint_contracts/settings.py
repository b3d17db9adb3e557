"""The settings that the operator passes to an engine, as one JSON document in its environment.

They contain only what an engine must restart for: a change of replicas, say, does not alter them.
"""

import msgspec

from mint_contracts.source import Source

ENGINE_SETTINGS = "MINT_ENGINE_SETTINGS"  # JSON of EngineSettings
ENGINE_NAME = "MINT_ENGINE_NAME"  # the pod's name, e.g. "smollm2-0"
ENGINE_ADDRESS = "MINT_ENGINE_ADDRESS"  # "ip:port" that the gateway dials
REDIS_URL = "MINT_REDIS_URL"
REDIS_USERNAME = "MINT_REDIS_USERNAME"  # of an ACL user; empty: Redis's default user
REDIS_PASSWORD = "MINT_REDIS_PASSWORD"  # noqa: S105 - the variable's name
REDIS_CA_FILE = "MINT_REDIS_CA_FILE"
PVC_ROOT = "MINT_PVC_ROOT"  # claims are mounted read-only at $MINT_PVC_ROOT/<claim>
CACHE_FOLDER = "MINT_CACHE_FOLDER"  # the engine's disk tier
# Set by a LeaderWorkerSet in every pod of an engine over several nodes (kubernetes-sigs/lws).
LEADER_ADDRESS = "LWS_LEADER_ADDRESS"
WORKER_INDEX = "LWS_WORKER_INDEX"  # 0 on the leader
GROUP_SIZE = "LWS_GROUP_SIZE"

ENGINE_PORT = 8470
RANKS_PORT = 8471  # where a leader accepts its engine's other nodes
GATEWAY_PORT = 8470
GATEWAY_HTTP_PORT = 8480
METRICS_PORT = 9470

DRAIN_S = 22  # for requests in flight when an engine or a gateway is told to end; also fits the usual 30
# The rest of an engine's grace: it reports that for 2 seconds, and ends within 20 more even if a rank hangs.
ENGINE_RESERVE_S = 38

LIVENESS_SERVICE = "live"  # gRPC health: SERVING unless the engine is stuck; "" is SERVING only if it is ready


class EngineSettings(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One engine's base and limits. Sizes are bytes."""

    base_model: str  # "namespace/name"
    source: Source
    device: str
    dtype: str
    context_length: int  # the most tokens of a request, prompt and completion together
    kv_cache_bytes: int
    max_rank: int
    device_slots: int
    host_bytes: int
    disk_bytes: int
    target_modules: tuple[str, ...] = ()  # empty: every linear module of the decoder layers
    base_names: tuple[str, ...] = ()
    store: Source | None = None
    tensor_parallel_size: int = 1  # number of ranks, each a process in one of the engine's pods
    nodes: int = 1  # number of the engine's pods, each on its own node with an equal number of ranks
    quantised_experts: bool = False  # routed experts stay in memory in the quantised form of the base's files
    training_store: Source | None = None  # where policies are kept; None: this engine only serves
    drain_s: int = DRAIN_S  # for accepted requests once the engine is told to end

    @property
    def ranks_per_node(self) -> int:
        """The number of ranks in each pod."""
        return self.tensor_parallel_size // self.nodes
