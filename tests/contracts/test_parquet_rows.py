"""Reading rows of Parquet files as common writers make them; refusals are tested with the code that uses the rows."""

import io
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from mint_contracts.errors import CapacityExceeded
from mint_contracts.parquet_rows import rows

TURNS = [[{"role": "user", "content": f"{n} {'x' * 50}"}, {"role": "assistant", "content": "y"}] for n in range(3000)]
PAIRS = pa.map_(pa.string(), pa.string())
DELTAS = {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}


@pytest.mark.parametrize(
    ("column", "options"),
    [
        (pa.array([f"say {n}" for n in range(3000)]), {}),
        (pa.array([f"say {n % 7}" for n in range(3000)]), {"row_group_size": 300}),
        (pa.array(TURNS), {"dictionary_pagesize_limit": 10_000, "row_group_size": 2000}),
        (pa.array(["a", None, "b"], pa.large_string()), {}),
        (pa.array(["a", None, "b"], pa.string_view()), {}),
        (pa.array(["a", None, "b"]).dictionary_encode(), {}),
        (pa.array([1, None, 2]).dictionary_encode(), {}),
        (pa.array([b"a", None, b"bc"]), {}),
        (pa.array([[("a", "b"), ("c", None)], None, []] * 1000, PAIRS), {}),
        (pa.array([["a", None], None, []], pa.large_list(pa.large_string())), {}),
        (pa.array([["a", "b"], None, ["c", "d"]], pa.list_(pa.string(), 2)), {}),
        (pa.nulls(3), {}),
        (pa.array([], pa.string()), {}),
        (pa.array([f"{'x' * 300}{n}" for n in range(300)]), DELTAS),
        (pa.array([f"{'x' * 300}{n}" for n in range(300)]), DELTAS | {"column_encoding": "DELTA_LENGTH_BYTE_ARRAY"}),
    ],
    ids=lambda value: str(getattr(value, "type", ""))[:40],
)
def test_rows_are_what_was_written(column: pa.Array, options: dict[str, Any]) -> None:
    table, file = pa.table({"n": range(len(column)), "column": column}), io.BytesIO()
    encoding = options.get("column_encoding")
    parquet.write_table(table, file, **options | ({"column_encoding": {"column": encoding}} if encoding else {}))
    assert list(rows("a file", file)) == table.to_pylist(maps_as_pydicts="strict")


def test_lists_of_texts_that_have_no_bound_are_refused() -> None:
    file, path = io.BytesIO(), "column.list.element"
    table = pa.table({"column": [["a", "ab"]]})
    parquet.write_table(table, file, use_dictionary=False, column_encoding={path: "DELTA_BYTE_ARRAY"})
    with pytest.raises(CapacityExceeded, match="encode them plainly"):
        list(rows("a file", file))
