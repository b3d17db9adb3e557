"""The digest that tells copies of a base apart without reading all of it."""

from pathlib import Path

import pytest

from mint_contracts.errors import SourceUnavailable
from mint_engine.sources.base_digest import SAMPLE, SMALL, base_digest

LARGE = SMALL + 5 * SAMPLE


def save(folder: Path, **files: bytes) -> str:
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content)
    return base_digest(folder)


def test_copies_are_alike_and_all_else_is_not(tmp_path: Path) -> None:
    found = [
        save(tmp_path / "one", config_json=b"{}", model_safetensors=b"abc"),
        save(tmp_path / "copy", config_json=b"{}", model_safetensors=b"abc", README_md=b"more", q8_gguf=b"abc"),
        save(tmp_path / "a byte", config_json=b"{}", model_safetensors=b"abd"),
        save(tmp_path / "a name", config_json=b"{}", weights_safetensors=b"abc"),
        save(tmp_path / "a file", config_json=b"{}", model_safetensors=b"abc", tokenizer_json=b"{}"),
        save(tmp_path / "between files", config_json=b"{}a", model_safetensors=b"bc"),
    ]
    assert found[0] == found[1]
    assert len(set(found)) == 5


def test_large_files_are_sampled_from_end_to_end(tmp_path: Path) -> None:
    """Separately trained bases differ everywhere; only their sizes are equal."""
    one = base_digest(write(tmp_path / "one.gguf", bytes(LARGE)))
    assert base_digest(write(tmp_path / "same" / "one.gguf", bytes(LARGE))) == one
    for at in (0, LARGE - 1):
        other = bytearray(LARGE)
        other[at] = 1
        assert base_digest(write(tmp_path / f"{at}" / "one.gguf", bytes(other))) != one
    assert base_digest(write(tmp_path / "longer" / "one.gguf", bytes(LARGE + 1))) != one


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="nowhere"):
        base_digest(tmp_path / "nowhere")
