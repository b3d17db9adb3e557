"""The mint-adapter program: from PEFT's files to a packed one, and from stores back to what `peft` loads."""

import json
import os
import resource
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from mint_contracts.source import child
from mint_engine.adapters import pack as command
from mint_engine.model.modules import find_modules
from mint_engine.sources.fetch import PACKED, WEIGHTS
from tests.crds import schemas
from tests.engine.families import FAMILIES, make_model
from tests.engine.made import ALL_SEVEN, edit_base, packed_source, peft_adapter, read_tiny, tiny_llama
from tests.engine.stores import opened

PROMPT = torch.arange(10)[None]


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ALL_SEVEN, "rank_pattern": {"q_proj": 2, "down_proj": 7}, "use_rslora": True},
        {"target_modules": ["v_proj"], "layers_to_transform": [1], "alpha_pattern": {"v_proj": 3}},
    ],
    ids=["patterns", "one layer"],
)
def test_peft_loads_what_is_exported_and_answers_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    model = peft_adapter(tmp_path / "peft", **options).eval()
    packed_source(tmp_path, read_tiny(tmp_path / "peft"))
    tiny_llama().config.save_pretrained(tmp_path / "base")
    unpack_it = ["unpack", str(tmp_path / PACKED), str(tmp_path / "again"), "--base", str(tmp_path / "base")]
    assert command.main(unpack_it) == 0
    again = PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "again")).eval()
    assert torch.equal(model(input_ids=PROMPT).logits, again(input_ids=PROMPT).logits)


@pytest.mark.parametrize("scheme", ["file", "s3", "http", "hf"])
@pytest.mark.parametrize("packed", [True, False])
def test_adapters_in_a_store_are_exported_as_peft_writes_them(
    tmp_path: Path, scheme: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = peft_adapter(tmp_path / "peft").eval()
    folder = tmp_path / "shelf" / "team" / "store" / "haiku"
    tiny_llama().config.save_pretrained(tmp_path / "base")
    if packed:
        packed_source(folder, read_tiny(tmp_path / "peft"))
    else:
        folder.mkdir(parents=True)
        for each in (tmp_path / "peft").iterdir():
            each.rename(folder / each.name)
    with ExitStack() as stack:
        source = child(opened(scheme, tmp_path / "shelf", stack, monkeypatch), "haiku")
        told = ["unpack", source.uri, str(tmp_path / "out"), "--base", str(tmp_path / "base")]
        assert command.main([*told, *(["--revision", source.revision] if source.revision else [])]) == 0
    again = PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "out")).eval()
    assert torch.equal(model(input_ids=PROMPT).logits, again(input_ids=PROMPT).logits)


def test_the_largest_rank_of_any_base_is_accepted(tmp_path: Path) -> None:
    most = schemas.schema("BaseModel")["properties"]["spec"]["properties"]["adapters"]["properties"]["maxRank"][
        "maximum"
    ]
    peft_adapter(tmp_path / "peft", r=most)
    tiny_llama().config.save_pretrained(tmp_path / "base")
    whole, base = str(tmp_path / PACKED), ["--base", str(tmp_path / "base")]
    assert command.main(["pack", str(tmp_path / "peft"), whole, *base]) == 0
    assert command.main(["unpack", whole, str(tmp_path / "again"), *base]) == 0


