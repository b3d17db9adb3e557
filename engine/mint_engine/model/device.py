"""The one place that chooses devices, number types and threads."""

import ctypes
import math
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from mint_contracts.errors import CapacityExceeded, UnsupportedBase

HOST = torch.device("cpu")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

_QUOTA_V2 = Path("/sys/fs/cgroup/cpu.max")
_QUOTA_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
_PERIOD_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")

_PAUSE_SOFT = 1  # omp_pause_soft of OpenMP 5.0


def choose_device(name: str, number: int = 0) -> torch.device:
    """Return the torch device of that name ("cpu" or "cuda"), the `number`-th if there are several.

    Raises UnsupportedBase if this machine has none.
    """
    if name == "cpu":
        return torch.device("cpu")
    found = torch.cuda.device_count() if name == "cuda" else 0
    if number < found:
        torch.cuda.set_device(number)
        # cuDNN makes a plan for each new length, in tens of milliseconds, and torch keeps all of them (its pull
        # request 190388). Chunks of prompts, and examples, have any length. Another kernel of torch takes masks
        # too, and since 2.14 groups of heads.
        torch.backends.cuda.enable_cudnn_sdp(False)
        return torch.device("cuda", number)
    if found:
        raise UnsupportedBase(
            f"device {name!r}",
            f"has {found} GPUs on this machine, and each of its ranks needs one; "
            "lower the BaseModel's spec.engine.tensorParallelSize, or give its pods more GPUs",
        )
    raise UnsupportedBase(
        f"device {name!r}", "is not available on this machine; set the BaseModel's spec.engine.device"
    )


def choose_dtype(name: str) -> torch.dtype:
    """Return the number type of that name. Raises UnsupportedBase for one that no engine computes in."""
    if name not in DTYPES:
        raise UnsupportedBase(f"dtype {name!r}", f"must be one of {', '.join(DTYPES)}")
    return DTYPES[name]


def multiplies_bfloat16() -> bool:
    """Whether torch has fast products of bfloat16 on this CPU."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a tensor of zeros. On a CPU the system provides its memory page by page, on first writes.

    So the unused part of a large tensor costs nothing; torch.zeros writes all of it. Requests large pages: reading
    slots and cache took a third longer with small ones.
    """
    count = math.prod(shape)
    if device.type != "cpu" or count == 0:
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


@contextmanager
def claiming(field: str, size: str, lower: str = "it") -> Iterator[None]:
    """Wrap the allocation of what a field of the settings requests, with its size and what to lower, as text.

    Raises CapacityExceeded if the device does not have as much. A system that overcommits memory may notice that only
    on first writes.
    """
    try:
        yield
    except (OSError, torch.OutOfMemoryError) as error:
        where, why = ("machine", error.strerror) if isinstance(error, OSError) else ("GPU", "out of memory")
        message = f"{size} is more than this {where} has free ({why}); lower {lower}"
        raise CapacityExceeded(field, message) from None


def put(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the host on the device. The copy follows what a GPU computes, and the host does not wait.

    It is made from pinned memory, which torch gives to nobody else before; other memory could be changed meanwhile,
    so that the host waits for copies from there, and for all that was computed before them.
    """
    if device.type == "cpu" or not tensor.numel():
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def lists_on(device: torch.device, *lists: Sequence[int]) -> list[torch.Tensor]:
    """Each list as a tensor [n] int64, in one copy of all: a copy costs a GPU more than the numbers.

    From 32,000 numbers, which are 64 requests' pages, NumPy makes an array in a quarter of the time that torch takes.
    """
    numbers = np.fromiter(chain.from_iterable(lists), np.int64)
    return list(torch.split(put(torch.from_numpy(numbers), device), [len(each) for each in lists]))


def take(rows: torch.Tensor, chosen: Sequence[int]) -> torch.Tensor:
    """Return a copy of the chosen rows; a list as an index would be copied to a GPU as `put` does not."""
    return rows.index_select(0, lists_on(rows.device, chosen)[0])


def settle(device: torch.device) -> None:
    """Wait for a device that computes beside us: work would pile up there before the next step of requests."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def compute_alone() -> None:
    """From now on, the calling thread computes without torch's other threads; other threads are not affected.

    torch.set_num_threads would also apply to all threads that compute for the first time after it.
    """
    if torch.backends.openmp.is_available():  # type: ignore[no-untyped-call]
        torch.get_num_threads()  # a thread's first query sets its number to the common one
        ctypes.CDLL(torch._C.__file__).omp_set_num_threads(1)  # of the OpenMP library that torch computes with


def end_team() -> None:
    """End the threads that have computed with the calling one; it gets others for what follows.

    libgomp lets threads spin for the next product only while it has no more than there are processors. Otherwise they
    sleep at once, and each product begins with waking them: that took 3% of the time of policy updates.
    """
    if torch.backends.openmp.is_available():  # type: ignore[no-untyped-call]
        library = ctypes.CDLL(torch._C.__file__)
        if hasattr(library, "omp_pause_resource_all"):  # since OpenMP 5.0
            library.omp_pause_resource_all(_PAUSE_SOFT)


def count_threads(limit: int | None = None) -> int:
    """Return the CPU threads for torch: the cores that this process may use, by affinity and cgroup quota."""
    cores = min(len(os.sched_getaffinity(0)), os.cpu_count() or 1)
    quota = _quota()
    if quota is not None:
        cores = min(cores, max(1, math.ceil(quota)))
    return min(cores, limit) if limit else cores


def _quota() -> float | None:
    """Return the cores granted by the container's cgroup (v2 or v1), or None without a quota."""
    try:
        if _QUOTA_V2.exists():
            quota, period = _QUOTA_V2.read_text().split()[:2]
        else:
            quota, period = _QUOTA_V1.read_text().strip(), _PERIOD_V1.read_text().strip()
    except (OSError, ValueError):
        return None
    return int(quota) / int(period) if quota.isdigit() and int(period) > 0 else None
