"""From PEFT's files to a packed one and back, with experts; and sources that already hold a packed file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mint_contracts import errors
from mint_engine.adapters import packed_file, peft_config
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.check import Fit
from mint_engine.adapters.export import export
from mint_engine.adapters.packed import Packed
from mint_engine.adapters.read import read_adapter
from mint_engine.residency.slots import Slots
from mint_engine.sources.fetch import CONFIG, WEIGHTS
from mint_engine.sources.local import LocalFolder
from tests.engine.made import (
    BASE_NAME,
    edit_tensors,
    packed_source,
    unpack,
)

EXPERTS = 4
MOE = Fit(
    {
        path: Module(path, wide, high, experts)
        for path, wide, high, experts in (
            ("model.layers.0.self_attn.q_proj", 8, 8, 0),
            ("model.layers.0.mlp.experts.gate_proj", 8, 6, EXPERTS),
            ("model.layers.0.mlp.experts.down_proj", 6, 8, EXPERTS),
        )
    },
    max_rank=8,
    base_names=(BASE_NAME,),
)


def moe_adapter(folder: Path, *, rank: int = 2, dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    """A random adapter of every module and every expert, under PEFT's names."""
    folder.mkdir()
    draw, tensors = torch.Generator().manual_seed(5), {}
    for path, module in MOE.modules.items():
        for expert in range(module.experts or 1):
            name = path.replace(".experts.", f".experts.{expert}.")
            for half, shape in (("A", (rank, module.in_features)), ("B", (module.out_features, rank))):
                tensor = torch.randn(shape, generator=draw).to(dtype)
                tensors[f"base_model.model.{name}.lora_{half}.weight"] = tensor
    save_file(tensors, folder / WEIGHTS)
    told = {
        "peft_type": "LORA", "r": rank, "lora_alpha": 4, "base_model_name_or_path": BASE_NAME,
        "target_modules": ["q_proj", "gate_proj", "down_proj"], **config,
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(told))
    return folder


def read(folder: Path, fit: Fit = MOE, dtype: torch.dtype = torch.float32) -> Packed:
    return read_adapter(LocalFolder(folder, "adapter"), fit, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pefts_tensors_come_back_byte_for_byte(tmp_path: Path, dtype: torch.dtype) -> None:
    before = load_file(moe_adapter(tmp_path / "peft", dtype=dtype) / WEIGHTS)
    export(read(tmp_path / "peft", dtype=dtype), tmp_path / "again", MOE.modules)
    after = load_file(tmp_path / "again" / WEIGHTS)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == dtype for name in before)
    assert read(tmp_path / "again", dtype=dtype).revision == read(tmp_path / "peft", dtype=dtype).revision
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == [CONFIG, WEIGHTS]
    with pytest.raises(errors.InvalidRequest, match="already exists"):
        export(read(tmp_path / "peft"), tmp_path / "again", MOE.modules)


def test_all_experts_of_a_module_lie_in_one_part_in_their_order(tmp_path: Path) -> None:
    tensors = load_file(moe_adapter(tmp_path / "peft") / WEIGHTS)
    deltas = unpack(read(tmp_path / "peft"))
    assert deltas.keys() == MOE.modules.keys()
    for path in ("model.layers.0.mlp.experts.gate_proj", "model.layers.0.mlp.experts.down_proj"):
        for expert in range(EXPERTS):
            name = f"base_model.model.{path.replace('.experts.', f'.experts.{expert}.')}"
            assert torch.equal(deltas[path].a[expert], tensors[f"{name}.lora_A.weight"])
            assert torch.equal(deltas[path].b[expert], tensors[f"{name}.lora_B.weight"])
        assert deltas[path].scaling == 2.0


def test_experts_fill_a_slot_and_leave_it(tmp_path: Path) -> None:
    packed = read(moe_adapter(tmp_path / "peft"))
    slots = Slots(MOE.modules, 2, MOE.max_rank, torch.float32, torch.device("cpu"))
    slots.load(1, packed)
    module = slots.index["model.layers.0.mlp.experts.down_proj"]
    part = slots.part(module, 1)
    assert part is not None
    delta = unpack(packed)["model.layers.0.mlp.experts.down_proj"]
    assert torch.equal(part[0], delta.a.flatten(0, 1))
    assert torch.equal(part[1], delta.b.mT.flatten(0, 1))
    assert int(slots.ranks[module, 1]) == 2
    assert not slots.is_empty(1)
    slots.clear(1)
    assert slots.is_empty(1)
    assert not slots.memory.any()


E3 = "base_model.model.model.layers.0.mlp.experts.3.gate_proj"


