"""An adapter that another node cannot store for now: that load fails, and nothing else does."""

import os
import resource
import socket
import threading
from pathlib import Path

import pytest
import torch

from mint_contracts.errors import SourceUnavailable
from mint_engine.parallel.content import receive_content, send_content
from tests.engine.parallel.learning import engine
from tests.engine.parallel.playing import TURNS, draw_adapter, play
from tests.engine.running import save_base
from tests.waiting import join

FEW = 3  # descriptors, as many as each process already has


def test_another_node_that_can_make_no_file_fails_that_load_alone(tmp_path: Path) -> None:
    with engine(save_base(tmp_path), 2, nodes=2) as two:
        packed = draw_adapter(two.slots, 4)
        two.slots.load(0, packed)
        expected = play(two.generation._forward, TURNS)
        [node] = two.workers
        most = resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, (FEW, most[1]))
        with pytest.raises(SourceUnavailable, match=r"cannot be kept on another node \(.*Too many open files\)"):
            two.slots.load(1, packed)
        resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, most)
        assert not two.lost
        two.slots.clear(1)
        assert torch.equal(play(two.generation._forward, TURNS), expected)
        two.slots.load(1, draw_adapter(two.slots, 9))
        assert node.process.poll() is None
        assert node.has_logged("adapter_not_received")


def test_content_that_can_not_be_written_is_read_to_its_end(tmp_path: Path) -> None:
    """Whatever comes next over the connection is read from its beginning."""
    (tmp_path / "adapter").write_bytes(os.urandom((1 << 20) + 7))
    ours, theirs = socket.socketpair()
    with (tmp_path / "adapter").open("rb") as file, (tmp_path / "adapter").open("rb") as unwritable, ours, theirs:
        sending = threading.Thread(target=send_content, args=(theirs, file.fileno()))
        sending.start()
        with pytest.raises(SourceUnavailable, match=r"revision x: cannot be kept on another node .*; retrying"):
            receive_content(ours, unwritable.fileno(), "revision x")
        join(sending)
        theirs.sendall(b"next")
        assert ours.recv(8) == b"next"
