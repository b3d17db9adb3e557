"""The packed format: what is written is read back, and anything else is refused with a clear error."""

import hashlib
import io
import json
import os
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_contracts.errors import CorruptFile
from mint_engine.adapters import packed_file
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.digests import UNKNOWN, digest_of
from mint_engine.adapters.mapped import LONG_BYTES, MAP_FROM_BYTES, Opener
from mint_engine.adapters.packed import Packed, bytes_of, is_finite, lay_out
from mint_engine.adapters.packed_file import ALIGNMENT, MAX_BODY_BYTES, PREFIX
from tests.engine.made import Delta, pack, unpack

MODULES = {
    "layers.0.q": Module("layers.0.q", 6, 4),
    "layers.0.experts.up": Module("layers.0.experts.up", 3, 5, experts=3),
    "layers.1.q": Module("layers.1.q", 4, 6),
}


def adapter(dtype: torch.dtype = torch.float32, seed: int = 0) -> Packed:
    draw = torch.Generator().manual_seed(seed)
    deltas = {
        "layers.1.q": Delta(torch.randn(2, 4, generator=draw), torch.randn(6, 2, generator=draw), 0.5),
        "layers.0.experts.up": Delta(
            torch.randn(3, 2, 3, generator=draw), torch.randn(3, 5, 2, generator=draw), 1 / 3
        ),
    }
    return pack(MODULES, deltas, dtype)


def written(packed: Packed) -> bytes:
    file = io.BytesIO()
    packed_file.write(packed, file)
    return file.getvalue()


def read(blob: bytes, folder: Path) -> Packed:
    path = folder / "adapter.mint"
    path.write_bytes(blob)
    return Opener().open(path, "file")


GOOD = written(adapter())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_written_files_are_read_back(tmp_path: Path, dtype: torch.dtype) -> None:
    packed = adapter(dtype)
    again = read(written(packed), tmp_path)
    assert torch.equal(again.run, packed.run)
    assert again.header.scalings == (1 / 3, 0.5)
    assert [place.path for place in again.header.layout.places] == ["layers.0.experts.up", "layers.1.q"]
    assert again.header.layout.places == packed.header.layout.places
    assert (again.revision, again.rank) == (packed.revision, 2)
    assert again.nbytes == len(written(packed))
    assert written(again) == written(packed), "there is one form of one content"
    assert again.header.head_bytes % ALIGNMENT == 0