def test_a_base_is_read_as_engines_read_it(tmp_path: Path) -> None:
    """Kimi-K2's config.json refers to custom code and says how its weights are quantised."""
    FAMILIES["kimi_k2"].save_pretrained(tmp_path)
    own = {"model_type": "kimi_k2", "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}}
    float8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    edit_base(tmp_path, **own, quantization_config=float8)
    expected = find_modules(make_model(FAMILIES["kimi_k2"]))
    for path in (tmp_path, tmp_path / "config.json"):
        assert find_modules(command.base_model(path)) == expected


def test_the_command_packs_shows_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peft_adapter(tmp_path / "a")
    tiny_llama().config.save_pretrained(tmp_path / "base")
    order = ["pack", str(tmp_path / "a"), str(tmp_path / PACKED), "--base", str(tmp_path / "base")]
    assert command.main([*order, "--dtype", "float32"]) == 0
    revision = read_tiny(tmp_path / "a").revision
    assert capsys.readouterr().out.startswith(f"{revision} rank 4 float32: 4 parts, ")
    assert command.main(["show", str(tmp_path / PACKED)]) == 0
    assert revision in capsys.readouterr().out

    assert command.main(["pack", str(tmp_path / PACKED), str(tmp_path / "new" / "half"), *order[3:]]) == 0
    assert " rank 4 bfloat16: 4 parts, " in capsys.readouterr().out

    tiny_llama().config.save_pretrained(tmp_path / "wide")
    edit_base(tmp_path / "wide", hidden_size=64)
    tiny_llama().config.save_pretrained(tmp_path / "other")
    edit_base(tmp_path / "other", model_type="of-nobody")
    tiny_llama().config.save_pretrained(tmp_path / "odd")
    edit_base(tmp_path / "odd", num_attention_heads=0)
    out = str(tmp_path / "out")
    for arguments, told in (
        ([*order, "--max-rank", "2"], "RankTooLarge"),
        (["show", str(tmp_path / "absent")], "SourceNotFound"),
        (["show", str(tmp_path / "a" / WEIGHTS)], "CorruptFile"),
        (["unpack", str(tmp_path / PACKED), str(tmp_path / "a"), *order[3:]], "InvalidRequest"),
        (["pack", str(tmp_path / "a"), str(tmp_path / "x"), "--base", str(tmp_path / "a")], "SourceNotFound"),
        (["pack", str(tmp_path / "a"), str(tmp_path / "x"), "--base", str(tmp_path / "other")], "UnsupportedBase"),
        (["pack", str(tmp_path / "a"), str(tmp_path / "x"), "--base", str(tmp_path / "odd")], "UnsupportedBase"),
        (["pack", str(tmp_path / PACKED), str(tmp_path / "x"), "--base", str(tmp_path / "wide")], "ShapeMismatch"),
        (["pack", str(tmp_path / PACKED), str(tmp_path / "x"), *order[3:], "--max-rank", "2"], "RankTooLarge"),
        (["pack", str(tmp_path / "a"), str(tmp_path), *order[3:]], "InvalidRequest"),
        (["pack", str(tmp_path / "a"), "", *order[3:]], "InvalidRequest"),
        (["unpack", str(tmp_path / PACKED), "/proc/none/out", *order[3:]], "SourceUnavailable"),
        (["pack", str(tmp_path / "a"), "/proc/none/x", *order[3:]], "SourceUnavailable"),
        (["unpack", "ftp://store/a", out, *order[3:]], "SourceForbidden"),
        (["unpack", "hf://acme/haiku", out, *order[3:]], "SourceForbidden"),
        (["unpack", f"file://{tmp_path}/absent", out, *order[3:]], "SourceNotFound"),
    ):
        assert command.main(arguments) == 1
        said = capsys.readouterr().err
        assert (said.partition(": ")[0], said.count("\n")) == (told, 1)
    assert not list(tmp_path.glob(".partial*"))


def test_a_folder_of_the_hubs_cache_is_read(tmp_path: Path) -> None:
    """`hf download` prints its path; its files are links to where the cache keeps them by content."""
    peft_adapter(tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in (tmp_path / "blobs").iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    tiny_llama().config.save_pretrained(tmp_path / "base")
    assert command.main(["pack", str(snapshot), str(tmp_path / PACKED), "--base", str(tmp_path / "base")]) == 0


def test_an_adapter_gives_a_terminal_no_orders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peft_adapter(tmp_path / "peft")
    config = tmp_path / "peft" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": ["\x1b[2J"]}))
    tiny_llama().config.save_pretrained(tmp_path / "base")
    told = ["pack", str(tmp_path / "peft"), str(tmp_path / PACKED), "--base", str(tmp_path / "base")]
    assert command.main(told) == 1
    assert "targets \\x1b[2J;" in capsys.readouterr().err


def test_a_volume_that_takes_no_more_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peft_adapter(tmp_path / "a")
    tiny_llama().config.save_pretrained(tmp_path / "base")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for verb, target in (("pack", PACKED), ("unpack", "out")):
        arguments = [verb, str(tmp_path / "a"), str(tmp_path / target), "--base", str(tmp_path / "base")]
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            assert command.main(arguments) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "could not be written (File too large); retrying" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base"]


def test_what_another_pod_packs_into_the_same_file_is_left_to_it(tmp_path: Path) -> None:
    """In two pods, both programs may be process 1."""
    peft_adapter(tmp_path / "a")
    tiny_llama().config.save_pretrained(tmp_path / "base")
    others = tmp_path / f".partial-{os.getpid()}-{PACKED}"
    others.write_bytes(b"half")
    assert command.main(["pack", str(tmp_path / "a"), str(tmp_path / PACKED), "--base", str(tmp_path / "base")]) == 0
    assert others.read_bytes() == b"half"
