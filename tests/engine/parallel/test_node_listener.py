"""Only an engine's own nodes can join its leader, and they join no other: real sockets, each side's own code."""

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from mint_contracts import settings as contracts
from mint_contracts.errors import CorruptFile, EngineUnavailable
from mint_engine.environment import read_environment
from mint_engine.parallel import messages
from mint_engine.parallel.content import receive_content, send_content
from mint_engine.parallel.edition import edition
from mint_engine.parallel.handshake import (
    AuthenticationFailed,
    Channel,
    Hello,
    RanksEndpoint,
    accept,
    authenticate,
    key_of,
)
from mint_engine.parallel.messages import Begin, End, Ready
from mint_engine.parallel.node import Node, is_of_node
from mint_engine.parallel.node_listener import NodeListener
from mint_engine.parallel.rank import refusal
from tests.engine.parallel.nodes import group_environment
from tests.engine.running import settings_for
from tests.redis_process import free_port

LIMIT_S = 60.0  # only failing tests wait this long
KEY = key_of("a password", "team/smol")
BEGIN = Begin(settings_for(Path("/base"), nodes=2, tensor_parallel_size=4), "/base", "digest", 2, 4, 64, 1)


@contextmanager
def node_to_be() -> Iterator[tuple[Node, int]]:
    """Node 1, as its leader waits for it, and the port at which it may connect."""
    port, node = free_port(), Node(1, BEGIN, lambda *_: None)
    listener = NodeListener(RanksEndpoint(port, KEY), [node])
    try:
        yield node, port
    finally:
        listener.close()
        node.hang_up()
        node.finish(5)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), LIMIT_S)


def come_in(port: int, key: bytes = KEY) -> list[socket.socket]:
    """Both connections of a node that has read its leader's edition."""
    found = []
    for channel in Channel:
        found.append(connect(port))
        authenticate(found[-1], key, Hello(1, channel))
    assert messages.receive(found[0]) == edition()
    return found


def test_a_node_comes_in_and_is_told_to_begin_whoever_else_is_there() -> None:
    with node_to_be() as (node, port):
        silent, rude = connect(port), connect(port)
        rude.sendall(os.urandom(4096))
        with pytest.raises((AuthenticationFailed, OSError)):
            come_in(port, key_of("another password", "team/smol"))
        with pytest.raises((AuthenticationFailed, OSError)):
            come_in(port, key_of("a password", "team/other"))
        steps, _slots = come_in(port)
        assert messages.decode_command(messages.receive(steps)) == BEGIN
        assert node.address == "127.0.0.1"
        messages.send(steps, Ready())
        node.expect_ready(LIMIT_S)
        for each in (silent, rude):
            each.close()


@pytest.mark.parametrize("number", [1, 7], ids=["one that is there", "none of the engine's"])
def test_a_node_is_let_in_once_and_only_if_it_is_of_the_engine(number: int) -> None:
    with node_to_be() as (_, port):
        steps, _slots = come_in(port)
        assert messages.decode_command(messages.receive(steps)) == BEGIN
        refused = connect(port)
        authenticate(refused, KEY, Hello(number, Channel.STEPS))
        assert refused.recv(1) == b""
        steps.settimeout(0.1)
        with pytest.raises(TimeoutError):  # the first one stays
            steps.recv(1)


def test_a_node_that_broke_off_halfway_may_connect_again() -> None:
    with node_to_be() as (_, port):
        half = connect(port)
        authenticate(half, KEY, Hello(1, Channel.STEPS))
        half.close()
        steps, _slots = come_in(port)
        assert messages.decode_command(messages.receive(steps)) == BEGIN


def test_a_connection_that_is_greeted_late_takes_no_newer_ones_place() -> None:
    """As when a node has broken off and is back before the thread that greets its first connection goes on."""
    node = Node(1, BEGIN, lambda *_: None)
    pairs = [socket.socketpair() for _ in range(3)]
    (old, _), (steps, theirs), (slots, _) = pairs
    assert node.enter(Channel.STEPS, steps, 1)
    assert not node.enter(Channel.STEPS, old, 0)
    assert node.enter(Channel.SLOTS, slots, 2)
    assert messages.receive(theirs) == edition()
    assert messages.decode_command(messages.receive(theirs)) == BEGIN
    node.finish(5)
    for each in itertools.chain(*pairs):
        each.close()


def test_a_node_that_does_not_come_is_told_of_by_its_name() -> None:
    with node_to_be() as (node, _), pytest.raises(EngineUnavailable, match="node 1: of this engine did not connect"):
        node.expect_ready(0.1)


def test_a_nodes_report_on_its_files_does_not_concern_the_leaders() -> None:
    with node_to_be() as (node, port):
        steps, _slots = come_in(port)
        messages.receive(steps)
        messages.send(steps, refusal(CorruptFile("base file /b", "cannot be read from its disk")))
        with pytest.raises(CorruptFile, match="node 1: base file /b: cannot be read") as told:
            node.expect_ready(LIMIT_S)
    assert is_of_node(told.value)
    assert not is_of_node(CorruptFile("rank 1", "base file /b: cannot be read from its disk"))


