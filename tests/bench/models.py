"""The measured bases: the sample base in bfloat16, or a random one of a larger model's shape."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, Qwen3Config, Qwen3MoeConfig

from tests.bench.places import bench_cache, made_once

_SHARD_BYTES = 2 << 30
_POOL = 1 << 24  # distinct random numbers; every tensor takes a stretch of them
_STD = 0.02


def sample_base(samples: Path) -> Path:
    """Return a bfloat16 copy of the sample base, so that every side reads the same weights."""
    with (samples / "model.safetensors").open("rb") as file:  # samples made again mostly hold the same base
        key = hashlib.file_digest(file, "sha256").hexdigest()[:12]

    def make(folder: Path) -> None:
        _copy_rest(samples, folder)
        tensors = {name: each.to(torch.bfloat16) for name, each in load_file(samples / "model.safetensors").items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return made_once(bench_cache() / "models" / f"sample-{key}", make)


def vocabulary(base: Path) -> int:
    """Return the number of token ids that a base knows."""
    return int(json.loads((base / "config.json").read_text())["vocab_size"])


def linears(base: Path) -> dict[str, tuple[int, int]]:
    """Return every linear module of a base's decoder layers: path to (in, out) features, in the model's order."""
    model = _empty(AutoConfig.from_pretrained(base))
    return {
        path: (module.in_features, module.out_features)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in path
    }


def write_base(config: PreTrainedConfig, tokenizer_from: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Write a random model of a configuration, with another base's tokenizer."""
    for file in tokenizer_from.iterdir():
        if file.name.startswith(("tokenizer", "chat_template", "special_tokens")):
            shutil.copy(file, folder / file.name)
    write_random(config, folder, say)


def qwen3_4b() -> PreTrainedConfig:
    """Return Qwen3-4B's shape, as in its published config.json."""
    return Qwen3Config(
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        tie_word_embeddings=True,
        eos_token_id=2,
        dtype="bfloat16",
    )


def qwen3_30b_a3b(layers: int = 48) -> PreTrainedConfig:
    """Return Qwen3-30B-A3B's shape, as in its published config.json, or a slice with fewer layers."""
    return Qwen3MoeConfig(
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,  # type: ignore[call-arg]
        vocab_size=151936,
        max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        tie_word_embeddings=False,
        eos_token_id=2,
        dtype="bfloat16",
    )


def nbytes(config: PreTrainedConfig) -> int:
    """Return the bytes of a model of a configuration in bfloat16."""
    return 2 * sum(each.numel() for each in _empty(config).parameters())


def write_random(config: PreTrainedConfig, folder: Path, say: Callable[[str], None]) -> None:
    """Write random weights of a configuration in shards, cheaply: tensors are stretches of one random pool."""
    model = _empty(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    torch.manual_seed(4)
    pool = torch.randn(_POOL).mul_(_STD).to(torch.bfloat16)
    tied = getattr(model, "_tied_weights_keys", None) if config.tie_word_embeddings else None
    shapes = {name: each.shape for name, each in model.state_dict().items() if name not in (tied or ())}
    shards = list(_shards(shapes))
    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        say(file)
        save_file({name: _stretch(pool, name, shapes[name]) for name in names}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(names, file)
    total = sum(shape.numel() * 2 for shape in shapes.values())
    document = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))


def _shards(shapes: dict[str, torch.Size]) -> Iterator[list[str]]:
    names: list[str] = []
    held = 0
    for name, shape in shapes.items():
        if names and held + shape.numel() * 2 > _SHARD_BYTES:
            yield names
            names, held = [], 0
        names.append(name)
        held += shape.numel() * 2
    yield names


def _stretch(pool: torch.Tensor, name: str, shape: torch.Size) -> torch.Tensor:
    if len(shape) == 1:  # the norms
        return torch.ones(shape, dtype=torch.bfloat16)
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") % _POOL
    return pool.roll(-start).repeat(-(-shape.numel() // _POOL))[: shape.numel()].view(shape)


def _empty(config: PreTrainedConfig) -> torch.nn.Module:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    assert isinstance(model, torch.nn.Module)
    return model


def _copy_rest(source: Path, folder: Path) -> None:
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder / file.name)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "bfloat16"}))
