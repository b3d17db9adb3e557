"""A node whose leader runs other code reports that, whatever the leader sends."""

from pathlib import Path

import msgspec
import pytest

from mint_contracts.errors import UnsupportedBase
from mint_contracts.settings import EngineSettings
from mint_engine.parallel.node import Node
from mint_engine.parallel.node_listener import NodeListener
from tests.engine.parallel.nodes import endpoint_of, worker
from tests.engine.running import save_base, settings_for
from tests.redis_process import free_port
from tests.waiting import PATIENCE_S


class Begin(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """As another edition may define it."""

    settings: EngineSettings
    base: str
    kind: str  # a field that no other edition has
    rank: int


def test_a_node_of_other_code_than_its_leaders_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both report the error; the node stays, since the leader may be replaced."""
    monkeypatch.setattr("mint_engine.parallel.node.edition", lambda: b"of another image")
    base, port = save_base(tmp_path / "base"), free_port()
    settings = settings_for(base, tensor_parallel_size=2, nodes=2)
    node = Node(1, Begin(settings, str(base), "new", 1), lambda *_: None)  # type: ignore[arg-type]
    listener = NodeListener(endpoint_of(settings, port), [node])
    try:
        with worker(settings, port, tmp_path) as other:
            with pytest.raises(
                UnsupportedBase, match="node 1: code: of this node's image differs from its leader's; give"
            ):
                node.expect_ready(PATIENCE_S)
            assert other.process.poll() is None
            assert other.has_logged("base_refused")
    finally:
        listener.close()
        node.hang_up()
        node.finish(5)
