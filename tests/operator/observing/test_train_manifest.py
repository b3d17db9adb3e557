"""Manifests of policies as the operator reads them over HTTP, from the test's own server."""

import asyncio
import io
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest
from pyarrow import DictionaryArray, Table, parquet

from mint_contracts.errors import CorruptFile, InvalidRequest
from mint_contracts.records import Failure
from mint_contracts.training import Length, Loss, Policy, Reward
from mint_operator.observing import manifest_file, train_manifest
from mint_operator.observing.train_manifest import MOST_POLICIES, Manifests, parsed, read
from tests.waiting import until


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[str]:
    """A folder served over HTTP; yields its URL."""
    (tmp_path / "policies.jsonl").write_text('{"name": "acme/a", "rank": 4}\n\n{"name": "acme/b"}\n')
    (tmp_path / "broken.jsonl").write_text('{"name": "acme/a"}\n{"rank": 4}\n')
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


async def test_policies_are_read_a_line_each(shelf: str) -> None:
    assert await read("team", f"{shelf}/policies.jsonl") == (Policy("acme/a", rank=4), Policy("acme/b"))


def test_a_byte_order_mark_is_no_part_of_a_manifest() -> None:
    assert parsed("s3://b/m.jsonl", b'\xef\xbb\xbf{"name": "acme/a"}\r\n') == (Policy("acme/a"),)


def test_a_manifest_names_no_config_maps() -> None:
    line = b'{"name": "acme/a", "dataset": {"configMap": {"name": "own"}}}'
    with pytest.raises(InvalidRequest, match="line 2 names a ConfigMap"):
        parsed("s3://b/m.jsonl", b'{"name": "acme/b"}\n' + line)


def test_a_policy_may_bring_its_own_loss() -> None:
    line = b'{"name": "acme/a", "loss": {"type": "dr_grpo", "clipHigh": 0.3, "filterGroups": false}}\n'
    own = Loss(type="dr_grpo", clip_high=0.3, filter_groups=False)
    assert parsed("s3://b/m.jsonl", line + b'{"name": "acme/b"}') == (Policy("acme/a", loss=own), Policy("acme/b"))


def test_policies_in_parquet_are_those_of_the_same_lines() -> None:
    """There, each has null for whatever others of them set: in a dataset, in rewards and in parts of a sum."""
    rows: list[dict[str, Any]] = [
        {"name": "acme/a", "dataset": {"uri": "s3://b/x.jsonl", "templateVariables": {"effort": "low"}}},
        {"name": "acme/b", "dataset": {"lines": ['{"q": "1+1?"}'], "promptField": "q"}, "rank": 4},
        {"name": "acme/c", "reward": {"regex": {"pattern": "!", "full": True}}, "loss": {"clipHigh": 0.3}},
        {"name": "acme/d", "reward": {"regex": {"pattern": "!"}}, "loss": {"type": "grpo"}},
        {"name": "acme/e", "reward": {"sum": [
            {"weight": 1.0, "reward": {"length": {"target": 5, "tolerance": 5}}},
            {"weight": 0.5, "reward": {"service": {"address": "judge:1"}}},
        ]}},
    ]  # fmt: skip
    columns = {name: [each.get(name) for each in rows] for name in ("name", "dataset", "rank", "reward", "loss")}
    parquet.write_table(Table.from_pydict(columns), packed := io.BytesIO())
    told = parsed("s3://b/m.jsonl", msgspec.json.Encoder().encode_lines(rows))
    assert parsed("s3://b/m.parquet", packed.getvalue()) == told


