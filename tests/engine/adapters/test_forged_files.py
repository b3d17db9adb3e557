"""Forged files against an engine with slots: each gets an error that says what is wrong, and no part of it is ever in
a slot, whether a request asks for it or a wave wants it there."""

import hashlib
import io
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mint_contracts.errors import Rejected
from mint_contracts.records import Tier
from mint_engine.adapters import packed_file
from mint_engine.adapters.digests import UNKNOWN, digest_of
from mint_engine.adapters.packed_file import ALIGNMENT, PREFIX
from mint_engine.sources.fetch import CONFIG, PACKED, WEIGHTS
from tests.engine.made import peft_adapter, read_tiny
from tests.engine.tiers import NAMES, Scene, once, wanted
from tests.waiting import until

Change = Callable[[dict[str, Any]], object]
LENGTH = struct.Struct("<Q")
NAN = struct.pack("<f", float("nan"))


def cut(blob: bytes, *boundaries: int) -> dict[str, bytes]:
    """Copies of the file truncated at each boundary, just before and just after it; also with extra bytes."""
    places = {place + by for place in boundaries for by in (-1, 0, 1)} - {len(blob)}
    whole = {"a byte more": blob + b"\0", "written twice": blob * 2}
    return whole | {f"cut at {at}": blob[:at] for at in sorted(places) if 0 <= at < len(blob)}


def told(change: Change, body: bytes) -> bytes:
    """Change parsed JSON and write it again; the change may return a replacement."""
    table = json.loads(body)
    return json.dumps(change(table) or table, separators=(",", ":"), ensure_ascii=False).encode()


def part(index: int, field: int, value: object) -> Change:
    return lambda table: table["parts"][index].__setitem__(field, value)


def also(**fields: object) -> Change:
    return lambda table: table.update(fields)


PACKED_CHANGES: dict[str, Change] = {
    "a gap": lambda table: part(1, 5, table["parts"][1][5] + 4)(table),
    "an overlap": lambda table: part(1, 5, table["parts"][1][5] - 4)(table),
    "a larger rank": part(-1, 2, 5),
    "a smaller rank": part(-1, 2, 3),
    "a rank beyond the limit": part(-1, 2, 1 << 16),
    "a wider module": part(-1, 3, 33),
    "experts": part(-1, 1, 2),
    "another module": part(-1, 0, "model.layers.7.self_attn.q_proj"),
    "one module twice": lambda table: part(1, 0, table["parts"][0][0])(table),
    "modules turned round": lambda table: table["parts"].reverse(),
    "no modules": also(parts=[], scalings=[]),
    "a module less": lambda table: table.update(parts=table["parts"][1:], scalings=table["scalings"][1:]),
    "a scaling less": lambda table: table.update(scalings=table["scalings"][1:]),
    "another scaling": lambda table: table["scalings"].__setitem__(0, 99.0),
    "another dtype": also(dtype="bfloat16"),
    "a dtype of tomorrow": also(dtype="float4"),
    "another digest": also(run=UNKNOWN),
    "the digest of format 1": also(run="0" * 64),
    "no config": also(config=""),
    "the config of another": also(config='{"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":["q_proj"]}'),
    "a field of tomorrow": also(quantised=True),
    "a list": lambda table: [table],
}


