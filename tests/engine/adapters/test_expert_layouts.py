"""PEFT's layouts of adapters on routed experts: each answers as PEFT's own model does, or is refused by name."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from mint_contracts import errors
from mint_engine.adapters.check import Fit
from mint_engine.adapters.export import export
from mint_engine.adapters.packed import Packed, halves
from mint_engine.adapters.read import read_adapter
from mint_engine.model.forward import Forward
from mint_engine.sources.fetch import CONFIG, WEIGHTS
from mint_engine.sources.local import LocalFolder
from tests.engine.expert_adapters import ATTENTION, BOTH, pairs_of, save
from tests.engine.families import FAMILIES, make_forward, make_model, plain_logits, span
from tests.engine.made import edit_config, editing
from tests.engine.saved_families import BASES

TOKENS = list(range(2, 42))
EXPERTS = 6  # of qwen3_moe and gpt_oss
LAYOUTS: dict[str, dict[str, Any]] = {
    "both parameters": {"target_parameters": BOTH},
    "gate and up only": {"target_parameters": BOTH[:1]},
    "down only": {"target_parameters": BOTH[1:]},
    "parameters alone": {"target_parameters": BOTH, "target_modules": []},
    "own ranks": {
        "target_parameters": BOTH,
        "rank_pattern": {".*gate_up_proj": 6},
        "alpha_pattern": {"down_proj": 1},
    },
    "rsLoRA": {"target_parameters": BOTH, "use_rslora": True},
}


def read(forward: Forward, folder: Path) -> Packed:
    return read_adapter(LocalFolder(folder, "adapter"), Fit(forward.slots.modules, 8), torch.float32)


def answer(forward: Forward, packed: Packed) -> torch.Tensor:
    forward.slots.load(1, packed)
    return forward.run(TOKENS, [span(forward.cache, 0, len(TOKENS), 0, [1, 2, 3], 1)], range(len(TOKENS))).clone()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ATTENTION)
def test_answers_as_peft_does(name: str, layout: str, tmp_path: Path) -> None:
    """Exporting the packed adapter as PEFT files and reading it again gives the very tensors that it came with."""
    reference = save(tmp_path / "a", name, **LAYOUTS[layout])
    forward = make_forward(FAMILIES[name])
    packed = read(forward, tmp_path / "a")
    with torch.no_grad():
        expected = reference(input_ids=torch.tensor([TOKENS]), use_cache=False).logits[0]
    found = answer(forward, packed)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)
    assert (found - plain_logits(make_model(FAMILIES[name]), TOKENS)).norm() > 0.05 * expected.norm()
    export(packed, tmp_path / "again", forward.slots.modules)
    came, went = (load_file(tmp_path / folder / WEIGHTS) for folder in ("a", "again"))
    assert came.keys() == went.keys()
    assert all(torch.equal(went[key], each) for key, each in came.items())
    again = read(forward, tmp_path / "again")
    assert torch.equal(again.run, packed.run)
    assert again.header.scalings == packed.header.scalings


def test_linears_of_experts_as_peft_converts_them(tmp_path: Path) -> None:
    """From the old names, PEFT fuses gate and up into one parameter of twice the rank, with one A."""
    reference = save(tmp_path, "qwen3_moe", target_modules=["q_proj", "gate_proj", "up_proj", "down_proj"])
    forward = make_forward(FAMILIES["qwen3_moe"])
    packed = read(forward, tmp_path)
    ranks = {place.path.rpartition(".")[2]: place.rank for place in packed.header.layout.places}
    assert ranks == {"q_proj": 3, "gate_proj": 6, "up_proj": 6, "down_proj": 3}
    with torch.no_grad():
        expected = reference(input_ids=torch.tensor([TOKENS]), use_cache=False).logits[0]
    torch.testing.assert_close(answer(forward, packed), expected, rtol=1e-3, atol=2e-3)


def turn(folder: Path, version: str | None) -> None:
    """Write the experts' A and B as peft before 0.19.1 wrote them where a parameter is stored output-major."""
    tensors = load_file(folder / WEIGHTS)
    for name in [name for name in tensors if ".experts." in name and ".lora_A." in name]:
        other = name.replace(".lora_A.", ".lora_B.")
        a, b = tensors[name], tensors[other]
        apart = b.view(b.shape[0], -1, EXPERTS), a.view(EXPERTS, -1, a.shape[1])
        tensors[name] = apart[0].permute(2, 1, 0).reshape(-1, b.shape[0]).contiguous()
        tensors[other] = apart[1].permute(2, 1, 0).reshape(a.shape[1], -1).contiguous()
    save_file(tensors, folder / WEIGHTS)
    edit_config(folder, peft_version=version)


