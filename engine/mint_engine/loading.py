"""Bringing one adapter from its source into host memory; blocking, for worker threads."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from mint_contracts.source import Source, locate
from mint_engine.adapter import AdapterWeights
from mint_engine.check import Fit
from mint_engine.disk import DiskTier
from mint_engine.fetch import check_adapter, copy_adapter
from mint_engine.local import LocalFolder, local_path
from mint_engine.read import read_adapter
from mint_engine.retry import retrying
from mint_engine.storage import subject_of


class Loader:
    """Knows the base that adapters must fit, and the disk tier. Its methods may run in several threads at once."""

    def __init__(self, disk: DiskTier, fit: Fit, dtype: torch.dtype) -> None:
        self.disk = disk
        self._fit = fit
        self._dtype = dtype

    def fetch(self, source: Source) -> None:
        """Have a source's files on this machine, checked as far as that goes without reading the tensors.

        Transient errors are tried again a few times. Raises every error of `check`, Source*, Overloaded,
        CapacityExceeded.
        """
        if is_local(source):
            retrying(lambda: check_adapter(_local_folder(source), self._fit))
        elif self.disk.get(source) is None:
            retrying(lambda: self.disk.store(source, partial(self._copy, source)))

    def read(self, adapter: str, source: Source) -> AdapterWeights:
        """Check and read the files that `fetch` brought. A copy on disk that proves broken is dropped."""
        if is_local(source):
            return retrying(lambda: read_adapter(adapter, _local_folder(source), self._fit, self._dtype))
        path = self.disk.get(source)
        if path is None:
            self.fetch(source)
            path = self.disk.get(source)
        if path is None:
            raise FileNotFoundError(f"the disk tier lost {source.uri} while it was in use")
        return read_adapter(adapter, LocalFolder(path, subject_of(source)), self._fit, self._dtype)

    def _copy(self, source: Source, into: Path, admit: Callable[[int], None]) -> None:
        copy_adapter(source, self._fit, into, admit)


def is_local(source: Source) -> bool:
    """The source lies on a volume of this machine and is read in place."""
    return locate(source).scheme in {"file", "pvc"}


def _local_folder(source: Source) -> LocalFolder:
    path, fence = local_path(locate(source))
    return LocalFolder(path, subject_of(source), fence=fence)