@pytest.mark.parametrize("most", [100, 4095, 4096, 5000, 1 << 20])
def test_a_file_written_in_one_piece_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Also if the system takes only `most` bytes at a time."""
    path, packed, writev = tmp_path / "adapter.mint", adapter(), os.writev

    def little(descriptor: int, parts: Sequence[memoryview]) -> int:
        first, second = parts[0][:most], parts[1][: max(0, most - len(parts[0]))]
        return writev(descriptor, [first, second])

    monkeypatch.setattr(os, "writev", little)
    with path.open("wb", buffering=0) as file:
        packed_file.write_at_once(packed, file.fileno())
        assert file.tell() == packed.header.file_bytes
    assert path.read_bytes() == written(packed)


def test_the_run_holds_a_and_b_transposed_of_each_module_in_the_bases_order() -> None:
    packed = adapter()
    a, b = unpack(packed)["layers.0.experts.up"].a, unpack(packed)["layers.0.experts.up"].b
    c, d = unpack(packed)["layers.1.q"].a, unpack(packed)["layers.1.q"].b
    assert torch.equal(packed.run, torch.cat([each.reshape(-1) for each in (a, b.mT, c, d.t())]))


def test_a_revision_is_its_content(tmp_path: Path) -> None:
    assert adapter().revision == adapter().revision == read(GOOD, tmp_path).revision
    assert adapter().revision != adapter(seed=1).revision
    assert adapter().revision != adapter(torch.bfloat16).revision


def test_a_long_run_is_mapped_and_needs_no_file_descriptor(tmp_path: Path) -> None:
    wide = Module("wide", 1 << 18, 8)
    packed = pack({"wide": wide}, {"wide": Delta(torch.randn(2, 1 << 18), torch.randn(8, 2), 1.0)})
    assert packed.run.nbytes > MAP_FROM_BYTES
    path = tmp_path / "adapter.mint"
    path.write_bytes(written(packed))
    opener = Opener()
    held = [opener.open(path, "file") for _ in range(20)]
    # Others in this process may open and close files meanwhile; links of closed ones do not resolve.
    assert not [each for each in Path("/proc/self/fd").iterdir() if each.resolve() == path.resolve()]
    assert all(torch.equal(each.run, packed.run) for each in held)
    assert str(path) in Path("/proc/self/maps").read_text()
    path.unlink()
    assert torch.equal(held[0].run, packed.run), "what is mapped outlives its name"
    del held
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_adapters_of_one_kind_share_their_layout(tmp_path: Path) -> None:
    one, other = read(GOOD, tmp_path), read(written(adapter(seed=1)), tmp_path)
    assert one.header.layout is other.header.layout


def test_a_long_head_is_not_kept_beside_the_tiers(tmp_path: Path) -> None:
    path, opener, told = tmp_path / "adapter.mint", Opener(), adapter().header
    for config, kept in ((told.config, True), (b'{"a":"' + b"x" * LONG_BYTES + b'"}', False)):
        header = packed_file.describe(config, told.base, told.layout, told.scalings, adapter().run)
        path.write_bytes(written(Packed(header, adapter().run)))
        one, other = opener.open(path, "file"), opener.open(path, "file")
        assert (one.header is other.header) == kept
        assert one.revision == other.revision == header.revision


def test_a_digest_is_checked_once_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[str] = []
    verify = packed_file.verify

    def counted(header: Any, run: torch.Tensor, subject: str) -> None:
        verified.append(subject)
        verify(header, run, subject)

    monkeypatch.setattr(packed_file, "verify", counted)
    path, opener = tmp_path / "adapter.mint", Opener()
    path.write_bytes(GOOD)
    for _ in range(3):
        opener.open(path, "file")
    assert len(verified) == 1
    path.unlink()
    path.write_bytes(written(adapter(seed=1)))
    opener.open(path, "file")
    assert len(verified) == 2, "another file under the same name"
    Opener().open(path, "file")
    assert len(verified) == 3, "and another process"


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_any_changed_byte_is_found(tmp_path_factory: pytest.TempPathFactory, at: int, change: int) -> None:
    blob = bytearray(GOOD)
    blob[at] ^= change
    with pytest.raises(CorruptFile):
        read(bytes(blob), tmp_path_factory.getbasetemp())


@given(st.integers(0, len(GOOD) - 1))
def test_any_truncation_is_found(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    with pytest.raises(CorruptFile):
        read(GOOD[:length], tmp_path_factory.getbasetemp())


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, blob: bytes) -> None:
    for start in (b"", GOOD[:8], GOOD[:16], GOOD[:48]):
        with pytest.raises(CorruptFile):
            read(start + blob, tmp_path_factory.getbasetemp())


def forged(change: Callable[[dict[str, Any]], object], run: bytes | None = None) -> bytes:
    """A file whose header is changed, under a correct digest."""
    magic, version, length, _ = PREFIX.unpack(GOOD[: PREFIX.size])
    told = json.loads(GOOD[PREFIX.size : PREFIX.size + length])
    told = change(told) or told
    body = told if isinstance(told, bytes) else json.dumps(told, separators=(",", ":")).encode()
    prefix = PREFIX.pack(magic, version, len(body), hashlib.sha256(body).digest())
    head = (prefix + body).ljust(-(-(len(body) + PREFIX.size) // ALIGNMENT) * ALIGNMENT, b"\0")
    return head + (GOOD[-adapter().run.nbytes :] if run is None else run)


def _part(index: int, field: int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(told: dict[str, Any]) -> None:
        told["parts"][index][field] = value

    return change


def _said(**fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda told: told.update(fields)


def of_format_1(packed: Packed) -> bytes:
    """The file as versions before format 2 wrote it, with a SHA-256 digest of the run."""
    return packed_file.head_of(replace(packed.header, digest=SHA256)) + bytes(bytes_of(packed.run))


SHA256 = hashlib.sha256(bytes_of(adapter().run)).hexdigest()


def test_a_file_of_format_1_is_read_as_before(tmp_path: Path) -> None:
    blob = of_format_1(adapter())
    _, version, length, digest = PREFIX.unpack(blob[: PREFIX.size])
    body = json.loads(blob[PREFIX.size : PREFIX.size + length])
    assert (version, body["run"]) == (1, SHA256)
    told = read(blob, tmp_path)
    assert torch.equal(told.run, adapter().run)
    assert told.revision == f"sha256:{digest.hex()}" != adapter().revision
    assert written(told) == blob, "it stays what it is"
    at = len(blob) - 1
    with pytest.raises(CorruptFile, match="do not match their digest"):
        read(blob[:at] + bytes([blob[at] ^ 1]), tmp_path)


FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a gap": (_part(1, 5, 49), "gap or overlap"),
    "an overlap": (_part(1, 5, 47), "gap or overlap"),
    "a first part that does not begin": (_part(0, 5, 4), "gap or overlap"),
    "an offset below zero": (_part(1, 5, -48), "Expected `int` >= 0"),
    "an offset above all": (_part(1, 5, 1 << 62), "Expected `int` <="),
    "an offset that is too long": (_part(1, 5, 10**40), "invalid header"),
    "a larger rank": (_part(1, 2, 3), "is truncated"),
    "a smaller rank": (_part(1, 2, 1), "beyond its run"),
    "rank zero": (_part(1, 2, 0), "Expected `int` >= 1"),
    "sizes whose product overflows": (lambda told: told["parts"].__setitem__(
        1, ["layers.1.q", 65536, 65536, 1 << 31, 1 << 31, 48]), "is truncated"),
    "the same path twice": (_part(1, 0, "layers.0.experts.up"), "occurs twice"),
    "no path": (_part(1, 0, ""), "length >= 1"),
    "no modules": (_said(parts=[], scalings=[]), "no modules"),
    "parts that are none": (_said(parts={}), "invalid header"),
    "parts nested without end": (lambda told: json.dumps({**told, "parts": 0}, separators=(",", ":")).encode()[:-2]
                                 + b"[" * 100_000 + b"}", "invalid header"),
    "too few scalings": (_said(scalings=[1.0]), "1 scalings for 2 parts"),
    "a scaling that is text": (_said(scalings=["x", 1.0]), "invalid header"),
    "a dtype of tomorrow": (_said(dtype="float4"), "invalid header"),
    "another dtype": (_said(dtype="bfloat16"), "beyond its run"),
    "a digest that is none": (_said(run="x"), "invalid header"),
    "another digest": (_said(run=UNKNOWN), "do not match their digest"),
    "the digest of format 1": (_said(run="0" * 64), "digest of another format than its own, 2"),
    "a digest of tomorrow": (_said(run="blake4:" + "0" * 64), "invalid header"),
    "a field of tomorrow": (_said(quantised=True), "unknown field"),
    "no config": (lambda told: told.pop("config") and None, "missing required field"),
    "JSON that is none": (lambda _: b"{", "invalid header"),
    "text that is no UTF-8": (lambda _: b'{"dtype":"\xff\xff"}', "invalid header"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORGERIES)
def test_each_forgery_is_told(tmp_path: Path, kind: str) -> None:
    change, told = FORGERIES[kind]
    with pytest.raises(CorruptFile, match=told):
        read(forged(change), tmp_path)


def test_a_forgery_of_nothing_is_the_file_itself(tmp_path: Path) -> None:
    assert torch.equal(read(forged(lambda _: None), tmp_path).run, adapter().run), (
        "the tests above forge what they say"
    )


@pytest.mark.parametrize(
    ("start", "told"),
    [
        (b"", "0 bytes"),
        (GOOD[:47], "47 bytes"),
        (b"PK\x03\x04" + GOOD[4:], "MINTLORA"),
        (struct.pack("<8sII32s", b"MINTLORA", 0, 10, b""), "format 0"),
        (struct.pack("<8sII32s", b"MINTLORA", 3, 10, b""), "format 3; this engine reads 2 and 1"),
        (struct.pack("<8sII32s", b"MINTLORA", 1, MAX_BODY_BYTES + 1, b""), "claims"),
        (struct.pack("<8sII32s", b"MINTLORA", 1, (1 << 32) - 1, b""), "claims"),
    ],
)
def test_a_header_of_absurd_length_is_never_asked_for(start: bytes, told: str) -> None:
    with pytest.raises(CorruptFile, match=told):
        packed_file.rest_bytes(start, "file")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_only_nan_and_infinity_are_not_finite(dtype: torch.dtype) -> None:
    """All 16-bit numbers, and 32-bit ones with every sign, exponent and leading bits; compared with torch."""
    patterns = torch.arange(1 << 16, dtype=torch.int32)
    bits = (patterns << 16 | 1) if dtype is torch.float32 else patterns.to(torch.int16)
    numbers = torch.cat([bits.view(dtype), torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan], dtype=dtype)])
    expected = torch.isfinite(numbers)
    assert is_finite(numbers[expected])
    assert all(not is_finite(each) for each in torch.split(numbers[~expected], 1))
    assert not is_finite(torch.cat([numbers[expected], numbers[~expected][:1]]))
    assert is_finite(numbers[:0])


FACTORS = st.floats(allow_nan=False, allow_infinity=False)
NUMBERS = st.integers(-1, 4) | st.integers(-5, 1 << 64)


@dataclass
class Table:
    """The parts that a file declares, and its run."""

    parts: list[list[Any]]
    scalings: list[float]
    run: bytes

    @property
    def is_right(self) -> bool:
        """Whether the parts have distinct names and a scaling each, and fill the run one after another."""
        end = 0
        for path, *numbers in self.parts:
            if not isinstance(path, str) or not path or not all(type(each) is int for each in numbers):
                return False
            experts, rank, wide, high, offset = numbers
            if experts < 0 or min(rank, wide, high) < 1 or offset != end:
                return False
            end += max(experts, 1) * rank * (wide + high)
        names = {path for path, *_ in self.parts}
        return len(names) == len(self.parts) == len(self.scalings) > 0 and len(self.run) == 4 * end


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Valid tables with up to two changes."""
    parts, scalings, elements = list[list[Any]](), list[float](), 0
    for path in draw(st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=3, unique=True)):
        experts, rank, wide, high = draw(st.tuples(st.integers(0, 3), *[st.integers(1, 3)] * 3))
        parts.append([path, experts, rank, wide, high, elements])
        scalings.append(draw(FACTORS))
        elements += max(experts, 1) * rank * (wide + high)
    table = Table(parts, scalings, run=hashlib.shake_256(b"a run").digest(4 * elements))
    for _ in range(draw(st.integers(0, 2))):
        change(draw, table)
    return table


