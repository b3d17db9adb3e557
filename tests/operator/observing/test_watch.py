"""Kopf's thread: the liveness probe reports whether the loop makes progress, and events mark their part."""

import asyncio
import getpass
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from mint_operator.observing.dirt import RESYNC, Dirt, Part
from mint_operator.observing.feed import Feed
from mint_operator.observing.watch import STALLED_S, Watch
from tests.operator.stage import Stage, base_model, until
from tests.redis_process import free_port


def probe(port: int) -> int:
    """Return the HTTP status of the liveness endpoint; 0 while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.parametrize(("age_s", "status"), [(None, 200), (1.0, 200), (STALLED_S + 1, 500)])
async def test_a_loop_that_stalls_fails_the_probe(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, age_s: float | None, status: int
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(stage.server.kubeconfig))
    port = free_port()
    last = None if age_s is None else time.monotonic() - age_s
    watch = Watch(Dirt(), Feed(), [stage.namespace], f"127.0.0.1:{port}", progress=lambda: last, ended=lambda: None)
    watch.start()
    try:

        async def answered() -> int:
            return await asyncio.to_thread(probe, port)

        assert await until("the probe to answer", answered) == status
    finally:
        await asyncio.to_thread(watch.stop)


async def test_it_watches_for_a_user_who_has_a_number_and_no_name(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 65532")

    monkeypatch.setattr(getpass, "getuser", nameless)
    monkeypatch.setenv("KUBECONFIG", str(stage.server.kubeconfig))
    port, ended = free_port(), threading.Event()
    watch = Watch(Dirt(), Feed(), [stage.namespace], f"127.0.0.1:{port}", progress=lambda: None, ended=ended.set)
    watch.start()
    try:

        async def probed() -> int:
            return await asyncio.to_thread(probe, port) or ended.is_set()

        assert await until("the probe to answer", probed) == 200
    finally:
        await asyncio.to_thread(watch.stop)


async def test_events_mark_their_part(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(stage.server.kubeconfig))
    dirt, feed = Dirt(resync_s=3600.0), Feed()
    watch = Watch(
        dirt, feed, [stage.namespace], f"127.0.0.1:{free_port()}", progress=lambda: None, ended=lambda: None
    )
    watch.start()
    try:
        await dirt.take()
        stage.apply(base_model())

        async def fed() -> bool:
            await dirt.take()
            return any(news.kind == "BaseModel" and not news.gone for news in feed.take())

        await until("the BaseModel's event", fed)
        await stage.once()  # makes the StatefulSet, and writes the base's status
        seen: set[Part] = set()

        async def marked() -> bool:
            parts = await dirt.take()
            assert not parts >= RESYNC, "no event came, only the resync"
            seen.update(parts)
            return Part.WORKLOADS in seen

        await until("the StatefulSet's event", marked)
    finally:
        await asyncio.to_thread(watch.stop)


async def test_it_outlasts_an_api_server_that_is_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mint_operator.observing.watch.RETRY_S", 0.01)
    tried, ended = list[socket.socket](), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as away:
        threading.Thread(target=refuse, args=(away, tried), daemon=True).start()
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        (tmp_path / "config").write_text(kubeconfig(f"http://127.0.0.1:{away.getsockname()[1]}"))
        watch = Watch(Dirt(), Feed(), ["a"], f"127.0.0.1:{free_port()}", progress=lambda: None, ended=ended.set)
        watch.start()
        try:

            async def tried_often() -> bool:
                return len(tried) > 50 or ended.is_set()

            await until("many attempts", tried_often)
            assert not ended.is_set()
        finally:
            await asyncio.to_thread(watch.stop)


def kubeconfig(server: str) -> str:
    """Return one with a single context."""
    context = {"cluster": "it", "user": "it"}
    lists = {
        "clusters": [{"name": "it", "cluster": {"server": server}}],
        "users": [{"name": "it", "user": {}}],
        "contexts": [{"name": "it", "context": context}],
    }
    return json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "it", **lists})


def refuse(door: socket.socket, tried: list[socket.socket]) -> None:
    """Close every connection at once."""
    with suppress(OSError):
        while True:
            connection, _ = door.accept()
            tried.append(connection)
            connection.close()