@pytest.mark.parametrize(
    ("changes", "config", "error", "told"),
    [
        ({f"{E3}.lora_A.weight": None}, {}, errors.CorruptFile, "experts.3.gate_proj without its other half"),
        ({}, {"rank_pattern": {"experts.3.gate_proj": 3}}, errors.ShapeMismatch, "[3, 8]"),
        ({}, {"alpha_pattern": {"experts.3.gate_proj": 3}}, errors.UnsupportedAdapter, "different ranks or scalings"),
        ({E3.replace("3", "4") + ".lora_A.weight": torch.ones(2, 8)}, {}, errors.UnknownTargetModules, "experts.4"),
        ({E3.replace("3", "03") + ".lora_A.weight": torch.ones(2, 8)}, {}, errors.UnknownTargetModules, "experts.03"),
        ({E3.replace("3.", "") + ".lora_A.weight": torch.ones(2, 8), E3.replace("3.", "") + ".lora_B.weight":
          torch.ones(6, 2)}, {}, errors.UnsupportedAdapter, "without an expert number"),
        ({f"{E3}.lora_A.weight": torch.full((2, 8), torch.nan)}, {}, errors.NonFiniteWeights, "gate_proj.lora_A"),
        ({}, {"target_modules": ["q_proj", "down_proj"]}, errors.CorruptFile, "target_modules does not name"),
        ({}, {"target_modules": ["q_proj", "down_proj", "0.gate_proj"]}, errors.CorruptFile, "experts.1.gate_proj, "),
        ({}, {"target_modules": ["experts.4.gate_proj"]}, errors.UnknownTargetModules, "targets experts.4.gate_proj"),
        ({}, {"target_modules": ["mlp.0.gate_proj"]}, errors.UnknownTargetModules, "targets mlp.0.gate_proj"),
    ],
)  # fmt: skip
def test_experts_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], config: dict[str, Any], error: type, told: str
) -> None:
    edit_tensors(moe_adapter(tmp_path / "peft", **config), changes)
    with pytest.raises(errors.MintError) as caught:
        read(tmp_path / "peft")
    assert type(caught.value) is error, caught.value
    assert told in caught.value.message


@pytest.mark.parametrize(
    "targets",
    [r".*(q_proj|experts\.[03]\.gate_proj|experts\.1\.down_proj)",
     ["q_proj", "experts.0.gate_proj", "3.gate_proj", "1.down_proj"]],
    ids=["a pattern", "names"],
)  # fmt: skip
def test_experts_without_tensors_add_nothing(tmp_path: Path, targets: Any) -> None:
    """However the others are selected; the packed file is treated like PEFT's, whose tensors come back unchanged."""
    chosen = {("gate_proj", 0), ("gate_proj", 3), ("down_proj", 1)}
    rest = [(name, expert) for name in ("gate_proj", "down_proj") for expert in range(EXPERTS)]
    gone = [E3.replace("3.gate_proj", f"{expert}.{name}") for name, expert in rest if (name, expert) not in chosen]
    names = [f"{name}.lora_{half}.weight" for name in gone for half in "AB"]
    folder = moe_adapter(tmp_path / "peft", target_modules=targets, alpha_pattern={"experts.2.gate_proj": 3})
    edit_tensors(folder, dict.fromkeys(names))
    packed = read(folder)
    every = unpack(read(moe_adapter(tmp_path / "all")))
    for path, delta in unpack(packed).items():
        for expert in range(MOE.modules[path].experts):
            here = (path.rpartition(".")[2], expert) in chosen
            for found, whole in ((delta.a, every[path].a), (delta.b, every[path].b)):
                assert torch.equal(found[expert], whole[expert] if here else torch.zeros_like(whole[expert]))
        assert delta.scaling == 2.0
    assert read(packed_source(tmp_path / "packed", packed)).revision == packed.revision
    export(packed, tmp_path / "again", MOE.modules)
    assert load_file(tmp_path / "again" / WEIGHTS).keys() == load_file(folder / WEIGHTS).keys()
    assert read(tmp_path / "again").revision == packed.revision


