"""Nodes copy a base at different times from a source that changes meanwhile: all end up with its current content."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mint_contracts import backends
from mint_contracts.errors import WrongBase
from mint_contracts.source import Source
from mint_engine.environment import Start
from mint_engine.parallel import worker
from mint_engine.parallel.messages import Begin
from mint_engine.parallel.worker import OwnBase
from mint_engine.sources.base_digest import base_digest
from mint_engine.sources.fetch_base import drop_stale, fetch_base
from tests.engine import stores
from tests.engine.made import edit_json
from tests.engine.ranged import Ranged
from tests.engine.running import save_base, settings_for


@pytest.fixture
def moving(tmp_path: Path) -> Iterator[tuple[Start, Start, Path]]:
    """The starts of a leader and a node, and the file whose change moves their source."""
    base = save_base(tmp_path / "base")
    backends.backend.cache_clear()
    with stores.serving(Ranged, tmp_path) as (address, _):
        source = Source(f"http://{address}/base")
        settings = settings_for(base, source=source, tensor_parallel_size=2, nodes=2)
        leader, node = (
            Start(settings, name, "leader:1", tmp_path / name, 1, 2, node=number)
            for number, name in enumerate(("leader", "node"))
        )
        yield leader, node, base / "generation_config.json"


def move(file: Path) -> None:
    edit_json(file, note="of another commit")


def copied(start: Start) -> Path:
    return fetch_base(start.settings.source, start.cache, lambda *_: None)


def begun(leader: Start) -> Begin:
    base = copied(leader)
    return Begin(leader.settings, str(base), base_digest(base), 1, 2, 64, 1)


def meet(leader: Start, node: Start, own: OwnBase) -> bool:
    """Whether both hold the same content; if not, each handles its copy as a real leader and node do."""
    begin, base = begun(leader), own.find()
    assert isinstance(base, Path)
    refused = worker._unlike(node, begin, base)
    if refused is None:
        return True
    assert isinstance(refused, WrongBase)
    own.dispute(begin.digest)
    drop_stale(leader.settings.source, leader.cache)
    return False


@pytest.mark.parametrize("first", ["leader", "node"])
def test_only_a_node_that_copied_before_the_source_moved_copies_again(
    moving: tuple[Start, Start, Path], first: str
) -> None:
    leader, node, file = moving
    own = OwnBase(node)
    copied({"leader": leader, "node": node}[first])
    move(file)
    newer = copied({"leader": node, "node": leader}[first])
    there = newer.stat().st_ino
    assert not meet(leader, node, own)
    assert meet(leader, node, own)
    assert newer.stat().st_ino == there, "what was right is not copied again"


def test_a_copy_that_was_damaged_goes_though_its_source_has_not_moved(moving: tuple[Start, Start, Path]) -> None:
    leader, node, _ = moving
    own = OwnBase(node)
    weights = copied(node) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    found = [meet(leader, node, own) for _ in range(3)]
    assert found == [False, False, True]
