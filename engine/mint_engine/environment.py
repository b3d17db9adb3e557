"""The engine's settings from its environment, and the environment variables that it sets for libraries.

Imports nothing heavy: torch, transformers and huggingface_hub read their variables when they are imported.
"""

import os
import tempfile
from pathlib import Path

import msgspec

from mint_contracts import settings
from mint_contracts.addresses import bracketed
from mint_contracts.settings import EngineSettings
from mint_engine.parallel.handshake import RanksEndpoint, key_of

# torch does not round pinned allocations of more MiB than this up to a power of two, and releases them when freed
# (CachingHostAllocator.h). By default adapters in host memory took up to twice the memory that they count for.
_PINNED, _PINNED_MB = "pinned_max_cached_size_mb", 1
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


class Start(msgspec.Struct, frozen=True):
    """Everything that one start of an engine needs to know."""

    settings: EngineSettings
    engine: str
    address: str  # "ip:port" that gateways dial
    cache: Path
    port: int
    metrics_port: int
    endpoint: RanksEndpoint | None = None  # for an engine over several nodes: where its leader accepts the others
    node: int = 0  # the index of this node within the engine
    leader: str = ""  # the host of node 0


def read_environment(port: int, metrics_port: int, ranks_port: int) -> Start:
    """Read a start from the environment. Raises ValueError naming the variable that is missing or wrong."""
    text = os.environ.get(settings.ENGINE_SETTINGS)
    if not text:
        raise ValueError(f"{settings.ENGINE_SETTINGS} is not set; the operator sets it on an engine's pod")
    try:
        engine_settings = msgspec.json.decode(text, type=EngineSettings)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{settings.ENGINE_SETTINGS} is not readable: {error}") from None
    cache = Path(os.environ.get(settings.CACHE_FOLDER) or Path(tempfile.gettempdir()) / "mint-cache")
    start = Start(
        settings=engine_settings,
        engine=os.environ.get(settings.ENGINE_NAME) or "engine-0",
        address=bracketed(os.environ.get(settings.ENGINE_ADDRESS) or f"127.0.0.1:{port}"),
        cache=cache,
        port=port,
        metrics_port=metrics_port,
    )
    return start if engine_settings.nodes == 1 else _among_nodes(start, ranks_port)


def _among_nodes(start: Start, ranks_port: int) -> Start:
    """Return the start of one pod of several. Raises ValueError."""
    nodes, ranks = start.settings.nodes, start.settings.tensor_parallel_size
    if ranks % nodes:
        raise ValueError(f"{settings.ENGINE_SETTINGS} has {ranks} ranks for {nodes} nodes")
    found = {}
    for name in (settings.LEADER_ADDRESS, settings.WORKER_INDEX, settings.GROUP_SIZE):
        found[name] = os.environ.get(name, "")
        if not found[name] or (name != settings.LEADER_ADDRESS and not found[name].isdecimal()):
            raise ValueError(f"{name} is {found[name]!r}; a LeaderWorkerSet sets it on pods of several nodes")
    node, size = int(found[settings.WORKER_INDEX]), int(found[settings.GROUP_SIZE])
    if size != nodes or node >= size:
        raise ValueError(
            f"{settings.GROUP_SIZE} is {size}, {settings.WORKER_INDEX} {node}, and the engine has {nodes} nodes"
        )
    # The secret that a base's pods share: the map's password, if there is one.
    key = key_of(os.environ.get(settings.REDIS_PASSWORD, ""), start.settings.base_model)
    return msgspec.structs.replace(
        start, endpoint=RanksEndpoint(ranks_port, key), node=node, leader=found[settings.LEADER_ADDRESS]
    )


def confine(cache: Path) -> None:
    """Make every library write only below `cache`: the root filesystem is read-only, and there may be no HOME.

    Also make torch take no more pinned memory than requested, as budgets count requested bytes.
    """
    libraries = cache / "libraries"
    libraries.mkdir(parents=True, exist_ok=True)
    folders = {"HF_HOME": "huggingface", "TORCH_HOME": "torch", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
    folders |= {"TRITON_CACHE_DIR": "triton", "XDG_CACHE_HOME": "xdg", "HOME": "home"}
    for variable, name in folders.items():
        if variable != "HOME" or not os.access(os.environ.get("HOME", ""), os.W_OK):
            os.environ[variable] = str(libraries / name)
    for variable in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        os.environ[variable] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # torch reads the second variable only if the first is not set; settings that are there stay.
    variable = next((name for name in _ALLOCATOR if os.environ.get(name)), _ALLOCATOR[0])
    allocator = os.environ.get(variable, "")
    if _PINNED not in allocator:
        os.environ[variable] = ",".join(filter(None, (allocator, f"{_PINNED}:{_PINNED_MB}")))