@pytest.mark.parametrize(
    ("targets", "changes", "unfit"),
    [
        (["q_proj", "0.gate_proj", "experts.3.gate_proj"], {}, ""),
        (["q_proj", "0.gate_proj", "experts.3.gate_proj"], {"alpha_pattern": {"3.gate_proj": 3}}, "3.gate_proj"),
        (
            ["q_proj", "0.gate_proj", "experts.3.gate_proj"],
            {"rank_pattern": {"experts.0.gate_proj": 3}},
            "0.gate_proj",
        ),
        (["q_proj", "gate_proj", "3.gate_proj"], {"alpha_pattern": {"3.gate_proj": 3}}, "3.gate_proj"),
        (["q_proj", "gate_proj"], {"alpha_pattern": {"3.gate_proj": 3}}, ""),  # they may have had no tensors
    ],
)
def test_every_expert_that_a_packed_files_config_names_must_fit(
    tmp_path: Path, targets: list[str], changes: dict[str, Any], unfit: str
) -> None:
    held = moe_adapter(tmp_path / "peft", target_modules=targets)
    chosen = {f"{E3.replace('3.gate', f'{expert}.gate')}.lora_{half}.weight" for expert in (0, 3) for half in "AB"}
    others = {name for name in load_file(held / WEIGHTS) if ".experts." in name} - chosen
    edit_tensors(held, dict.fromkeys(others))
    told = json.loads((held / CONFIG).read_text()) | changes
    config = peft_config.parse(json.dumps(told).encode(), "a").canonical
    folder = packed_source(tmp_path / "packed", _tampered(read(held), config=config))
    if not unfit:
        read(folder)
        return
    with pytest.raises(errors.CorruptFile, match=rf"rank or scaling at model\.layers\.0\.mlp\.experts\.{unfit} than"):
        read(folder)


def test_a_source_may_hold_a_packed_file(tmp_path: Path) -> None:
    packed = read(moe_adapter(tmp_path / "peft"))
    again = read(packed_source(tmp_path / "packed", packed))
    assert again.revision == packed.revision
    assert torch.equal(again.run, packed.run)


def test_a_packed_file_of_another_dtype_is_converted_as_pefts_files_are(tmp_path: Path) -> None:
    packed = read(moe_adapter(tmp_path / "peft"))
    again = read(packed_source(tmp_path / "packed", packed), dtype=torch.bfloat16)
    assert again.revision == read(tmp_path / "peft", dtype=torch.bfloat16).revision


def _tampered(packed: Packed, **changes: Any) -> Packed:
    told = packed.header
    run = packed.run if (fill := changes.get("fill")) is None else torch.full_like(packed.run, fill)
    config, scalings = changes.get("config", told.config), changes.get("scalings", told.scalings)
    return Packed(packed_file.describe(config, told.base, told.layout, scalings, run), run)


@pytest.mark.parametrize(
    ("fit", "changes", "error", "told"),
    [
        (Fit(MOE.modules, 1, MOE.base_names), {}, errors.RankTooLarge, "rank 2"),
        (Fit(MOE.modules, 8, ("other/base",)), {}, errors.WrongBase, BASE_NAME),
        (Fit({p: m for p, m in MOE.modules.items() if "gate" not in p}, 8), {}, errors.UnknownTargetModules, "gate"),
        (Fit({p: Module(p, m.in_features, m.out_features + 1, m.experts) for p, m in MOE.modules.items()}, 8), {},
         errors.ShapeMismatch, "8 to 9 features"),
        (Fit({p: Module(p, m.in_features, m.out_features, m.experts and 2) for p, m in MOE.modules.items()}, 8), {},
         errors.ShapeMismatch, "of 2 experts"),
        (MOE, {"scalings": (2.0, 2.0, 3.0)}, errors.CorruptFile, "than its config gives"),
        (MOE, {"config": b"[]"}, errors.CorruptFile, "not a JSON object"),
        (MOE, {"config": b'{"peft_type":"LOHA"}'}, errors.UnsupportedAdapter, "LOHA"),
        (MOE, {"fill": torch.inf}, errors.NonFiniteWeights, "q_proj.lora_A"),
    ],
)  # fmt: skip
def test_a_packed_file_from_outside_is_checked_as_pefts_files_are(
    tmp_path: Path, fit: Fit, changes: dict[str, Any], error: type, told: str
) -> None:
    packed = read(moe_adapter(tmp_path / "peft"))
    packed_source(tmp_path / "packed", _tampered(packed, **changes))
    with pytest.raises(errors.MintError) as caught:
        read(tmp_path / "packed", fit)
    assert type(caught.value) is error, caught.value
    assert told in caught.value.message


def test_a_packed_file_has_one_form(tmp_path: Path) -> None:
    """The revision keys what is cached of an adapter: one content must not have two revisions."""
    packed = read(moe_adapter(tmp_path / "peft"))
    spaced = packed.header.config.replace(b'":', b'": ', 1)
    packed_source(tmp_path / "packed", _tampered(packed, config=spaced))
    with pytest.raises(errors.CorruptFile, match="canonical form"):
        read(tmp_path / "packed")
