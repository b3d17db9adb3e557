"""Bytes that claim to be a safetensors file are read exactly as safetensors reads them, or refused clearly."""

import copy
import hashlib
import json
import math
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save

from mint_contracts.errors import CorruptFile, MintError, UnsafeFormat, UnsupportedAdapter
from mint_engine.adapters.header import DTYPE_BYTES, LENGTH_BYTES, MAX_HEADER_BYTES, Tensors, header_bytes, parse
from mint_engine.sources.fetch import WEIGHTS
from tests.engine.made import peft_adapter, read_tiny

GOOD = save({"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, metadata={"format": "pt"})


def read(blob: bytes) -> Tensors:
    length = header_bytes(blob, "file")
    return parse(blob[LENGTH_BYTES : LENGTH_BYTES + length], "file", file_bytes=len(blob))


def test_a_header_tells_each_tensors_place() -> None:
    header = read(GOOD)
    assert {name: (spec.dtype, spec.shape) for name, spec in header.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("BF16", (4,)),
    }
    for name, spec in header.items():
        assert GOOD[spec.begin : spec.end] == load(GOOD)[name].view(torch.uint8).numpy().tobytes()


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(blob: bytes) -> None:
    try:
        header = read(blob)
    except (CorruptFile, UnsafeFormat):
        return
    assert header.keys() == load(blob).keys()


@given(st.data())
def test_a_file_with_any_bytes_changed_is_refused_or_read_as_safetensors_does(data: st.DataObject) -> None:
    blob = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(blob)), st.integers(0, len(blob))))
    try:
        header = read(bytes(blob[:cut]))
    except MintError:
        return
    try:
        reference = load(bytes(blob[:cut]))
    except (SafetensorError, UnicodeDecodeError) as error:
        raise AssertionError(f"we take what safetensors refuses: {error}") from error
    assert {name: tuple(tensor.shape) for name, tensor in reference.items()} == {
        name: spec.shape for name, spec in header.items()
    }


ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(-2, 70) | st.integers(-10, 2**70) | st.floats(), max_size=10)
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "dtype": st.sampled_from([*DTYPE_BYTES, "I8", "", None, []]),
    "shape": st.lists(st.integers(0, 3), max_size=10) | ANYTHING,
    "data_offsets": st.lists(st.integers(0, 40), max_size=3) | ANYTHING,
    "strides": ANYTHING,
}
Entries = dict[str, Any]


@st.composite
def tables(draw: st.DrawFn) -> tuple[Entries, int]:
    """Consecutive tensors listed in any order, with up to two changes; also the number of changes."""
    entries, place = Entries(), 0
    for name in draw(st.lists(st.text(max_size=5), max_size=4, unique=True)):
        dtype, shape = draw(st.sampled_from(sorted(DTYPE_BYTES))), draw(st.lists(st.integers(0, 3), max_size=4))
        end = place + DTYPE_BYTES[dtype] * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, end]}
        place = end
    changes = draw(st.integers(0, 2)) if entries else 0
    for _ in range(changes):
        change(draw, entries)
    return dict(draw(st.permutations(list(entries.items())))), changes


def change(draw: st.DrawFn, entries: Entries) -> None:
    name = draw(st.sampled_from(sorted(entries)))
    entry = entries[name]
    match draw(st.sampled_from(["entry", "field", "moved", "lost", "twice"])):
        case "field" if isinstance(entry, dict):
            field = draw(st.sampled_from(sorted(FIELDS)))
            entry[field] = draw(FIELDS[field])
        case "moved" if isinstance(entry, dict) and isinstance(entry.get("data_offsets"), list):
            by = draw(st.integers(-4, 4))
            entry["data_offsets"] = [each + by for each in entry["data_offsets"]]
        case "lost" if isinstance(entry, dict):
            entry.pop(draw(st.sampled_from(sorted(FIELDS))), None)
        case "twice":
            entries[draw(st.text(max_size=5))] = copy.deepcopy(entry)
        case _:
            entries[name] = draw(ANYTHING)


