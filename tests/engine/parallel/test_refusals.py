"""What is not shared out over ranks is refused, and the refusal names it."""

import os
from pathlib import Path

import pytest

from mint_contracts.errors import UnsupportedBase
from mint_contracts.source import Source
from mint_engine.adapters.adapter import Module
from mint_engine.build import build
from mint_engine.model.base import load_base
from mint_engine.model.device import choose_device, choose_dtype
from mint_engine.model.forward import choose_pass
from mint_engine.parallel.meeting import make_memory
from mint_engine.parallel.member import extent_of, join, lay_member
from mint_engine.parallel.shares import Dimensions, cuts_of, share_out
from mint_engine.scheduling.scheduler import Limits
from tests.engine.running import save_base, settings_for

SHARE = share_out(Dimensions(heads=4, kv_heads=2, head_dim=16, inner=96, vocabulary=300), 2)[0]


@pytest.mark.parametrize(
    "module",
    [
        Module("model.layers.0.mlp.experts.gate_proj", 64, 96, 8),
        Module("model.layers.0.self_attn.kv_a_proj_with_mqa", 64, 96),
    ],
)
def test_layers_that_are_not_shared_out(module: Module) -> None:
    with pytest.raises(UnsupportedBase, match=f"tensorParallelSize: is more than 1, and the base has {module.path}"):
        cuts_of({module.path: module}, SHARE)


def test_the_generic_pass(tmp_path: Path) -> None:
    settings = settings_for(save_base(tmp_path))
    base = load_base(tmp_path, choose_dtype(settings.dtype), choose_device(settings.device))
    member, memory = lay_member(settings, base, 0, 2), make_memory()
    try:
        os.ftruncate(memory, extent_of(member, 64, 1).nbytes)
        meeting = join(member, memory, 64, 1)
    finally:
        os.close(memory)
    with pytest.raises(UnsupportedBase, match="has no pass of own kernels here, which alone is shared out"):
        choose_pass(member.base, member.slots, member.cache, meeting=meeting, lean=False)


def test_training(tmp_path: Path) -> None:
    store = Source(f"file://{tmp_path}/runs")
    settings = settings_for(save_base(tmp_path / "base"), tensor_parallel_size=2, training_store=store)
    with pytest.raises(UnsupportedBase, match="engines of several ranks do not train"):
        build(settings, tmp_path / "base", Limits())
