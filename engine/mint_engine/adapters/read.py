"""Reads an adapter from a source into a packed run: checks all of it, also for NaN, and lays it out once.

Config and header are checked before the weights are requested, and exactly the bytes that were checked are used, so
that a file that changes meanwhile cannot slip through.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate, groupby
from typing import BinaryIO, Protocol, cast

import structlog
import torch

from mint_contracts.errors import CorruptFile, NonFiniteWeights, SourceUnavailable
from mint_engine.adapters import packed_file, peft_config
from mint_engine.adapters.check import (
    Fit,
    check_config,
    check_numbers,
    check_packed,
    check_skipped,
    check_tensors,
)
from mint_engine.adapters.fused import unstack
from mint_engine.adapters.header import Tensors, TensorSpec
from mint_engine.adapters.packed import (
    Header,
    Packed,
    bytes_of,
    fingerprint,
    first_broken,
    halves,
    is_finite,
    lay_out,
)
from mint_engine.adapters.unused import without_unused
from mint_engine.sources.copying import read_bounded, read_up_to
from mint_engine.sources.fetch import CONFIG, PACKED, WEIGHTS, adapter_files, read_header
from mint_engine.sources.storage import Folder

_log = structlog.get_logger(__name__)

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_PIECE_BYTES = 8 << 20

Admit = Callable[[int], None]
Found = Mapping[str, int | None]  # as `adapter_files` returns


class _IntoMemory(Protocol):
    """What every file for reading supports, fsspec's included, although `BinaryIO` does not declare it."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...


def read_adapter(folder: Folder, fit: Fit, dtype: torch.dtype | None, admit: Admit = lambda _: None) -> Packed:
    """Read an adapter from a source's folder as `read_found` does."""
    return read_found(folder, adapter_files(folder), fit, dtype, admit)


def read_found(folder: Folder, found: Found, fit: Fit, dtype: torch.dtype | None, admit: Admit) -> Packed:
    """Read an adapter from its source, with its run in the base's `dtype`.

    If `dtype` is None, a packed file keeps its own, and PEFT's files are read in float32, so that nothing is rounded.

    `admit` is called with the bytes of the packed adapter before its weights arrive, and raises if there is no room.
    Tensors that are skipped are not kept. Raises every error of `check`, NonFiniteWeights naming the tensor, and
    Source* errors.
    """
    if PACKED in found:
        return _read_packed(folder, found[PACKED], fit, dtype, admit)
    dtype = dtype or torch.float32
    config = peft_config.parse(read_bounded(folder, CONFIG, peft_config.MAX_CONFIG_BYTES), folder.subject)
    check_config(config, fit, folder.subject)
    with folder.open(WEIGHTS) as file:
        table = read_header(file, folder.subject, found[WEIGHTS], fit.most_tensors)
        asked = without_unused(table, fit.unused, folder.subject)
        parts = check_tensors(config, asked, fit, folder.subject)
        if skipped := len(table) - len(asked):
            _log.info("tensors_passed_over", adapter=folder.subject, tensors=skipped, of=len(table))
            check_skipped(_size(table) - _size(asked), fit, folder.subject)
        layout = lay_out(fit.modules, {part.path: part.rank for part in parts})
        admit(layout.elements * dtype.itemsize)
        blob = bytearray(_size(asked))
        filled = _fill_asked(memoryview(blob), table, asked, file)
        check_filled(filled, _size(table), file, folder.subject, known=found[WEIGHTS] is not None)
    folder.check_same(CONFIG, WEIGHTS)  # no digest shows whether they, or all parts of them, belong together
    begins = _begins(asked)
    run = torch.empty(layout.elements, dtype=dtype)
    for part, (_, a, b) in zip(parts, halves(layout, run), strict=True):
        if not part.fused and len(part.pairs) < a.shape[0]:
            a.zero_()
            b.zero_()
        for expert, pair in part.pairs.items():
            a_tensor, b_tensor = (_tensor(spec, blob, begins[spec.name]) for spec in pair)
            if part.fused:
                a_stack, b_stack = unstack(a_tensor, b_tensor, fit.modules[part.path], turned=part.turned)
                a.copy_(a_stack)
                b.copy_(b_stack)
            else:
                a[expert].copy_(a_tensor)
                b[expert].copy_(b_tensor.t())
    scalings = tuple(part.scaling for part in parts)
    header = packed_file.describe(config.canonical, fingerprint(fit.modules), layout, scalings, run)
    return _refuse_broken(Packed(header, run), folder.subject, finite=is_finite(run))


@contextmanager
def opened_packed(folder: Folder, file_bytes: int | None, fit: Fit) -> Iterator[tuple[Header, BinaryIO]]:
    """Open a source's packed file, check it as PEFT's files are, and yield its header and the file at its run."""
    subject = folder.subject
    with folder.open(PACKED) as file:
        start = read_up_to(file, packed_file.PREFIX.size)
        rest = read_up_to(file, packed_file.rest_bytes(start, subject, file_bytes))
        header = packed_file.parse(start, rest, subject, file_bytes=file_bytes)
        _check_source(header, start + rest, fit, subject)
        yield header, file