@pytest.mark.parametrize(
    ("loss", "why"),
    [
        (b'{"type": "best"}', "Invalid enum value 'best' - at `$.loss.type`"),
        (b'{"clipHigh": -1}', "Expected `float` >= 0.0 - at `$.loss.clipHigh`"),
        (b'{"beta": 0.1}', "unknown field `beta` - at `$.loss`"),
    ],
)
def test_a_loss_that_there_can_not_be_is_refused_naming_the_line_and_the_field(loss: bytes, why: str) -> None:
    with pytest.raises(InvalidRequest, match="line 2 is not a valid policy") as refused:
        parsed("s3://b/m.jsonl", b'{"name": "acme/a"}\n{"name": "acme/b", "loss": ' + loss + b"}")
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("reward", "why"),
    [
        (b'{"service": {"address": "judge:1", "retries": 1000000000}}', "<= 10 - at `$.reward.service.retries`"),
        (b'{"service": {"address": "judge:1", "timeoutS": 0}}', "> 0.0 - at `$.reward.service.timeoutS`"),
        (b'{"service": {"address": ""}}', "at `$.reward.service.address`"),
        (b'{"length": {"target": 5, "tolerance": 0}}', ">= 1 - at `$.reward.length.tolerance`"),
        (b"{}", "line 2 has a reward with nothing in it; set exactly one kind"),
        (
            b'{"exactMatch": {}, "regex": {"pattern": "x"}}',
            "line 2 has a reward with exactMatch and regex; set exactly",
        ),
        (b'{"sum": []}', "line 2 has a reward with nothing in it"),
        (b'{"sum": [{"weight": 1, "reward": {}}]}', "line 2 has part 0 of its reward's sum with nothing in it"),
        (
            b'{"sum": [{"weight": 1, "reward": {"exactMatch": {}}}, {"weight": 1, "reward": {"sum": ['
            b'{"weight": 1, "reward": {"exactMatch": {}}}]}}]}',
            "line 2 has part 1 of its reward's sum with sum; set exactly one kind, and no sum",
        ),
        (
            b'{"service": {"address": "judge:1", "caBundle": "bWluZQ=="}}',
            "line 2 has a reward service with a caBundle",
        ),
        (
            b'{"sum": [{"weight": 1, "reward": {"service": {"address": "judge:1", "caBundle": "bWluZQ=="}}}]}',
            "which needs TLS; set tls to true, or remove caBundle",
        ),
    ],
)
def test_a_reward_that_a_list_could_not_have_is_refused_naming_the_line(reward: bytes, why: str) -> None:
    with pytest.raises(InvalidRequest, match="line 2 ") as refused:
        parsed("s3://b/m.jsonl", b'{"name": "acme/a"}\n{"name": "acme/b", "reward": ' + reward + b"}")
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("dataset", "why"),
    [
        (b'{"uri": "s3://b/x.jsonl", "lines": ["{}"]}', "line 2 has a dataset with uri and lines; set exactly one"),
        (b'{"shuffleSeed": 1}', "line 2 has a dataset with nothing in it; set exactly one of uri and lines"),
        (b'{"uri": "s3://b/x.csv"}', "'s3://b/x.csv', which must end in .jsonl, .json, .ndjson or .parquet"),
        (b'{"uri": "s3://b/x.jsonl", "promptField": ""}', "length >= 1 - at `$.dataset.promptField`"),
    ],
)
def test_a_dataset_that_a_list_could_not_have_is_refused_naming_the_line(dataset: bytes, why: str) -> None:
    with pytest.raises(InvalidRequest, match="line 2 ") as refused:
        parsed("s3://b/m.jsonl", b'{"name": "acme/a"}\n{"name": "acme/b", "dataset": ' + dataset + b"}")
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        (b'{"enable_thinking": []}', "got `array` - at `$.dataset.templateVariables[...]`"),
        (b'{"enable_thinking": null}', "got `null` - at `$.dataset.templateVariables[...]`"),
        (b'{"a b": 1}', "matching regex"),
        (b"[]", "Expected `object`, got `array` - at `$.dataset.templateVariables`"),
    ],
)
def test_variables_of_a_template_are_named_and_have_one_value_each(variables: bytes, why: str) -> None:
    line = b'{"name": "acme/a", "dataset": {"uri": "s3://b/x.jsonl", "templateVariables": '
    [policy] = parsed("s3://b/m.jsonl", line + b'{"enable_thinking": false, "effort": "low"}}}')
    assert policy.dataset is not None
    assert policy.dataset.template_variables == {"enable_thinking": False, "effort": "low"}
    with pytest.raises(InvalidRequest, match="line 1 is not a valid policy") as refused:
        parsed("s3://b/m.jsonl", line + variables + b"}}")
    assert why in str(refused.value)


async def test_what_is_wrong_is_named(shelf: str) -> None:
    broken = await read("team", f"{shelf}/broken.jsonl")
    assert isinstance(broken, Failure)
    assert (broken.reason, broken.terminal) == ("InvalidRequest", True)
    assert "line 2 is not a valid policy" in broken.message
    away = await read("team", f"{shelf}/absent.jsonl")
    assert isinstance(away, Failure)
    assert (away.reason, away.terminal) == ("SourceUnavailable", False)
    claim = await read("team", "pvc://claim/policies.jsonl")
    assert isinstance(claim, Failure)
    assert claim.reason == "SourceForbidden"


