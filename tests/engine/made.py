"""Tiny bases and adapters for tests: written by PEFT itself, or deliberately broken."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from mint_engine.adapters import packed_file
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.check import Fit
from mint_engine.adapters.packed import Packed, fingerprint, halves, lay_out
from mint_engine.adapters.read import read_adapter
from mint_engine.sources.fetch import CONFIG, PACKED, WEIGHTS
from mint_engine.sources.local import LocalFolder

BASE_NAME = "tests/tiny-llama"
ALL_SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Delta:
    """One module's part of an adapter: y += (x @ a.T) @ b.T * scaling.

    a: [r, in], b: [out, r]; for stacked experts [E, r, in] and [E, out, r]. `scaling` is alpha/r (alpha/sqrt(r) with
    rsLoRA) and is applied exactly once, here.
    """

    a: torch.Tensor
    b: torch.Tensor
    scaling: float


def tiny_llama() -> LlamaForCausalLM:
    """A random Llama of two layers; the same one every time."""
    torch.manual_seed(7)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=96, max_position_embeddings=256, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.train(False)
    return model


@cache
def tiny_fit(max_rank: int = 16, base_names: tuple[str, ...] = ()) -> Fit:
    """The Fit of the tiny base: every linear module of its layers."""
    modules = {
        path: Module(path, linear.in_features, linear.out_features)
        for path, linear in tiny_llama().named_modules()
        if isinstance(linear, torch.nn.Linear) and path.startswith("model.layers.")
    }
    return Fit(modules=modules, max_rank=max_rank, base_names=base_names)


def fill(model: torch.nn.Module, seed: int, deviation: float) -> None:
    """Fill the adapter of a PEFT model, B included, with random numbers that depend only on the seed."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.normal_(0, deviation)


def peft_adapter(folder: Path, *, seed: int = 0, **options: Any) -> PeftModel:
    """Save a random adapter over the tiny base with PEFT's own writer; return its PEFT model."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **options}
    model = get_peft_model(tiny_llama(), LoraConfig(task_type="CAUSAL_LM", **options))
    fill(model, seed, 0.05)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    edit_config(folder, base_model_name_or_path=BASE_NAME)  # only now: PEFT would look the name up on the hub
    return model


def read_tiny(folder: Path) -> Packed:
    """Read an adapter over the tiny base as an engine in float32 does."""
    return read_adapter(LocalFolder(folder, str(folder)), tiny_fit(), torch.float32)


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_base(folder: Path, **changes: Any) -> None:
    """Change fields of a base's config."""
    edit_json(folder / "config.json", **changes)


def edit_config(folder: Path, **changes: Any) -> None:
    """Change fields of an adapter's config."""
    edit_json(folder / CONFIG, **changes)


def editing(**changes: Any) -> Callable[[Path], None]:
    """Return a function that changes these fields of an adapter's config."""
    return lambda folder: edit_config(folder, **changes)


def edit_tensors(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Change tensors of an adapter by name; None removes one."""
    tensors = load_file(folder / WEIGHTS) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / WEIGHTS)


def lora_names(folder: Path) -> list[str]:
    """The names of an adapter's tensors, sorted."""
    return sorted(load_file(folder / WEIGHTS))


def pack(modules: Mapping[str, Module], deltas: Mapping[str, Delta], dtype: torch.dtype = torch.float32) -> Packed:
    """Pack an adapter straight from its tensors; modules that the base lacks come last."""
    known = {**modules, **{p: Module(p, d.a.shape[-1], d.b.shape[-2]) for p, d in deltas.items() if p not in modules}}
    shapes = {path: Module(path, deltas[path].a.shape[-1], deltas[path].b.shape[-2], module.experts)
              for path, module in known.items() if path in deltas}  # fmt: skip
    layout = lay_out(shapes, {path: delta.a.shape[-2] for path, delta in deltas.items()})
    run = torch.empty(layout.elements, dtype=dtype)
    for place, a, b in halves(layout, run):
        a.copy_(deltas[place.path].a.view(a.shape))
        b.copy_(deltas[place.path].b.mT.view(b.shape) if place.experts else deltas[place.path].b.t()[None])
    scalings = tuple(deltas[place.path].scaling for place in layout.places)
    return Packed(packed_file.describe(b"{}", fingerprint(modules), layout, scalings, run), run)


def unpack(packed: Packed) -> dict[str, Delta]:
    """Return the packed parts by module path, as views of the run."""
    parts = zip(halves(packed.header.layout, packed.run), packed.header.scalings, strict=True)
    return {
        place.path: Delta(a if place.experts else a[0], (b if place.experts else b[0]).mT, scaling)
        for (place, a, b), scaling in parts
    }


def packed_source(folder: Path, packed: Packed) -> Path:
    """Make a folder that holds a packed file."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / PACKED).open("wb") as file:
        packed_file.write(packed, file)
    return folder


def smallest_adapter() -> Packed:
    """An adapter of rank 1 on a single module, for tests of memory in which nothing is computed."""
    return pack({"q": Module("q", 10, 1)}, {"q": Delta(torch.zeros(1, 10), torch.zeros(1, 1), 1.0)})