def _read_packed(folder: Folder, file_bytes: int | None, fit: Fit, dtype: torch.dtype | None, admit: Admit) -> Packed:
    subject = folder.subject
    with opened_packed(folder, file_bytes, fit) as (header, file):
        admit(header.file_bytes)
        run = torch.empty(header.layout.elements, dtype=header.dtype)
        check_filled(fill(bytes_of(run), file), header.run_bytes, file, subject, known=file_bytes is not None)
    with ThreadPoolExecutor(1) as beside:  # both passes take equally long; each has its own core
        verified = beside.submit(packed_file.verify, header, run, subject)
        finite = is_finite(run)
        verified.result()
    if dtype is not None and header.dtype != dtype:
        base = fingerprint(fit.modules)
        run = run.to(dtype)
        header = packed_file.describe(header.config, base, header.layout, header.scalings, run)
        finite = is_finite(run)
    return _refuse_broken(Packed(header, run), subject, finite=finite)


def _check_source(header: Header, start: bytes, fit: Fit, subject: str) -> None:
    """Apply to a packed file from outside all checks that PEFT's files get."""
    config = peft_config.parse(header.config, subject)
    check_config(config, fit, subject)
    check_packed(header, fit, subject)
    check_numbers(header, config, fit, subject)
    if config.canonical != header.config or not packed_file.is_canonical(header, start):
        raise CorruptFile(subject, "is a packed adapter that is not in canonical form; pack it again")


def fill(view: memoryview, file: BinaryIO) -> int:
    """Read into `view` until it is full or the file ends; return the number of bytes read."""
    filled, into = 0, cast(_IntoMemory, file)
    while filled < len(view) and (count := into.readinto(view[filled : filled + _PIECE_BYTES])):
        filled += count
    return filled


def check_filled(filled: int, size: int, file: BinaryIO, subject: str, *, known: bool) -> None:
    """Raise unless `size` bytes were read and the file ends there. `known`: the storage reported the right size."""
    if filled < size:
        problem = f"gave {filled} bytes of weights, and its header gives {size}"
        if known:
            raise SourceUnavailable(subject, f"{problem}; retrying")
        raise CorruptFile(subject, f"is truncated: {problem}; upload it again")
    if file.read(1):
        raise CorruptFile(subject, f"has more bytes than the {size} that its header gives; upload it again")


def _size(table: Tensors) -> int:
    """Return the total bytes of the tensors."""
    return sum(spec.end - spec.begin for spec in table.values())


def _in_order(table: Tensors) -> list[TensorSpec]:
    """Return the tensors in the order in which they are in the file."""
    return sorted(table.values(), key=lambda spec: (spec.begin, spec.end))


def _begins(asked: Tensors) -> dict[str, int]:
    """Return by name where each tensor begins if they are concatenated without those that were skipped."""
    specs = _in_order(asked)
    ends = accumulate((spec.end - spec.begin for spec in specs), initial=0)
    return {spec.name: begin for spec, begin in zip(specs, ends, strict=False)}


def _fill_asked(blob: memoryview, table: Tensors, asked: Tensors, file: BinaryIO) -> int:
    """Read the requested tensors one after another; return how many bytes of all tensors were read.

    The others are read and discarded, because not every server can send a file from the middle.
    """
    filled, at = 0, 0
    for wanted, specs in groupby(_in_order(table), key=lambda spec: spec.name in asked):
        size = sum(spec.end - spec.begin for spec in specs)
        if wanted:
            came = fill(blob[at : at + size], file)
            at += size
        else:
            came = _skip(file, size)
        filled += came
        if came < size:
            break
    return filled


def _skip(file: BinaryIO, size: int) -> int:
    """Read and discard up to `size` bytes; return the number of bytes read."""
    piece, left = memoryview(bytearray(min(size, _PIECE_BYTES))), size
    while left and (count := fill(piece[:left], file)):
        left -= count
    return size - left


def _tensor(spec: TensorSpec, blob: bytearray, offset: int) -> torch.Tensor:
    """Return one tensor as it is stored, sharing the blob's bytes if they are aligned for its dtype."""
    stored, size = _DTYPES[spec.dtype], spec.end - spec.begin
    count = size // stored.itemsize
    if offset % stored.itemsize:
        blob, offset = blob[offset : offset + size], 0
    return torch.frombuffer(blob, dtype=stored, count=count, offset=offset).view(spec.shape)


def _refuse_broken(packed: Packed, subject: str, *, finite: bool) -> Packed:
    if not finite:
        name = first_broken(packed.header.layout, packed.run)
        dtype = packed.header.dtype
        raise NonFiniteWeights(subject, f"has NaN or infinity in {name[:200]} (as {dtype}); train it again")
    return packed
