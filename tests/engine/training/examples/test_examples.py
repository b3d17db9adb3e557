"""Data sets are read from lines, JSONL and Parquet; errors name the line."""

import datetime
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from pyarrow import parquet

from mint_contracts import backends
from mint_contracts.errors import (
    BadExample,
    CapacityExceeded,
    InvalidRequest,
    SourceForbidden,
    SourceNotFound,
)
from mint_contracts.training import Dataset
from mint_engine.examples import dataset
from mint_engine.examples.dataset import read_dataset, split
from mint_engine.examples.example import Message
from mint_engine.sources import storage
from mint_engine.sources.copying import CHUNK_BYTES
from tests.engine import stores
from tests.engine.ranged import Ranged


def test_lines_become_examples_with_prompts_as_told() -> None:
    lines = ['{"q": "1+1?", "a": 2, "level": "easy"}', "", '{"q": "2+2?"}']
    first, second = read_dataset(Dataset(lines=lines, prompt_field="q", answer_field="a"))
    assert (first.prompt, first.answer) == ("1+1?", "2")
    assert json.loads(first.json)["level"] == "easy"
    assert (second.prompt, second.answer) == ("2+2?", None)


@pytest.mark.parametrize("revision", ["main", stores.COMMIT])
def test_a_dataset_repository_of_the_hub_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    """URIs follow fsspec and huggingface_hub: `hf://datasets/a/b` differs from the model repository `hf://a/b`."""
    backends.backend.cache_clear()
    for folder, says in (("datasets/acme/data/hard", "data"), ("acme/data/hard", "model")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "train.jsonl").write_text(json.dumps({"prompt": says}))
    with stores.serving(stores.Hub, tmp_path) as (address, handler):
        monkeypatch.setenv("HF_ENDPOINT", f"http://{address}")
        for uri, says in (("hf://datasets/acme/data", "data"), ("hf://acme/data", "model")):
            (found,) = read_dataset(Dataset(uri=f"{uri}/hard/train.jsonl", revision=revision))
            assert found.prompt == says
        assert all(stores.COMMIT in line for line in handler.seen if "/resolve/" in line or "/tree/" in line)
        with pytest.raises(SourceNotFound, match="does not exist; check its path"):
            read_dataset(Dataset(uri="hf://datasets/acme/data/hard/train.parquet", revision=revision))
        with pytest.raises(SourceNotFound, match="holds nothing there"):
            read_dataset(Dataset(uri="hf://datasets/acme/other/train.jsonl", revision=revision))


@pytest.mark.parametrize("revision", ["main", stores.COMMIT])
@pytest.mark.parametrize(
    "uri", ["hf://acme/x.jsonl", "hf://datasets/acme/x.jsonl", "hf://datasets/a--b/c/x.jsonl", "hf://a/b//c/x.jsonl"]
)
def test_a_uri_without_a_hub_repository_is_refused_before_the_hub_is_asked(uri: str, revision: str) -> None:
    with pytest.raises(SourceForbidden, match="does not name a repository of the hub; write hf://"):
        read_dataset(Dataset(uri=uri, revision=revision))


def test_text_becomes_a_chat_where_that_is_asked_for() -> None:
    lines = ['{"prompt": "hi"}', '{"prompt": [{"role": "user", "content": "ho"}]}']
    assert [each.prompt for each in read_dataset(Dataset(lines=lines, chat=True))] == [
        (Message("user", "hi"),),
        (Message("user", "ho"),),
    ]
    assert [each.prompt for each in read_dataset(Dataset(lines=lines, system="be brief"))] == [
        (Message("system", "be brief"), Message("user", "hi")),
        (Message("system", "be brief"), Message("user", "ho")),
    ]
    told = read_dataset(Dataset(lines=lines, template_variables={"enable_thinking": False}))
    assert [each.prompt for each in told] == [(Message("user", "hi"),), (Message("user", "ho"),)]


TOLD, SAID = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
MORE = [TOLD, SAID, {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"messages": MORE}, Dataset()),
        ({"prompt": MORE[:3], "completion": MORE[3:]}, Dataset()),
        ({"prompt": MORE[:1], "completion": MORE[1:]}, Dataset()),
        ({"prompt": "hi", "completion": MORE[1:]}, Dataset()),
        ({"prompt": MORE, "answer": None}, Dataset()),
        ({"prompt": "another", "turns": MORE}, Dataset(prompt_field="turns")),
        ({"asked": MORE[:3], "said": MORE[3:]}, Dataset(prompt_field="asked", answer_field="said")),
    ],
)
def test_chats_are_told_as_in_trl_and_their_answer_is_the_last_message(
    tmp_path: Path, row: dict[str, Any], told: Dataset
) -> None:
    """Also in Parquet, whose messages have all fields of any message, and null for those that they lack."""
    filled = {
        name: [each | {"tool_calls": None} for each in value] if isinstance(value, list) else value
        for name, value in row.items()
    }
    parquet.write_table(pyarrow.Table.from_pylist([filled]), tmp_path / "train.parquet")
    for read in (
        structs.replace(told, lines=[json.dumps(row)]),
        structs.replace(told, uri=f"file://{tmp_path}/train.parquet"),
    ):
        (found,) = read_dataset(read)
        assert found.prompt == (Message("user", "hi"), Message("assistant", "ho"), Message("user", "1+1?"))
        assert (found.text, found.answer) == ("1+1?", "2")
        assert json.loads(found.json).keys() == row.keys()


