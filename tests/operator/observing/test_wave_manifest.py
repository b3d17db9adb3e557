"""Waves over manifests served over HTTP: changes are followed, and a bad manifest affects only its own wave."""

from pathlib import Path

import msgspec
import pytest

from mint_contracts.entries import Entry
from mint_operator.observing import manifest_file, wave_lists
from mint_operator.planning import status_write
from tests.operator.catalogs import CATALOG, Catalog, becomes, entry, over, says, sources, twice
from tests.operator.stage import Stage, base_model, until


async def test_a_manifest_is_a_wave_and_is_followed(
    stage: Stage, catalog: Catalog, shelf: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wave_lists, "REREAD_S", 0.0)
    monkeypatch.setattr(wave_lists, "SHARE", float("inf"))  # however slow this machine is
    monkeypatch.setattr(wave_lists, "LONGEST_RETRY_S", 0.0)
    monkeypatch.setattr(status_write, "COUNTS_EVERY_S", 0.0)
    folder, url = shelf
    lines = [entry("x/1"), entry("x/2"), Entry("acme/law-1", revision="1"), Entry("in/store")]
    (folder / "wave.jsonl").write_bytes(msgspec.json.Encoder().encode_lines(lines))
    await stage.reconcile(base_model(**CATALOG), over("filed", manifest=f"{url}/wave.jsonl"))
    found = await becomes(stage, ["acme/law-1@1", "in/store", "x/1", "x/2"])
    assert found["in/store"] == "pvc://samples/adapters/in/store"
    (folder / "wave.jsonl").write_bytes(msgspec.json.Encoder().encode_lines(lines[1:2]))
    await becomes(stage, ["x/2"])
    (folder / "wave.jsonl").write_bytes(b"nonsense")

    async def line_named() -> bool:
        await stage.once()
        return "line 1 is not a valid entry" in (await stage.condition("AdapterWave", "filed", "Admitted"))["message"]

    await until("the status to tell", line_named)
    assert list(await sources(stage)) == ["x/2"], "what was read before stands"


async def test_a_manifest_that_cannot_be_read_is_its_own_waves_trouble_alone(
    stage: Stage, catalog: Catalog, shelf: tuple[Path, str]
) -> None:
    folder, url = shelf
    (folder / "twice.parquet").write_bytes(twice())
    await stage.reconcile(base_model(**CATALOG), over("filed", manifest=f"{url}/twice.parquet"))
    assert "duplicate keys" in await says(stage, "filed", "CorruptFile")
    await stage.reconcile(over("named", names=["acme/law-1"]))
    await becomes(stage, ["acme/law-1"])


async def test_a_defect_in_looking_up_is_one_waves_trouble_and_is_told(
    stage: Stage, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(uri: str) -> bytes:
        raise RuntimeError(uri)

    monkeypatch.setattr(manifest_file, "fetch", broken)
    await stage.reconcile(
        base_model(**CATALOG), over("filed", manifest="http://h/w.jsonl"), over("all", selector={"prefix": "b/"})
    )
    assert "RuntimeError, see the operator's log" in await says(stage, "filed", "Internal")
    await becomes(stage, ["b/c"])
