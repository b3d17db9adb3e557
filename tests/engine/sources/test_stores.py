"""The test servers that stand for stores: nothing that one held appears in the next one."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from mint_contracts.object_store import object_store
from mint_contracts.source import child
from tests.engine import stores


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_bucket_holds_what_its_folder_does_and_nothing_of_an_earlier_one(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "other"):
        file = tmp_path / name / "team" / "store" / "base" / f"{name}.json"
        file.parent.mkdir(parents=True)
        file.write_text("{}")
        with ExitStack() as stack:
            source = stores.opened(scheme, tmp_path / name, stack, monkeypatch)
            assert object_store(child(source, "base")).names() == [file.name]