@pytest.mark.parametrize("targets", [BOTH, BOTH[:1], BOTH[1:]], ids=["both", "gate and up", "down"])
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_the_layout_of_older_versions_means_the_same(name: str, targets: list[str], tmp_path: Path) -> None:
    save(tmp_path, name, target_parameters=targets)
    forward = make_forward(FAMILIES[name])
    packed = read(forward, tmp_path)
    turn(tmp_path, "0.18.1")
    older = read(forward, tmp_path)
    assert torch.equal(older.run, packed.run)
    assert older.header.scalings == packed.header.scalings
    export(older, tmp_path / "out", forward.slots.modules)
    assert torch.equal(read(forward, tmp_path / "out").run, packed.run)


def test_the_layout_of_older_versions_is_that_of_pefts_formula(tmp_path: Path) -> None:
    """As get_delta_weight had it in peft 0.17 to 0.19.0, for a parameter of [E, out, in]."""
    save(tmp_path, "qwen3_moe", target_parameters=BOTH[1:])
    turn(tmp_path, "0.18.1")
    tensors = load_file(tmp_path / WEIGHTS)
    forward = make_forward(FAMILIES["qwen3_moe"])
    packed = read(forward, tmp_path)
    found = {place.path: (a, b) for place, a, b in halves(packed.header.layout, packed.run)}
    path = "model.layers.1.mlp.experts"
    a, b = (tensors[f"base_model.model.{path}.lora_{half}.weight"] for half in "AB")
    expected = torch.einsum("ore,eri->eio", b.view(b.shape[0], -1, EXPERTS), a.view(EXPERTS, -1, a.shape[1]))
    torch.testing.assert_close(torch.einsum("eri,ero->eoi", *found[f"{path}.down_proj"]), expected)