async def test_a_manifest_is_read_once_and_forgotten_when_nobody_names_it(shelf: str) -> None:
    changed = asyncio.Event()
    manifests, uri = Manifests(changed.set), f"{shelf}/policies.jsonl"
    manifests.want({uri: ("team", uri)})
    async with asyncio.timeout(60):
        await changed.wait()
    manifests.want({uri: ("team", uri)})
    first = manifests.found[uri]
    manifests.want({uri: ("team", uri)})
    assert manifests.found[uri] is first
    manifests.want({})
    assert manifests.found == {}


async def test_a_manifest_is_read_anew_for_another_wave(shelf: str, tmp_path: Path) -> None:
    manifests, uri = Manifests(lambda: None), f"{shelf}/policies.jsonl"
    wanted: dict[str, tuple[str, str]] = {}

    def look(wave: str) -> object:
        wanted[wave] = "team", uri
        manifests.want(wanted)
        return manifests.found.get(wave)

    first = await until(lambda: look("first"))
    (tmp_path / "policies.jsonl").write_text('{"name": "acme/c"}\n')
    assert await until(lambda: look("second")) == (Policy("acme/c"),)
    assert manifests.found["first"] == first


async def test_a_manifest_that_was_wrong_is_read_again_when_it_may_have_been_mended(
    shelf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_manifest, "RETRY_S", 0.0)
    manifests, uri = Manifests(lambda: None), f"{shelf}/broken.jsonl"

    def look() -> object:
        manifests.want({uri: ("team", uri)})
        return manifests.found.get(uri)

    failed = await until(look)
    assert isinstance(failed, Failure)
    assert failed.terminal
    (tmp_path / "broken.jsonl").write_text('{"name": "acme/a"}\n')
    await until(lambda: look() == (Policy("acme/a"),))


def test_policies_are_read_from_parquet_rows_as_from_lines() -> None:
    rows = [
        {
            "name": "acme/a",
            "rank": 4,
            "reward": {"length": {"target": 8, "tolerance": 4}, "exactMatch": None},
            "loss": None,
        },
        {"name": "acme/b", "rank": None, "reward": None, "loss": {"type": "grpo", "clipLow": None, "clipHigh": 0.3}},
    ]
    file = io.BytesIO()
    parquet.write_table(Table.from_pylist(rows), file)
    length = Reward(length=Length(target=8, tolerance=4))
    assert parsed("s3://b/p.parquet", file.getvalue()) == (
        Policy("acme/a", rank=4, reward=length),
        Policy("acme/b", loss=Loss(type="grpo", clip_high=0.3)),
    )
    with pytest.raises(CorruptFile):
        parsed("s3://b/p.parquet", b"{}")


async def test_a_defect_in_reading_is_a_failure_that_passes_by_itself(
    shelf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(uri: str) -> bytes:
        raise RuntimeError(uri)

    with monkeypatch.context() as patched:
        patched.setattr(manifest_file, "fetch", broken)
        found = await read("team", f"{shelf}/policies.jsonl")
    assert isinstance(found, Failure)
    assert (found.reason, found.terminal) == ("Internal", False)
    assert not isinstance(await read("team", f"{shelf}/policies.jsonl"), Failure)


def test_what_is_no_text_is_refused_naming_the_line() -> None:
    with pytest.raises(InvalidRequest, match="line 2 is not a valid policy"):
        parsed("s3://b/p", b'{"name": "a"}\n{"name": "caf\xe9"}\n')


def test_too_many_policies_are_refused() -> None:
    line = b'{"name": "a"}\n'
    assert len(parsed("s3://b/p", line * MOST_POLICIES)) == MOST_POLICIES
    with pytest.raises(InvalidRequest, match="has more than 1024 policies; split it over several waves"):
        parsed("s3://b/p", line * (MOST_POLICIES + 1))
    with pytest.raises(InvalidRequest, match="has no policies; write one policy per line"):
        parsed("s3://b/p", b"\n")


def test_a_small_file_of_a_million_rows_is_refused_without_reading_them_all() -> None:
    names = DictionaryArray.from_arrays(numpy.zeros(1_000_000, numpy.int32), ["acme/a"])
    file = io.BytesIO()
    parquet.write_table(Table.from_pydict({"name": names}), file)
    assert len(file.getvalue()) < 1 << 16
    with pytest.raises(InvalidRequest, match="has more than 1024 policies"):
        parsed("s3://b/p.parquet", file.getvalue())


async def test_a_manifest_is_parsed_beside_the_loop(shelf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()

    def slow(uri: str, data: bytes) -> tuple[Policy, ...]:
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(30)  # only a loop that goes on does this
        return parsed(uri, data)

    monkeypatch.setattr(train_manifest, "parsed", slow)
    assert await read("team", f"{shelf}/policies.jsonl") == (Policy("acme/a", rank=4), Policy("acme/b"))