def test_a_table_is_refused_or_read_as_safetensors_does() -> None:
    found = Counter[str]()

    @settings(max_examples=500)
    @given(tables())
    def check(told: tuple[Entries, int]) -> None:
        entries, changes = told
        text = json.dumps(entries).encode()
        try:
            header = parse(text, "file")
        except CorruptFile:
            assert changes, "what is right is read"
            found["refused"] += 1
            return
        found["read"] += 1
        head = struct.pack("<Q", len(text)) + text
        blob = head + hashlib.shake_256(b"tensors").digest(
            max((spec.end for spec in header.values()), default=len(head)) - len(head)
        )
        assert {name: (spec.shape, blob[spec.begin : spec.end]) for name, spec in header.items()} == {
            name: (tuple(tensor.shape), tensor.flatten().view(torch.uint8).numpy().tobytes())
            for name, tensor in load(blob).items()
        }
        assert sum(spec.end - spec.begin for spec in header.values()) == len(blob) - len(head)

    check()
    assert min(found["read"], found["refused"]) > found.total() / 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"[]", "not a JSON object"),
        (b"{" * 100_000, "unreadable"),
        (b'{"a": ' * 100_000, "unreadable"),
        (b"\xff\xfe", "unreadable"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
         "unreadable"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "gap or overlap"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}',
         "gap or overlap"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', "its shape needs 8"),
        (b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', "natural numbers"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', "takes -4 bytes"),
        (b'{"a":{"dtype":"F32","shape":[4611686018427387905,4],"data_offsets":[0,16]}}', "natural numbers"),
        (b'{"a":{"dtype":"F32","shape":[4611686018427387903,4],"data_offsets":[0,16]}}', "its shape needs"),
    ],
)  # fmt: skip
def test_each_wrong_header_is_told(text: bytes, told: str) -> None:
    with pytest.raises(CorruptFile, match=told):
        parse(text, "file")


@pytest.mark.parametrize("length", [0, 1, MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_a_header_of_absurd_length_is_never_asked_for(length: int) -> None:
    with pytest.raises(CorruptFile, match="claims"):
        header_bytes(struct.pack("<Q", length), "file")


def test_a_header_of_all_experts_of_a_30b_model_is_read_whole() -> None:
    table, place = {}, 0
    for index in range(37_248):
        table[f"base_model.model.model.layers.{index % 48}.mlp.experts.{index}.down_proj.lora_A.weight"] = {
            "dtype": "BF16", "shape": [1, 8], "data_offsets": [place, place + 16],
        }  # fmt: skip
        place += 16
    text = json.dumps(table).encode()
    assert len(text) < MAX_HEADER_BYTES / 4
    assert len(parse(text, "file", most=37_248)) == 37_248


EMPTY = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
MANY: dict[str, bytes] = {
    "tensors": b"{" + b",".join(b'"%d":%s' % (n, EMPTY) for n in range(90_000)) + b"}",
    "numbers": b"{" + b",".join(b'"%d":0' % n for n in range(700_000)) + b"}",
    "dimensions": b'{"a":{"dtype":"F32","shape":[' + b"1," * 700_000 + b'1],"data_offsets":[0,4]}}',
    "lists": b'{"a":' + b"[" * 700_000 + b"]" * 700_000 + b"}",
    "metadata": b'{"__metadata__":{' + b",".join(b'"%d":""' % n for n in range(700_000)) + b"}}",
}  # fmt: skip


@pytest.mark.parametrize("text", MANY.values(), ids=MANY)
def test_a_header_of_far_more_than_the_base_takes_is_refused_for_that(text: bytes, tmp_path: Path) -> None:
    """And not for what else is wrong with it: parsed it would take hundreds of bytes for a value of two."""
    peft_adapter(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(UnsupportedAdapter, match="values, too many for the at most"):
        read_tiny(tmp_path)
