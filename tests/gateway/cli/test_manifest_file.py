"""A file of entries becomes messages that gateways accept, whatever it contains, or one clear error."""

import io
import re
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from rich.console import Console
from rich.progress import Progress

from mint_contracts.catalog_pb2 import RegisterRequest
from mint_contracts.errors import InvalidRequest
from mint_contracts.transport import MOST_TOKEN_BYTES
from mint_gateway.cli.catalog import columns
from mint_gateway.cli.manifest_file import LONGEST_LINE, MESSAGE_BYTES, requests


async def messages(file: Path) -> list[RegisterRequest]:
    return [each async for each in requests(file, "demo/base", lambda read: None)]


@pytest.mark.parametrize("length", [10, LONGEST_LINE // 2 + 1, MESSAGE_BYTES, MESSAGE_BYTES + 1])
async def test_lines_stay_whole_and_messages_within_what_gateways_take(tmp_path: Path, length: int) -> None:
    text = b"a" * (length - 1) + b"\n"
    (tmp_path / "lines").write_bytes(text * 3)
    found = await messages(tmp_path / "lines")
    assert b"".join(each.lines for each in found) == text * 3
    assert all(each.lines.endswith(b"\n") and len(each.SerializeToString()) < MOST_TOKEN_BYTES for each in found)


@pytest.mark.parametrize("before", [0, 1, 100_000])
@pytest.mark.parametrize("after", [b"", b"\n{}\n"])
async def test_a_line_too_long_for_an_entry_is_told_by_its_number(tmp_path: Path, before: int, after: bytes) -> None:
    """For example, a JSON array of all entries on one line."""
    (tmp_path / "array.json").write_bytes(b"{}\n" * before + b"[" + b"{}," * LONGEST_LINE + b"]" + after)
    with pytest.raises(InvalidRequest, match=rf"array\.json': line {before + 1} has 1 MiB or more.*one entry a line"):
        await messages(tmp_path / "array.json")


async def test_a_row_too_long_for_an_entry_is_told_by_its_number(tmp_path: Path) -> None:
    rows = {"name": ["a/b", "a/c"], "uri": ["s3://b/a", "s3://" + "c" * LONGEST_LINE]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "rows.parquet")
    with pytest.raises(InvalidRequest, match=re.escape("rows.parquet': row 2 has 1 MiB or more")):
        await messages(tmp_path / "rows.parquet")


def test_progress_is_told_in_bytes_only_where_bytes_are_counted() -> None:
    for name, in_bytes in (("adapters.jsonl", True), ("adapters.parquet", False)):
        progress = Progress(*columns(Path(name)), console=Console(file=io.StringIO(), width=120))
        task = progress.add_task("registering", total=10_000)
        for read in (1_000, 2_000):
            progress.update(task, completed=read)
        with progress.console.capture() as shown:
            progress.console.print(progress.get_renderable())
        assert ("/s" in shown.get()) is in_bytes, shown.get()
