"""A packed adapter: one contiguous run of elements in exactly a slot's layout, and a small header that describes it.

The run holds, for each module that the adapter targets, A [r, in] followed by B transposed [r, out] (A [E, r, in] and
B transposed [E, r, out] for E stacked experts), without gaps, in the base's dtype, little endian. Its file is

    offset 0   "MINTLORA", the format's version (u32), the size of the body in bytes (u32), sha256 of the body
    offset 48  the body: JSON, see `_Body`; then zeros up to a multiple of 4096, so that the run can be mapped
    then       the run, to the file's end

The body contains the run's digest, so the body's digest covers the complete content: it is the revision.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from mint_engine.adapters.adapter import Module
from mint_engine.adapters.file_identity import KnownFile

# By dtype: the integer type of the same size, and the bits of the exponent.
_EXPONENTS = {
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
    torch.float32: (torch.int32, 0x7F800000),
}


@dataclass(frozen=True)
class Place:
    """The place of a module's part in a run: A and then B transposed, from element `offset` on."""

    path: str
    experts: int  # 0: a plain module
    rank: int
    in_features: int
    out_features: int
    offset: int

    @property
    def elements(self) -> int:
        """Elements of both halves."""
        return max(self.experts, 1) * self.rank * (self.in_features + self.out_features)


@dataclass(frozen=True, eq=False)
class Layout:
    """The places of all parts, in the order of the base's modules. Adapters of one kind share one instance."""

    places: tuple[Place, ...]

    @cached_property
    def elements(self) -> int:
        """Elements of the complete run."""
        return sum(place.elements for place in self.places)

    @cached_property
    def rank(self) -> int:
        """The largest rank over the modules; 0 without any."""
        return max((place.rank for place in self.places), default=0)


@dataclass(frozen=True, eq=False)
class Header:
    """What a packed adapter's file contains before its run. `scalings` has one entry for each of `layout.places`."""

    dtype: torch.dtype
    base: str  # `fingerprint` of the modules that it was laid out for
    config: bytes  # PEFT's adapter_config.json in canonical form
    layout: Layout
    scalings: tuple[float, ...]
    digest: str  # of the run (see `digests`)
    revision: str  # "sha256:" and the digest of the header's body
    head_bytes: int  # offset of the run in the file

    @property
    def run_bytes(self) -> int:
        """Bytes of the run."""
        return self.layout.elements * self.dtype.itemsize

    @property
    def file_bytes(self) -> int:
        """Bytes of the complete file."""
        return self.head_bytes + self.run_bytes


@dataclass(frozen=True, eq=False)
class Packed:
    """One revision of an adapter, ready for a slot. `run` [elements] may be a mapped file: only read it.

    `file` has the same content, as long as it is unchanged.
    """

    header: Header
    run: torch.Tensor
    file: KnownFile | None = None

    @property
    def revision(self) -> str:
        """The revision, which names the content."""
        return self.header.revision

    @property
    def rank(self) -> int:
        """The largest rank over its modules."""
        return self.header.layout.rank

    @property
    def nbytes(self) -> int:
        """Bytes that it takes, as the tiers account for it."""
        return self.header.file_bytes


def halves(layout: Layout, run: torch.Tensor) -> Iterator[tuple[Place, torch.Tensor, torch.Tensor]]:
    """Yield each part's A [E, r, in] and B transposed [E, r, out] as views of the run; E is 1 for a plain module."""
    for place in layout.places:
        count, rank = max(place.experts, 1), place.rank
        middle = place.offset + count * rank * place.in_features
        yield (
            place,
            run[place.offset : middle].view(count, rank, place.in_features),
            run[middle : place.offset + place.elements].view(count, rank, place.out_features),
        )


def lay_out(modules: Mapping[str, Module], ranks: Mapping[str, int]) -> Layout:
    """Return the layout of an adapter over a base's modules that has these ranks, by path."""
    places, offset = [], 0
    for path, module in modules.items():
        if path in ranks:
            place = Place(path, module.experts, ranks[path], module.in_features, module.out_features, offset)
            places.append(place)
            offset += place.elements
    return Layout(tuple(places))


def fingerprint(modules: Mapping[str, Module]) -> str:
    """Return a digest of the paths and shapes of a base's modules, in their order."""
    hasher = hashlib.sha256()
    for module in modules.values():
        hasher.update(f"{module.path}\0{module.experts}\0{module.in_features}\0{module.out_features}\n".encode())
    return hasher.hexdigest()


def bytes_of(run: torch.Tensor) -> memoryview:
    """Return the bytes of a run in host memory, without copying."""
    return run.view(torch.uint8).numpy().data


def is_finite(run: torch.Tensor) -> bool:
    """Return whether no element is NaN or infinite; works in pieces, so that the run is not copied.

    Only those have an exponent of all ones (IEEE 754), so integer comparisons suffice: 1.4 ms for 8 MiB of bfloat16
    on one core, where torch.isfinite took 14 ms.
    """
    whole, exponent = _EXPONENTS[run.dtype]
    magnitude = torch.iinfo(whole).max  # all bits but the sign
    pieces = torch.split(run.view(whole), 1 << 22)
    return all(int((piece & magnitude).amax()) < exponent for piece in pieces if piece.numel())


def first_broken(layout: Layout, run: torch.Tensor) -> str:
    """Return the first tensor that contains NaN or infinity, as PEFT would name it, or ""."""
    for place, a, b in halves(layout, run):
        for half, tensor in (("lora_A", a), ("lora_B", b)):
            if not bool(torch.isfinite(tensor).all()):
                return f"{place.path}.{half}"
    return ""