def test_what_no_size_tells_is_told_by_other_parameters_or_the_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gate and up of MiniMax-M2 together have as many outputs as inputs."""
    square = copy.deepcopy(FAMILIES["qwen3_moe"])
    square.moe_intermediate_size = square.hidden_size // 2
    monkeypatch.setitem(FAMILIES, "square", square)
    monkeypatch.setitem(ATTENTION, "square", ["q_proj"])
    forward = make_forward(square)
    save(tmp_path / "both", "square", target_parameters=BOTH)
    packed = read(forward, tmp_path / "both")
    turn(tmp_path / "both", "0.18.1")
    assert torch.equal(read(forward, tmp_path / "both").run, packed.run)

    save(tmp_path / "one", "square", target_parameters=BOTH[:1])
    packed = read(forward, tmp_path / "one")
    for version in ("0.19.1", "1.0"):
        edit_config(tmp_path / "one", peft_version=version)
        assert torch.equal(read(forward, tmp_path / "one").run, packed.run)
    for older in ("0.18.1", "0.19.0", "0.17.2.dev0@ab12", None):  # peft 0.17 wrote none
        edit_config(tmp_path / "one", peft_version=older)
        said = r"by peft (0\.1|before 0\.18 \(it has no).*gate_up_proj has as many inputs as"
        with pytest.raises(errors.UnsupportedAdapter, match=said):
            read(forward, tmp_path / "one")


KEPT = {"gate_proj": (1, 4), "up_proj": (1, 4), "down_proj": (4,)}


def thin_out(folder: Path, forward: Forward) -> dict[str, torch.Tensor]:
    """Zero an adapter on both parameters for experts not in `KEPT`; return those in `KEPT` as separate pairs."""
    tensors, pairs = load_file(folder / WEIGHTS), {}
    for path, expert, a, b in pairs_of(tensors, forward.slots.modules):
        experts, _, leaf = path.rpartition(".")
        if expert in KEPT[leaf]:
            own = f"base_model.model.{experts}.{expert}.{leaf}"
            pairs[f"{own}.lora_A.weight"], pairs[f"{own}.lora_B.weight"] = a.clone(), b.contiguous()
        else:
            a[:] = b[:] = 0
    save_file(tensors, folder / WEIGHTS)
    return pairs


def save_some(folder: Path, name: str, forward: Forward) -> None:
    """Save one adapter twice: "parameters" has zeros for the experts left alone, "pairs" has no tensors for them."""
    save(folder / "parameters", name, target_parameters=BOTH)
    (folder / "pairs").mkdir()
    pairs = thin_out(folder / "parameters", forward)
    rest = {key: each for key, each in load_file(folder / "parameters" / WEIGHTS).items() if ".experts." not in key}
    save_file(
        pairs | {key: each for key, each in rest.items() if not key.partition(".lora_")[0].endswith(".experts")},
        folder / "pairs" / WEIGHTS,
    )
    (folder / "pairs" / CONFIG).write_text((folder / "parameters" / CONFIG).read_text())
    attention = "|".join(ATTENTION[name])
    chosen = "|".join(rf"experts\.({'|'.join(map(str, kept))})\.{leaf}" for leaf, kept in KEPT.items())
    edit_config(folder / "pairs", target_modules=rf".*\.({attention}|{chosen})", target_parameters=None)


@pytest.mark.parametrize("name", ATTENTION)
def test_some_experts_alone_answer_as_pefts_do_beside_zeros(name: str, tmp_path: Path) -> None:
    """PEFT's parameters, which an export writes, contain every expert; those without tensors are zeros."""
    forward = make_forward(FAMILIES[name])
    save_some(tmp_path, name, forward)
    packed = read(forward, tmp_path / "pairs")
    assert torch.equal(packed.run, read(forward, tmp_path / "parameters").run)
    with torch.no_grad():
        peft = PeftModel.from_pretrained(make_model(FAMILIES[name]), str(tmp_path / "parameters"))
        expected = peft(input_ids=torch.tensor([TOKENS]), use_cache=False).logits[0]
    found = answer(forward, packed)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)
    assert (found - plain_logits(make_model(FAMILIES[name]), TOKENS)).norm() > 0.05 * expected.norm()
    export(packed, tmp_path / "again", forward.slots.modules)
    came, went = (load_file(tmp_path / folder / WEIGHTS) for folder in ("parameters", "again"))
    assert came.keys() == went.keys()
    assert all(torch.equal(went[key], each) for key, each in came.items())


@pytest.mark.parametrize("layers", [[1], [1, 4]], ids=["as PEFT counts layers", "as earlier ones counted experts"])
def test_linears_of_experts_of_some_layers(layers: list[int], tmp_path: Path) -> None:
    """PEFT takes the first number in an expert's name for the layer; before 0.21 it took the last."""
    forward = make_forward(FAMILIES["qwen3_moe"])
    save_some(tmp_path, "qwen3_moe", forward)
    folder, experts = tmp_path / "pairs", {each for kept in KEPT.values() for each in kept}
    kept = ("layers.1.",) if layers == [1] else ("layers.1.", *(f"experts.{each}." for each in experts))
    pairs = {key: each for key, each in load_file(folder / WEIGHTS).items() if any(part in key for part in kept)}
    save_file(pairs, folder / WEIGHTS)
    linears = [*ATTENTION["qwen3_moe"], *KEPT]
    edit_config(folder, target_modules=linears, target_parameters=None, layers_to_transform=layers)
    places = read(forward, folder).header.layout.places
    assert {place.path for place in places} == {
        re.sub(r"(experts)\.\d+", r"\1", key.removeprefix("base_model.model.").partition(".lora_")[0])
        for key in pairs
    }
    edit_config(folder, layers_to_transform=[2])
    with pytest.raises(errors.CorruptFile, match="layers_to_transform"):
        read(forward, folder)


