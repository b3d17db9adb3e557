"""Many policies read their data sets: few at once, each once, and none for ever."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from mint_contracts.errors import (
    Overloaded,
    SourceUnavailable,
)
from mint_contracts.training import Dataset
from mint_engine.examples import dataset, shared
from mint_engine.examples.dataset import read_dataset
from mint_engine.examples.example import Example
from mint_engine.examples.held import Examples
from mint_engine.examples.shared import AT_ONCE, Datasets
from tests.waiting import until


@pytest.mark.parametrize("cancelled", [False, True])
async def test_only_few_datasets_are_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, cancelled: bool
) -> None:
    """The bound also holds if the waiters of the first files are cancelled while their threads still read."""
    opened, lock = threading.Event(), threading.Lock()
    now = most = begun = 0

    def read(told: Dataset) -> Any:
        nonlocal now, most, begun
        with lock:
            now, begun = now + 1, begun + 1
            most = max(most, now)
        assert opened.wait(60)
        with lock:
            now -= 1
        return read_dataset(told)

    monkeypatch.setattr(shared, "read_dataset", read)
    datasets, readers = Datasets(), list[asyncio.Task[Any]]()
    try:
        for number in range(12):
            (tmp_path / f"{number}.jsonl").write_text(json.dumps({"prompt": f"say {number}"}))
            told = Dataset(uri=f"file://{tmp_path}/{number}.jsonl")
            readers.append(asyncio.create_task(datasets.read("run", told)))
        await until(lambda: begun == AT_ONCE)
        left = readers
        if cancelled:
            left = readers[AT_ONCE:]
            for each in readers[:AT_ONCE]:
                each.cancel()
            await asyncio.wait(readers[:AT_ONCE])
        opened.set()
        found: list[list[Example]] = await asyncio.gather(*left)
    finally:
        opened.set()
    assert most == AT_ONCE
    assert [each.prompt for (each,) in found] == [f"say {number}" for number in range(12 - len(left), 12)]


async def test_evaluations_share_the_first_examples_and_hold_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each policy that begins needs them twice; a test set of 256 MiB was fetched each time."""
    (tmp_path / "test.jsonl").write_text(
        "".join(json.dumps({"prompt": f"say {number}"}) + "\n" for number in range(9))
    )
    read, told, datasets = list[Dataset](), Dataset(uri=f"file://{tmp_path}/test.jsonl"), Datasets()

    def note(dataset: Dataset) -> Examples:
        read.append(dataset)
        return read_dataset(dataset)

    monkeypatch.setattr(shared, "read_dataset", note)
    first, second = await asyncio.gather(*[datasets.first("run", told, 2) for _ in range(2)])
    assert first is second
    assert [each.prompt for each in first] == ["say 0", "say 1"]
    await until(lambda: not datasets._held)
    assert await datasets.first("run", told, 2) is first
    assert read == [told]
    assert len(await datasets.first("run", told, 3)) == 3
    assert len(await datasets.first("next", told, 2)) == 2
    assert read == [told] * 3


async def test_lines_need_no_turn_and_a_file_that_waits_too_long_for_its_own_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "TURN_S", 0.01)
    datasets = Datasets()
    for _ in range(AT_ONCE):
        await datasets._room.acquire()
    (inline,) = await datasets.read("run", Dataset(lines=['{"prompt": "hi"}']))
    assert inline.prompt == "hi"
    with pytest.raises(Overloaded, match=r"one.jsonl': waits for 2 others"):
        await datasets.read("run", Dataset(uri=f"file://{tmp_path}/one.jsonl"))


async def test_an_invalid_dataset_is_reported_to_all_who_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened, read = threading.Event(), list[Dataset]()

    def away(told: Dataset) -> Any:
        read.append(told)
        assert opened.wait(60)
        raise SourceUnavailable("dataset", "did not answer")

    monkeypatch.setattr(shared, "read_dataset", away)
    datasets, told = Datasets(), Dataset(uri="file:///one.jsonl")
    readers = [asyncio.create_task(datasets.read("run", told)) for _ in range(5)]
    await until(lambda: read)
    opened.set()
    found = await asyncio.gather(*readers, return_exceptions=True)
    assert {type(each) for each in found} == {SourceUnavailable}
    assert len(read) == 1
    assert not datasets._readings


async def test_a_source_that_trickles_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The waiter gives up, and the reading thread gives up at the next part of the file."""
    file = tmp_path / "one.jsonl"
    file.write_text('{"prompt": "x"}')
    told = Dataset(uri=f"file://{file}")
    monkeypatch.setattr(dataset, "MOST_S", -1.0)
    with pytest.raises(SourceUnavailable, match="could not be read within"):
        read_dataset(told)
    opened = threading.Event()
    monkeypatch.setattr(shared, "MOST_S", 0.01)
    monkeypatch.setattr(shared, "read_dataset", lambda _: opened.wait(60))
    try:
        with pytest.raises(SourceUnavailable, match="could not be read within"):
            await Datasets().read("run", told)
    finally:
        opened.set()
