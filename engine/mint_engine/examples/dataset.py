"""Reading a data set's examples into memory: JSON lines or Parquet by URI, or lines from the placement map.

Blocks its thread. Errors in a line are reported with the line's number.
"""

import re
import time
from codecs import BOM_UTF8
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import msgspec

from mint_contracts.byte_counts import in_units
from mint_contracts.errors import (
    BadExample,
    CapacityExceeded,
    CorruptFile,
    InvalidRequest,
    SourceNotFound,
    SourceUnavailable,
)
from mint_contracts.parquet_process import bounded_rows
from mint_contracts.source import Source
from mint_contracts.training import JSON_LINES, PARQUET, Dataset
from mint_engine.examples.example import field_of, read_line
from mint_engine.examples.held import Examples
from mint_engine.sources.copying import CHUNK_BYTES, read_up_to
from mint_engine.sources.retry import retrying
from mint_engine.sources.storage import folder_of

_LINE = re.compile(rb"(?=.)([^\r\n]*)(?:\r\n|[\r\n]|\Z)", re.DOTALL)  # splits as `splitlines` does

MAX_BYTES = 256 << 20
MAX_LINE = 1 << 20
MAX_EXAMPLES = 1_000_000
MOST_S = 600.0  # limit for reading a file: a source that trickles holds up data sets that wait for their turn


def read_dataset(dataset: Dataset) -> Examples:
    """Read every example of a data set, at least one.

    Raises BadExample naming the line, InvalidRequest, CapacityExceeded for too many, and the errors of a source.
    """
    if dataset.lines:
        lines = _from_lines((line.encode() for line in dataset.lines), dataset, "dataset")
    elif dataset.uri.endswith(PARQUET):
        lines = _from_parquet(_content(dataset), dataset)
    elif dataset.uri.endswith(JSON_LINES):
        lines = _from_lines(split(_content(dataset)), dataset, f"dataset {dataset.uri!r}")
    elif dataset.uri:
        raise InvalidRequest(f"dataset {dataset.uri!r}", "must end in .jsonl or .parquet")
    else:
        raise InvalidRequest("dataset", "has neither a uri nor lines; set one of them")
    examples = Examples(dataset, lines)
    if not examples:
        raise BadExample(f"dataset {dataset.uri!r}" if dataset.uri else "dataset", "has no examples")
    return examples


def split(content: bytearray) -> Iterator[bytes]:
    """Yield its lines one by one: a list of short lines would take twenty times as much memory as the file."""
    return (found[1] for found in _LINE.finditer(content))


def _from_lines(lines: Iterator[bytes], dataset: Dataset, subject: str) -> Iterator[bytes]:
    """Yield the lines that have an example. A byte order mark, as Windows puts before texts, is removed."""
    first = (line.removeprefix(BOM_UTF8) for line in islice(lines, 1))
    for number, line in enumerate(chain(first, lines), start=1):
        _check_count(number, subject)
        if len(line) > MAX_LINE:
            raise BadExample(f"{subject} line {number}", f"has more than {MAX_LINE} bytes")
        if line.strip():
            read_line(line, dataset, f"{subject} line {number}")
            yield line


def _from_parquet(content: bytearray, dataset: Dataset) -> Iterator[bytes]:
    """Yield rows as lines, with the same limits: a few kB may unpack to far more than fits in memory."""
    subject, taken = f"dataset {dataset.uri!r}", 0
    found = bounded_rows(subject, content, MAX_BYTES, MOST_S)
    del content  # a process of its own has it now
    try:
        for number, row in enumerate(found, start=1):
            _check_count(number, subject)
            where = f"{subject} row {number}"
            _check_text(row, dataset, where)
            line = _line_of(row, where)
            if len(line) > MAX_LINE:
                raise BadExample(where, f"has more than {MAX_LINE} bytes")
            taken += len(line)
            _check_size(taken, subject)
            read_line(line, dataset, where)
            yield line
    except CorruptFile as error:
        raise BadExample(subject, error.message) from None


def _check_text(row: dict[str, Any], dataset: Dataset, subject: str) -> None:
    """Raise BadExample for a text in bytes, also a message's: a line of JSON would have it in base64."""
    for field in (field_of(row, dataset.prompt_field), field_of(row, dataset.answer_field)):
        value = row.get(field)
        messages = value if isinstance(value, list) else []
        texts = [value, *(each.get("content") for each in messages if isinstance(each, dict))]
        if any(isinstance(text, bytes) for text in texts):
            raise BadExample(subject, f"has bytes in {field!r}, not text; write that column as strings")


def _line_of(row: Any, subject: str) -> bytes:
    try:
        return msgspec.json.encode(row)
    except (TypeError, msgspec.MsgspecError) as error:
        raise BadExample(subject, f"cannot be encoded as JSON: {error}") from None


def _check_count(count: int, subject: str) -> None:
    if count > MAX_EXAMPLES:
        raise CapacityExceeded(subject, f"has more than {MAX_EXAMPLES} examples; split it")


def _check_size(size: int, subject: str) -> None:
    if size > MAX_BYTES:
        raise CapacityExceeded(
            subject, f"has {in_units(size)} or more, and {in_units(MAX_BYTES)} are allowed; split it"
        )


def _content(dataset: Dataset) -> bytearray:
    """Read the file's bytes with the code that fetches adapters, and its rules for what may be read."""
    parent, _, name = dataset.uri.rpartition("/")
    folder = folder_of(Source(parent, dataset.revision))
    subject, until = f"dataset {dataset.uri!r}", time.monotonic() + MOST_S

    def fetch() -> bytearray:
        found = folder.files(name)
        if name not in found:
            raise SourceNotFound(subject, "does not exist; check its path")
        _check_size(found[name] or 0, subject)  # before it is read, if its size is known
        with folder.open(name) as file:
            content = bytearray()
            while part := read_up_to(file, min(CHUNK_BYTES, MAX_BYTES + 1 - len(content))):
                content += part
                if time.monotonic() > until:
                    raise SourceUnavailable(subject, f"could not be read within {MOST_S:.0f} s")
        folder.check_same(name)
        return content

    content = retrying(fetch)
    _check_size(len(content), subject)
    return content