def test_one_module_by_both_layouts_is_refused(tmp_path: Path) -> None:
    forward = make_forward(FAMILIES["qwen3_moe"])
    save_some(tmp_path, "qwen3_moe", forward)
    both = load_file(tmp_path / "parameters" / WEIGHTS) | load_file(tmp_path / "pairs" / WEIGHTS)
    save_file(both, tmp_path / "pairs" / WEIGHTS)
    edit_config(tmp_path / "pairs", target_parameters=BOTH)
    with pytest.raises(
        errors.UnsupportedAdapter, match=r"experts\.gate_proj and of .*gate_up_proj, which includes it"
    ):
        read(forward, tmp_path / "pairs")


def _tensors(change: Callable[[str, torch.Tensor], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        made: dict[str, torch.Tensor] = {}
        for name, each in load_file(folder / WEIGHTS).items():
            made |= change(name, each) if ".experts." in name else {name: each}
        save_file(made, folder / WEIGHTS)

    return edit


REFUSED: dict[str, tuple[Callable[[Path], None], type[errors.MintError], str]] = {
    "unknown parameter": (editing(target_parameters=["experts.up"]), errors.UnknownTargetModules, "experts.up"),
    "parameters no list": (editing(target_parameters="mlp"), errors.CorruptFile, "target_parameters"),
    "one of two named": (editing(target_parameters=BOTH[1:]), errors.UnknownTargetModules, "base_layer"),
    "a different rank": (editing(rank_pattern={"down_proj": 4}), errors.ShapeMismatch, "[24, "),
    "rank above the limit": (editing(rank_pattern={"gate_up_proj": 9}), errors.RankTooLarge, "9"),
    "A without B": (
        _tensors(lambda name, each: {} if "lora_B" in name else {name: each}), errors.CorruptFile, "other half"),
    "three dimensions": (_tensors(lambda name, each: {name: each[None]}), errors.ShapeMismatch, "[1, "),
    "NaN": (_tensors(lambda name, each: {name: each * torch.nan}), errors.NonFiniteWeights, "experts"),
    "an infinite scaling": (editing(lora_alpha=3e38 * 4), errors.CorruptFile, "scaling"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    save(tmp_path, "qwen3_moe", target_parameters=BOTH)
    edit, error, message = REFUSED[case]
    edit(tmp_path)
    with pytest.raises(error, match=message.replace("[", r"\[")) as raised:
        read(make_forward(FAMILIES["qwen3_moe"]), tmp_path)
    assert "adapter" in str(raised.value)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "mixtral", "deepseek_v3"])
def test_a_router_is_left_alone(family: str, tmp_path: Path) -> None:
    """Routers are not offered as modules; an adapter on one, in either of PEFT's ways, is refused by name."""
    forward = make_forward(BASES[family])
    model = make_model(BASES[family])
    path = next(path for path, _ in model.named_modules() if path.endswith((".gate", ".router")))
    assert not [offered for offered in forward.slots.modules if offered.startswith(path)]
    leaf = path.rpartition(".")[2]
    options: dict[str, Any] = {"target_modules": ["o_proj"], "r": 2, "target_parameters": [f"mlp.{leaf}.weight"]}
    peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    peft.save_pretrained(str(tmp_path))
    assert [name for name in load_file(tmp_path / WEIGHTS) if f".{leaf}." in name]
    with pytest.raises(errors.UnknownTargetModules, match=rf"targets mlp\.{leaf}\.weight;"):
        read(forward, tmp_path)
    for targets in (["o_proj", leaf], "all-linear"):  # then known by its tensors
        edit_config(tmp_path, target_modules=targets, target_parameters=None)
        with pytest.raises(errors.UnknownTargetModules, match=f"targets {path}"):
            read(forward, tmp_path)
