"""Which namespaces may be read is asked again and again; an API server that does not answer changes nothing."""

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mint_operator import kube, namespaces
from mint_operator.kube import Kube
from tests.operator.stage import Stage
from tests.relay import relaying
from tests.waiting import PATIENCE_S, until


async def test_a_namespace_stays_left_out_while_the_api_server_does_not_answer(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespaces, "LOOK_S", 0.01)
    kept, gone = stage.namespace, stage.server.namespace(f"{stage.namespace}-gone")
    account, answers = stage.account(tmp_path), list[bool | None]()
    stage.let_in(kept)
    with relaying(urlsplit(stage.server.url).netloc) as relay:
        account.write_text(account.read_text().replace(stage.server.url, f"https://127.0.0.1:{relay.port}"))
        api = kube.connect(str(account))

        async def asked(kind: str, namespace: str) -> bool | None:
            answers.append(await Kube.may_list(api, kind, namespace))
            return answers[-1]

        monkeypatch.setattr(api, "may_list", asked)
        assert await namespaces.readable(api, [kept, gone]) == (kept,)
        waiting = asyncio.create_task(namespaces.changed(api, [kept, gone], (kept,)))
        relay.fault = "cut"
        await until(lambda: waiting.done() or answers[-4:] == [None] * 4)
        relay.heal()
        await until(lambda: waiting.done() or set(answers[-4:]) == {True, False})
        assert not waiting.done()
        stage.let_in(gone)
        await asyncio.wait_for(waiting, PATIENCE_S)
        api.close()