def test_a_node_that_goes_is_missed_at_once() -> None:
    gone = threading.Event()
    port = free_port()
    node = Node(1, BEGIN, lambda *_: gone.set())
    listener = NodeListener(RanksEndpoint(port, KEY), [node])
    steps, _slots = come_in(port)
    messages.receive(steps)
    messages.send(steps, Ready())
    node.expect_ready(LIMIT_S)
    node.watch()
    steps.close()
    assert gone.wait(LIMIT_S)
    listener.close()
    node.hang_up()
    node.finish(5)


def test_a_node_that_is_dismissed_hears_so_before_the_end() -> None:
    with node_to_be() as (node, port):
        steps, _slots = come_in(port)
        messages.receive(steps)
        node.dismiss()
        node.hang_up()
        assert messages.decode_command(messages.receive(steps)) == End()
        with pytest.raises(EOFError):
            messages.receive(steps)


def in_pair(act: Callable[[socket.socket], object]) -> socket.socket:
    """One end of a TCP connection; `act` runs with the other end on a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    ours = connect(listener.getsockname()[1])
    theirs, _ = listener.accept()
    listener.close()

    def run() -> None:
        with suppress(AuthenticationFailed, OSError):
            act(theirs)

    threading.Thread(target=run, daemon=True).start()
    return ours


def test_a_leader_that_does_not_know_the_key_is_a_stranger_too() -> None:
    def pose(theirs: socket.socket) -> None:
        theirs.sendall(bytes(32))
        theirs.recv(1024)
        theirs.sendall(bytes(32))

    with pytest.raises(AuthenticationFailed, match="key"):
        authenticate(in_pair(pose), KEY, Hello(1, Channel.STEPS))


def test_an_answer_to_one_leader_proves_nothing_to_another() -> None:
    """Each leader sends a new challenge, so an overheard answer is useless."""
    overheard: list[bytes] = []

    def listen(theirs: socket.socket) -> None:
        theirs.sendall(bytes(32))
        overheard.append(theirs.recv(1024))
        theirs.close()

    with pytest.raises((AuthenticationFailed, OSError)):
        authenticate(in_pair(listen), KEY, Hello(1, Channel.STEPS))
    with pytest.raises(AuthenticationFailed, match="key"):
        accept(in_pair(lambda theirs: theirs.sendall(overheard[0])), KEY)


def test_a_peer_that_trickles_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def trickle(theirs: socket.socket) -> None:
        while True:  # never ends, so waiting for its end would hang
            theirs.sendall(b"x")
            time.sleep(0.05)

    monkeypatch.setattr("mint_engine.parallel.handshake.HANDSHAKE_S", 0.5)
    with pytest.raises(OSError, match="timed out"):
        accept(in_pair(trickle), KEY)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 7])
def test_content_arrives_as_it_was_sent(size: int, tmp_path: Path) -> None:
    whole = os.urandom(size)
    (tmp_path / "adapter").write_bytes(whole)
    with (tmp_path / "adapter").open("rb") as file:
        file.read(1)  # content is sent in full wherever the descriptor stands
        source = in_pair(lambda theirs: send_content(theirs, file.fileno()))
        into = os.memfd_create("adapter")
        receive_content(source, into, "revision x")
    assert os.pread(into, size + 1, 0) == whole
    os.close(into)


def test_content_that_was_damaged_on_its_way_is_refused_and_what_follows_is_read(tmp_path: Path) -> None:
    (tmp_path / "adapter").write_bytes(b"an adapter")

    def damage(theirs: socket.socket) -> None:
        ours, sent = socket.socketpair()
        with (tmp_path / "adapter").open("rb") as file:
            send_content(sent, file.fileno())
        theirs.sendall(ours.recv(1024).replace(b"adapter", b"adopter"))
        messages.send(theirs, Ready())

    source, into = in_pair(damage), os.memfd_create("adapter")
    with pytest.raises(CorruptFile, match="revision x"):
        receive_content(source, into, "revision x")
    assert messages.decode_answer(messages.receive(source)) == Ready()
    os.close(into)


def start(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], nodes: int = 2) -> Hello:
    told = msgspec.structs.replace(BEGIN.settings, nodes=nodes)
    monkeypatch.setenv(contracts.ENGINE_SETTINGS, msgspec.json.encode(told).decode())
    for name in (contracts.LEADER_ADDRESS, contracts.WORKER_INDEX, contracts.GROUP_SIZE):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = read_environment(1, 2, 3)
    assert (found.endpoint is None) == (nodes == 1)
    return Hello(found.node, Channel.STEPS)


def test_a_pod_knows_which_node_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start(monkeypatch, {}, nodes=1).node == 0
    assert start(monkeypatch, group_environment(0, 2)).node == 0
    assert start(monkeypatch, group_environment(1, 2)).node == 1


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({}, "LWS_LEADER_ADDRESS is ''"),
        (group_environment(1, 2) | {"LWS_WORKER_INDEX": "one"}, "LWS_WORKER_INDEX is 'one'"),
        (group_environment(1, 3), "LWS_GROUP_SIZE is 3"),
        (group_environment(2, 2), "LWS_WORKER_INDEX 2"),
    ],
)
def test_a_pod_of_another_group_does_not_start(
    environment: dict[str, str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=why):
        start(monkeypatch, environment)