def change(draw: st.DrawFn, table: Table) -> None:
    at, other = draw(st.tuples(*[st.integers(0, max(0, len(table.parts) - 1))] * 2))
    match draw(st.sampled_from(["field", "name", "lost", "twice", "turned round", "scalings", "run"])):
        case "field" if table.parts:
            table.parts[at][draw(st.integers(0, 5))] = draw(NUMBERS | st.text(max_size=4))
        case "name" if table.parts:
            table.parts[at][0] = table.parts[other][0]
        case "lost":
            del table.parts[at : at + 1], table.scalings[at : at + 1]
        case "twice":
            table.parts, table.scalings = table.parts * 2, table.scalings * 2
        case "turned round":
            table.parts.reverse()
        case "scalings":
            table.scalings = draw(st.lists(FACTORS, max_size=3))
        case "run":
            table.run = table.run[: draw(st.integers(0, len(table.run)))] + draw(st.binary(max_size=8))


def test_parts_that_fill_the_file_are_read_and_no_others(tmp_path: Path) -> None:
    found = Counter[bool]()

    @settings(max_examples=500)
    @given(tables())
    def check(table: Table) -> None:
        found[table.is_right] += 1
        told = _said(parts=table.parts, scalings=table.scalings, run=digest_of(memoryview(table.run)))
        blob = forged(told, table.run)
        if not table.is_right:
            with pytest.raises(CorruptFile):
                read(blob, tmp_path)
            return
        packed = read(blob, tmp_path)
        places = [
            [p.path, p.experts, p.rank, p.in_features, p.out_features, p.offset] for p in packed.header.layout.places
        ]
        assert (places, list(packed.header.scalings)) == (table.parts, table.scalings)
        assert bytes_of(packed.run) == table.run

    check()
    assert min(found[True], found[False]) > found.total() / 5


def test_a_layout_goes_by_the_bases_modules() -> None:
    layout = lay_out(MODULES, {"layers.1.q": 1, "layers.0.q": 2})
    assert [(place.path, place.offset, place.elements) for place in layout.places] == [
        ("layers.0.q", 0, 20), ("layers.1.q", 20, 10),
    ]  # fmt: skip
