"""Arrays in GGUF files are read as gguf's own reader does, and a file that ends within one is refused."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from mint_engine.model.files import LIBRARY_ERRORS
from mint_engine.model.gguf_arrays import ArrayReader
from tests.engine.ggufs import write

OWN: Any = ArrayReader.__base__
ARRAYS: dict[str, list[Any]] = {
    "strings": ["a", "", "ünï", "x" * 300], "bools": [True, False], "integers": [3, -4, 5], "numbers": [0.5, -1.25],
    "one": ["alone"],
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "arrays.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in ARRAYS.items():
        writer.add_array(key, value)
    writer.add_array("nothing", [])
    writer.add_string("after", "all of them")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_arrays_are_found_as_ggufs_own_reader_finds_them(file: Path, tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf")
    for path in (file, tmp_path / "tiny.gguf"):
        own, found = OWN(path), ArrayReader(path)
        assert list(found.fields) == list(own.fields)
        for key, field in own.fields.items():
            same = found.fields[key]
            assert (same.offset, same.data, same.types) == (field.offset, field.data, field.types)
            for one, other in zip(same.parts, field.parts, strict=True):
                assert one.dtype == other.dtype
                np.testing.assert_array_equal(one, other)
        assert [each.data_offset for each in found.tensors] == [each.data_offset for each in own.tensors]
    arrays = ArrayReader(file)
    assert {key: arrays.fields[key].contents() for key in ARRAYS} == ARRAYS


def test_a_file_that_ends_within_an_array_is_told_as_others_are(file: Path) -> None:
    whole = file.read_bytes()
    fields = ArrayReader(file).fields
    for size in range(fields["strings"].offset, fields["after"].offset):
        file.write_bytes(whole[:size])
        with pytest.raises(LIBRARY_ERRORS):
            ArrayReader(file)


def test_transformers_reads_by_it() -> None:
    import mint_engine.model.gguf_config  # noqa: F401 - everything that reads such files imports it

    assert gguf.GGUFReader is ArrayReader