def test_rows_of_different_forms_in_one_table_are_read_as_from_lines(tmp_path: Path) -> None:
    """There, each row has null for the fields of the others."""
    asked = {"prompt": MORE[:3]}
    rows: list[dict[str, Any]] = [asked | {"answer": "2"}, asked | {"completion": MORE[3:]}, {"messages": MORE}]
    columns = {name: [row.get(name) for row in rows] for name in ("prompt", "answer", "completion", "messages")}
    parquet.write_table(pyarrow.Table.from_pydict(columns), tmp_path / "train.parquet")
    for read in (
        Dataset(uri=f"file://{tmp_path}/train.parquet"),
        Dataset(lines=[json.dumps({name: of[at] for name, of in columns.items()}) for at in range(len(rows))]),
    ):
        found = [(len(each.prompt), each.answer) for each in read_dataset(read)]
        assert found == [(3, "2")] * len(rows)


def test_the_usual_names_come_before_those_of_trl() -> None:
    row = {"prompt": "a", "answer": "b", "messages": MORE, "completion": "c"}
    (found,) = read_dataset(Dataset(lines=[json.dumps(row)]))
    assert (found.prompt, found.answer) == ("a", "b")
    (found,) = read_dataset(Dataset(lines=[json.dumps({"prompt": MORE[:1], "completion": "c"})], system="be brief"))
    assert (found.prompt, found.answer) == ((Message("system", "be brief"), Message("user", "hi")), "c")
    with pytest.raises(BadExample, match="has no field 'question'"):
        read_dataset(Dataset(lines=[json.dumps(row)], prompt_field="question"))


def test_files_are_read_by_uri(tmp_path: Path) -> None:
    rows = [{"prompt": f"say {n}", "answer": str(n)} for n in range(5)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    for name in ("train.jsonl", "train.parquet"):
        found = read_dataset(Dataset(uri=f"file://{tmp_path}/{name}"))
        assert [(each.prompt, each.answer) for each in found] == [(r["prompt"], r["answer"]) for r in rows]


def test_a_byte_order_mark_is_no_part_of_an_example(tmp_path: Path) -> None:
    """Windows tools write one at the start of a file, which may become a ConfigMap; elsewhere it is plain text."""
    lines = ["", '{"prompt": "a"}', '{"prompt": "\ufeffb"}']
    for marked in (["\ufeff", *lines[1:]], ["\ufeff" + lines[1], *lines[2:]]):
        (tmp_path / "train.jsonl").write_text("\r\n".join(marked))
        for told in (Dataset(lines=marked), Dataset(uri=f"file://{tmp_path}/train.jsonl")):
            assert [each.prompt for each in read_dataset(told)] == ["a", "\ufeffb"]
    with pytest.raises(BadExample, match="line 2: is not valid JSON"):
        read_dataset(Dataset(lines=[lines[1], "\ufeff" + lines[2]]))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "dataset line 2: is not valid JSON"),
        ("[1]", "dataset line 2: is not a JSON object but list"),
        ('{"text": "x"}', r"line 2: has no field 'prompt'; it has \['text'\]"),
        ('{"prompt": ""}', "line 2: has a prompt that is neither"),
        ('{"prompt": 3}', "line 2: has a prompt that is neither"),
        ('{"prompt": [{"role": "robot", "content": "x"}]}', "line 2: has a message of role 'robot'"),
        ('{"prompt": [{"role": "user"}]}', "line 2: has an invalid chat message"),
        ('{"prompt": "x", "answer": {"a": 1}}', "line 2: has an answer that is neither"),
        ('{"prompt": "x", "answer": ["4", "four"]}', "line 2: has an answer that is neither text, number nor chat"),
        ('{"messages": []}', "line 2: has a prompt that is neither"),
        (json.dumps({"messages": [SAID]}), "line 2: has a chat with nothing before the assistant's message"),
        (json.dumps({"messages": [TOLD, SAID | {"content": None}]}), "line 2: has an invalid chat message"),
        (json.dumps({"messages": [TOLD, SAID | {"thinking": "h"}]}), "line 2: has 'thinking' in the message that is"),
        (json.dumps({"prompt": [TOLD], "completion": [TOLD]}), "line 2: has an answer that does not begin and end"),
        (json.dumps({"prompt": "hi", "completion": MORE}), "line 2: has an answer that does not begin and end"),
        (json.dumps({"prompt": "hi", "completion": []}), "line 2: has an answer that is neither"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(line: str, why: str) -> None:
    with pytest.raises(BadExample, match=why):
        read_dataset(Dataset(lines=['{"prompt": "fine"}', line]))


def test_bad_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "many.jsonl").write_text('{"prompt": "x"}\n' * 4)
    with pytest.raises(BadExample, match="is no Parquet file"):
        read_dataset(Dataset(uri=f"file://{tmp_path}/broken.parquet"))
    far = pyarrow.table({"prompt": ["a"], "made": pyarrow.array([2**62], pyarrow.timestamp("us"))})
    parquet.write_table(far, tmp_path / "far.parquet")
    with pytest.raises(BadExample, match="has values that no line of JSON can have"):
        read_dataset(Dataset(uri=f"file://{tmp_path}/far.parquet"))
    with pytest.raises(BadExample, match="has no examples"):
        read_dataset(Dataset(uri=f"file://{tmp_path}/empty.jsonl"))
    with pytest.raises(SourceNotFound):
        read_dataset(Dataset(uri=f"file://{tmp_path}/absent.jsonl"))
    with pytest.raises(SourceForbidden):
        read_dataset(Dataset(uri=f"file://{tmp_path}/../secret.jsonl"))
    with pytest.raises(InvalidRequest, match=r"must end in .jsonl or .parquet"):
        read_dataset(Dataset(uri=f"file://{tmp_path}/train.csv"))
    with pytest.raises(InvalidRequest, match="neither a uri nor lines"):
        read_dataset(Dataset())
    monkeypatch.setattr(dataset, "MAX_EXAMPLES", 3)
    with pytest.raises(CapacityExceeded):
        read_dataset(Dataset(uri=f"file://{tmp_path}/many.jsonl"))
    monkeypatch.setattr(dataset, "MAX_BYTES", 10)
    with pytest.raises(CapacityExceeded):
        read_dataset(Dataset(uri=f"file://{tmp_path}/many.jsonl"))


