"""A packed adapter: one contiguous run of elements in exactly a slot's layout, and a small header that describes it.

The run holds, for each module that the adapter targets, A [r, in] and then B transposed [r, out] (A [E, r, in] and
B transposed [E, r, out] of E stacked experts), without gaps, in the base's dtype, little endian. A file of it is

    offset 0   "MINTLORA", the format's version (u32), the bytes of the body (u32), sha256 of the body
    offset 48  the body: JSON, see `_Body`; then zeros up to a multiple of 4096, so that what follows can be mapped
    then       the run, to the file's end

The body names the run's own digest, so the body's digest is that of the whole content: it is the revision.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from mint_engine.adapters.adapter import Module
from mint_engine.adapters.file_identity import KnownFile

# A number type's whole numbers of the same size, and the bits of its exponent.
_EXPONENTS = {
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
    torch.float32: (torch.int32, 0x7F800000),
}


@dataclass(frozen=True)
class Place:
    """Where a module's part lies: from element `offset` of the run on, A and then B transposed."""

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
    """The places of all parts, in the order of the base's modules. Adapters of one kind share one object of it."""

    places: tuple[Place, ...]

    @cached_property
    def elements(self) -> int:
        """Elements of the whole run."""
        return sum(place.elements for place in self.places)

    @cached_property
    def rank(self) -> int:
        """The largest rank over the modules; 0 without any."""
        return max((place.rank for place in self.places), default=0)


@dataclass(frozen=True, eq=False)
class Header:
    """What a packed adapter's file says before its run. `scalings` go with `layout.places`, one each."""

    dtype: torch.dtype
    base: str  # `fingerprint` of the modules that it was laid out for
    config: bytes  # PEFT's adapter_config.json in canonical form
    layout: Layout
    scalings: tuple[float, ...]
    digest: str  # of the run, see `digests`
    revision: str  # "sha256:" and the digest of the header's body
    head_bytes: int  # where the run begins in the file

    @property
    def run_bytes(self) -> int:
        """Bytes of the run."""
        return self.layout.elements * self.dtype.itemsize

    @property
    def file_bytes(self) -> int:
        """Bytes of the whole file."""
        return self.head_bytes + self.run_bytes


@dataclass(frozen=True, eq=False)
class Packed:
    """One revision of an adapter, ready for a slot. `run` [elements] may be a mapped file: only read it.

    `file` holds the same content, as long as it stays what it was.
    """

    header: Header
    run: torch.Tensor
    file: KnownFile | None = None

    @property
    def revision(self) -> str:
        """What names its content."""
        return self.header.revision

    @property
    def rank(self) -> int:
        """The largest rank over its modules."""
        return self.header.layout.rank

    @property
    def nbytes(self) -> int:
        """Bytes that it costs to hold, as the tiers account them."""
        return self.header.file_bytes


def halves(layout: Layout, run: torch.Tensor) -> Iterator[tuple[Place, torch.Tensor, torch.Tensor]]:
    """Each part's A [E, r, in] and B transposed [E, r, out] as views of the run; E is 1 for a plain module."""
    for place in layout.places:
        count, rank = max(place.experts, 1), place.rank
        middle = place.offset + count * rank * place.in_features
        yield (
            place,
            run[place.offset : middle].view(count, rank, place.in_features),
            run[middle : place.offset + place.elements].view(count, rank, place.out_features),
        )


def lay_out(modules: Mapping[str, Module], ranks: Mapping[str, int]) -> Layout:
    """The layout of an adapter over a base's modules that has these ranks, by path."""
    places, offset = [], 0
    for path, module in modules.items():
        if path in ranks:
            place = Place(path, module.experts, ranks[path], module.in_features, module.out_features, offset)
            places.append(place)
            offset += place.elements
    return Layout(tuple(places))


def fingerprint(modules: Mapping[str, Module]) -> str:
    """A digest of the paths and shapes of a base's modules, in their order."""
    hasher = hashlib.sha256()
    for module in modules.values():
        hasher.update(f"{module.path}\0{module.experts}\0{module.in_features}\0{module.out_features}\n".encode())
    return hasher.hexdigest()


def bytes_of(run: torch.Tensor) -> memoryview:
    """The bytes of a run in host memory, shared with it."""
    return run.view(torch.uint8).numpy().data


def is_finite(run: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite; in pieces, so that no copy of the run is made.

    Those two alone have an exponent of nothing but ones (IEEE 754), so whole numbers tell: 1.4 ms for 8 MiB of
    bfloat16 on one core, where torch.isfinite took 14 ms.
    """
    whole, exponent = _EXPONENTS[run.dtype]
    magnitude = torch.iinfo(whole).max  # all bits but the sign
    pieces = torch.split(run.view(whole), 1 << 22)
    return all(int((piece & magnitude).amax()) < exponent for piece in pieces if piece.numel())


def first_broken(layout: Layout, run: torch.Tensor) -> str:
    """Which tensor holds NaN or infinity, the first one, as PEFT would name it; "" where none does."""
    for place, a, b in halves(layout, run):
        for half, tensor in (("lora_A", a), ("lora_B", b)):
            if not bool(torch.isfinite(tensor).all()):
                return f"{place.path}.{half}"
    return ""