def packed_forgeries(folder: Path) -> dict[str, bytes]:
    """Forgeries of an adapter's packed file: cut anywhere, or with false headers under correct digests."""
    file = io.BytesIO()
    packed_file.write(read_tiny(folder), file)
    blob = file.getvalue()
    magic, version, length, digest = PREFIX.unpack(blob[: PREFIX.size])
    body, run = blob[PREFIX.size : PREFIX.size + length], blob[-read_tiny(folder).run.nbytes :]

    def headed(text: bytes, run: bytes = run) -> bytes:
        head = PREFIX.pack(magic, version, len(text), hashlib.sha256(text).digest()) + text
        return head.ljust(-(-len(head) // ALIGNMENT) * ALIGNMENT, b"\0") + run

    def started(*prefix: Any) -> bytes:
        return PREFIX.pack(*prefix) + blob[PREFIX.size :]

    assert headed(told(lambda _: None, body)) == blob, "the tests forge what they say"
    broken = NAN + run[4:]
    return (
        cut(blob, 0, 8, 12, 16, PREFIX.size, PREFIX.size + length, len(blob) - len(run), len(blob))
        | {name: headed(told(change, body)) for name, change in PACKED_CHANGES.items()}
        | {
            "another magic": started(b"MINTLOKI", version, length, digest),
            "another version": started(magic, version + 1, length, digest),
            "a header of no length": started(magic, version, 0, digest),
            "a header a byte longer": started(magic, version, length + 1, digest),
            "a header longer than the file": started(magic, version, (1 << 32) - 1, digest),
            "a header's digest of another": started(magic, version, length, digest[::-1]),
            "weights of another": blob[: -len(run)] + run[::-1],
            "NaN under its digest": headed(told(also(run=digest_of(memoryview(broken))), body), broken),
            "zeros": bytes(len(blob)),
        }
    )


def entry(field: str, value: object) -> Change:
    return lambda table: table[min(table.keys() - {"__metadata__"})].__setitem__(field, value)


def swapped(table: dict[str, Any]) -> None:
    one, other = sorted(table.keys() - {"__metadata__"})[:2]
    table[one]["shape"], table[other]["shape"] = table[other]["shape"], table[one]["shape"]


def renamed(name: str) -> Change:
    return lambda table: table.__setitem__(name, table.pop(min(table.keys() - {"__metadata__"})))


SAFETENSORS_CHANGES: dict[str, Change] = {
    "offsets that begin late": entry("data_offsets", [4, 516]),
    "offsets beyond the file": entry("data_offsets", [1 << 40, (1 << 40) + 512]),
    "offsets turned round": entry("data_offsets", [512, 0]),
    "offsets below zero": entry("data_offsets", [-512, 0]),
    "a shape that overflows": entry("shape", [1 << 61, 1 << 61]),
    "a shape of none": entry("shape", []),
    "a shape of another size": entry("shape", [4, 33]),
    "a shape turned round": entry("shape", [32, 4]),
    "two shapes swapped": swapped,
    "another dtype": entry("dtype", "BF16"),
    "a dtype that is not served": entry("dtype", "I8"),
    "a dtype that is none": entry("dtype", None),
    "a module of tomorrow": renamed("base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"),
    "a tensor that is no LoRA": renamed("lm_head.weight"),
    "no tensors": lambda table: table.clear(),
    "a list": lambda table: [table],
}


def safetensors_forgeries(folder: Path) -> dict[str, bytes]:
    """Forgeries of an adapter's safetensors file: cut anywhere, or with false headers."""
    blob = (folder / WEIGHTS).read_bytes()
    [length] = LENGTH.unpack(blob[: LENGTH.size])
    body, tensors = blob[LENGTH.size : LENGTH.size + length], blob[LENGTH.size + length :]
    return (
        cut(blob, 0, LENGTH.size, LENGTH.size + length, len(blob) - len(tensors) // 2, len(blob))
        | {
            name: LENGTH.pack(len(text)) + text + tensors
            for name, text in ((name, told(change, body)) for name, change in SAFETENSORS_CHANGES.items())
        }
        | {
            f"a header of {claimed} bytes": LENGTH.pack(claimed) + blob[LENGTH.size :]
            for claimed in (0, 1, length - 1, length + 1, 1 << 31, (1 << 64) - 1)
        }
        | {
            "a pickle": b"PK\x03\x04" + blob[4:],
            "NaN": blob[:-4] + NAN,
            "zeros": bytes(len(blob)),
        }
    )


Forge = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    peft_adapter(folder)
    return folder


class Watch:
    """An engine of three slots, two of them taken, and the contents that every slot must keep."""

    def __init__(self, here: Scene) -> None:
        self.here = here
        self.before = here.slots.memory.clone()
        self.tables = [table.clone() for table in (here.slots.places, here.slots.ranks, here.slots.scalings)]
        self.loads = list(here.slots.loads)
        assert sorted(self.before.any(1).tolist()) == [False, True, True]

    def check(self, name: str) -> None:
        """Check that nothing of any forged file has been stored anywhere."""
        slots, residency = self.here.slots, self.here.residency
        assert torch.equal(slots.memory, self.before), name
        for table, before in zip((slots.places, slots.ranks, slots.scalings), self.tables, strict=True):
            assert torch.equal(table, before), name
        assert slots.loads == self.loads, name
        residency.check()
        disk = self.here.loader.disk
        assert len(list(disk._folder.iterdir())) == len(disk.ledger) == 2, name


async def watch(scene: Callable[..., Scene]) -> Watch:
    here = scene(slots=3)
    for name in NAMES[:2]:
        await once(here, name)
    return Watch(here)


def stored(store: Path, good: Path, file: str, forged: dict[str, bytes]) -> list[str]:
    """Put each forgery into the store beside a valid config; return their adapters' names."""
    names = ["forged/" + re.sub(r"[^a-z0-9]+", "-", kind.lower()) for kind in forged]
    for name, blob in zip(names, forged.values(), strict=True):
        (store / name).mkdir(parents=True)
        (store / name / CONFIG).write_bytes((good / CONFIG).read_bytes())
        (store / name / file).write_bytes(blob)
    assert len(names) > 30
    return names


KINDS = pytest.mark.parametrize(
    ("file", "forge"), [(PACKED, packed_forgeries), (WEIGHTS, safetensors_forgeries)], ids=["packed", "safetensors"]
)


@KINDS
async def test_a_forged_file_is_refused_and_no_slot_has_any_of_it(
    scene: Callable[..., Scene], store: Path, good: Path, file: str, forge: Forge
) -> None:
    engine = await watch(scene)
    for name in stored(store, good, file, forge(good)):
        with pytest.raises(Rejected, match=r": .{10,}") as refused:
            await once(engine.here, name)
        assert name in refused.value.subject
        engine.check(name)
    assert await once(engine.here, NAMES[0]) in engine.loads


@KINDS
async def test_a_wave_of_forged_files_takes_no_slot(
    scene: Callable[..., Scene], store: Path, good: Path, file: str, forge: Forge
) -> None:
    """All at once, as many as may load in parallel: each is reported as failed, and no served adapter is moved."""
    names = stored(store, good, file, forge(good))
    engine = await watch(scene)
    engine.here.residency.want(wanted(store, *names))
    await until(lambda: all(engine.here.failure(name) for name in names))
    engine.check("a wave")
    assert {engine.here.tier(name) for name in names} == {Tier.REMOTE}