def test_a_file_that_says_it_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "vast.jsonl").touch()
    os.truncate(tmp_path / "vast.jsonl", 1 << 40)
    with stores.serving(stores.Files, tmp_path) as (address, handler):
        said = rf"{address}/vast.jsonl': has 1 TiB or more, and 256 MiB are allowed; split it"
        with pytest.raises(CapacityExceeded, match=said):
            read_dataset(Dataset(uri=f"http://{address}/vast.jsonl"))
    assert handler.seen == ["HEAD /vast.jsonl"]


def test_a_file_that_changes_while_it_is_read_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "train.jsonl"

    def write(says: str) -> None:
        file.write_text(f'{{"prompt": "{says}"}}\n' * (3 * CHUNK_BYTES // 20))

    class Changing(Ranged):
        def do_GET(self) -> None:  # noqa: N802 - the library's name
            super().do_GET()
            if len([line for line in self.seen if line.startswith("bytes=")]) == 1:
                write("new")

    write("old")
    backends.backend.cache_clear()
    monkeypatch.setattr(storage, "BLOCK_BYTES", CHUNK_BYTES)
    with stores.serving(Changing, tmp_path) as (address, _):
        found = read_dataset(Dataset(uri=f"http://{address}/train.jsonl"))
    assert {each.prompt for each in found} == {"new"}


def test_examples_take_the_bytes_of_their_lines(tmp_path: Path) -> None:
    """Kept as str, a text with one rare character takes four bytes per character, in the prompt and the JSON each."""
    lines = [json.dumps({"prompt": f"{n} \N{GRINNING FACE} " + "x" * 1000}, ensure_ascii=False) for n in range(5000)]
    file = tmp_path / "train.jsonl"
    file.write_text("\n\n".join(lines))
    tracemalloc.start()
    try:
        found = read_dataset(Dataset(uri=f"file://{file}"))
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.3 * file.stat().st_size
    assert most < 4 * file.stat().st_size
    assert [each.json for each in found] == [line.replace(": ", ":", 1) for line in lines]


def test_a_part_of_the_examples_holds_no_others() -> None:
    found = read_dataset(Dataset(lines=[f'{{"prompt": "{n}"}}' for n in range(9)], chat=True))
    part = found[2:5]
    assert [each.text for each in part] == ["2", "3", "4"] == [found[at].text for at in (2, 3, -5)]
    assert part._content == b'{"prompt": "2"}{"prompt": "3"}{"prompt": "4"}'
    assert not found[9:]
    with pytest.raises(IndexError):
        found[9]


def test_rows_are_told_as_the_lines_that_they_would_be(tmp_path: Path) -> None:
    answers = [datetime.date(2024, 5, 1), None, datetime.date(2025, 6, 2)]
    table = pyarrow.table({"prompt": ["a", "b", "c"], "answer": answers, "level": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "train.parquet")
    found = read_dataset(Dataset(uri=f"file://{tmp_path}/train.parquet"))
    assert [each.answer for each in found] == ["2024-05-01", None, "2025-06-02"]
    assert [json.loads(each.json)["level"] for each in found] == [1, 2, 3]


@pytest.mark.parametrize("field", ["prompt", "answer"])
def test_rows_of_bytes_are_refused_rather_than_learnt_as_base64(tmp_path: Path, field: str) -> None:
    columns = {"prompt": ["say hi"], "answer": ["hi"], "picture": [b"\x89PNG"]}
    for name, table in (("text", columns), ("bytes", columns | {field: [b"say hi"]})):
        parquet.write_table(pyarrow.table(table), tmp_path / f"{name}.parquet")
    assert len(read_dataset(Dataset(uri=f"file://{tmp_path}/text.parquet"))) == 1
    with pytest.raises(BadExample, match=f"row 1: has bytes in '{field}', not text; write that column as strings"):
        read_dataset(Dataset(uri=f"file://{tmp_path}/bytes.parquet"))


@pytest.mark.parametrize("field", ["prompt", "messages"])
def test_messages_of_bytes_are_refused_as_well(tmp_path: Path, field: str) -> None:
    for name, content in (("text", "say hi"), ("bytes", b"say hi")):
        chat = [{"role": "user", "content": content, "picture": b"\x89PNG"}]
        parquet.write_table(pyarrow.table({field: [chat]}), tmp_path / f"{name}.parquet")
    assert read_dataset(Dataset(uri=f"file://{tmp_path}/text.parquet"))[0].text == "say hi"
    with pytest.raises(BadExample, match=f"row 1: has bytes in '{field}', not text"):
        read_dataset(Dataset(uri=f"file://{tmp_path}/bytes.parquet"))


TEXT = "x" * 200_000


def listed(texts: int) -> pyarrow.Array:
    """Return a one-row list column that repeats the same text `texts` times."""
    indices = pyarrow.array([0] * texts, pyarrow.int32())
    return pyarrow.ListArray.from_arrays([0, texts], pyarrow.DictionaryArray.from_arrays(indices, [TEXT]))


@pytest.mark.parametrize(
    ("column", "error", "why"),
    [
        (lambda: pyarrow.array([TEXT] * 400), CapacityExceeded, "or more, and 32 MiB are allowed"),
        (lambda: pyarrow.array(["x" * (1 << 20)]), BadExample, "row 1: has more than 1048576 bytes"),
        (lambda: pyarrow.array(["x" * (17 << 20)]), CapacityExceeded, "has a row of more than 16 MiB"),
        (lambda: pyarrow.array(["x" * (33 << 20)]), CapacityExceeded, "unpacks to more than 32 MiB"),
        (lambda: listed(1000), CapacityExceeded, "has a row of more than 16 MiB"),
        (
            lambda: pyarrow.array([[0] * (5 << 20)], pyarrow.list_(pyarrow.int8())),
            CapacityExceeded,
            "unpacks to more",
        ),
    ],
    ids=["many", "a long row", "a longer one", "the longest", "a list of the same", "a list of numbers"],
)
def test_a_small_parquet_file_that_unpacks_to_far_more_is_refused_and_not_held(
    column: Callable[[], Any], error: type[Exception], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "MAX_BYTES", 32 << 20)
    file = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.table({"prompt": column()}), file, compression="zstd")
    assert file.stat().st_size < 64 << 10
    tracemalloc.start()
    try:
        with pytest.raises(error, match=why):
            read_dataset(Dataset(uri=f"file://{file}"))
        assert tracemalloc.get_traced_memory()[1] < 128 << 20
    finally:
        tracemalloc.stop()


@given(st.lists(st.sampled_from([b"a", b"bc", b"\r", b"\n", b"\r\n", b"\x0b", b"\x85"])))
def test_a_file_is_cut_into_lines_as_bytes_are(parts: list[bytes]) -> None:
    content = b"".join(parts)
    assert list(split(bytearray(content))) == content.splitlines()


def test_lines_are_cut_one_by_one() -> None:
    """Splitting a file of short lines all at once would take many times the file's memory."""
    lines = split(bytearray(b"{}\n" * (1 << 17)))
    tracemalloc.start()
    try:
        assert all(line == b"{}" for line in lines)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1 << 20
