"""Plans of bases whose routed experts stay quantised: what engines hold, and how few devices are needed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from mint_engine.kernels.library import find_kernels
from mint_engine.model.quantised_experts import QuantisedWeight
from mint_engine.parallel.part import Part
from mint_gateway.cli.plan import _read
from mint_gateway.planning.config import read_shape
from mint_gateway.planning.devices import DEVICES
from mint_gateway.planning.fit import Least, Mix, hold, make_plan
from mint_gateway.planning.ranks import share_out
from mint_gateway.planning.shape import keep_experts
from tests.engine.families import CPU
from tests.engine.integers import KIMI_IGNORES, packed_config
from tests.engine.quantised_experts import Save, bytes_of, in_float8, in_mxfp4, in_numbers, load, stacks
from tests.engine.running import running
from tests.planning.frontier import GPT_OSS_120B, KIMI_K2
from tests.planning.planned import STORAGE

MIX = Mix(adapters=64, rank=1, targets="all", requests=64, context=4096)
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
INT4 = packed_config(*KIMI_IGNORES, strategy="group", group_size=32)


@pytest.mark.parametrize(
    ("config", "quantised", "device", "weights", "least"),
    [
        # As in moonshotai/Kimi-K2-Instruct, Kimi-K2-Thinking and openai/gpt-oss-120b.
        (KIMI_K2, FP8, "h200", 1.04e12, Least(16, 2)),
        (KIMI_K2, INT4, "h200", 594e9, Least(6, 1)),
        (GPT_OSS_120B, {"quant_method": "mxfp4"}, "h100", 65.2e9, Least(2, 1)),
    ],
    ids=["float8", "packed", "mxfp4"],
)
def test_a_base_takes_as_much_memory_as_its_files(
    config: Mapping[str, Any], quantised: dict[str, Any], device: str, weights: float, least: Least
) -> None:
    shape = keep_experts(read_shape({**config, "quantization_config": quantised}), "config.json")
    found = make_plan(shape, DEVICES[device], least.ranks, MIX, "bfloat16", STORAGE)
    assert found.weights == pytest.approx(weights, rel=0.01)
    assert found.least == least
    assert found.fits
    assert found.refusal == ""
    plain = make_plan(
        msgspec.structs.replace(shape, keeps_quantised_experts=False), DEVICES[device], 24, MIX, "bfloat16", STORAGE
    )
    assert plain.least is not None
    assert plain.least.ranks > least.ranks


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    "save",
    [in_float8("qwen3_moe"), in_float8("glm_5"), in_mxfp4, in_numbers("qwen3_moe", "w4a16")],
    ids=["float8", "float8 with indexers", "mxfp4", "packed"],
)
def test_weights_are_those_that_an_engine_holds(save: Save, ranks: int, tmp_path: Path) -> None:
    """Exact to the byte, in float16, which own kernels do not support; each rank's head is cut only later."""
    quantised, _ = save(tmp_path)
    shape = keep_experts(read_shape(_read(quantised)), "config.json")
    for rank, share in enumerate(share_out(shape, ranks)):
        base = load(quantised, Part(rank, ranks) if ranks > 1 else None, dtype=torch.float16)
        kept = [stack for stack in stacks(base).values() if isinstance(stack, QuantisedWeight)]
        held = bytes_of(kept) + sum(each.nbytes for each in base.model.parameters())
        assert share.resident_bytes("float16") == held - 2 * (shape.head_rows - share.head_rows) * shape.hidden
    (one,) = hold(shape, DEVICES["cpu"], 1, MIX, "bfloat16")
    packed = shape.packed_parameters(MIX.context) if shape.lean else 0
    assert one.weights == shape.resident_bytes("bfloat16") + 2 * packed


@pytest.mark.parametrize(
    ("save", "lean"),
    [
        (in_float8("qwen3_moe"), True),
        (in_float8("glm4_moe"), True),
        (in_numbers("mixtral", "w4a16_asymmetric"), True),
        (in_numbers("mixtral", "w4a16_reordered"), False),
        (in_mxfp4, True),
    ],
    ids=["float8", "float8 in groups", "with zero points", "reordered", "gpt-oss"],
)
async def test_packed_copies_of_own_kernels_are_counted_where_they_serve(
    save: Save, lean: bool, tmp_path: Path
) -> None:
    """Not what own kernels keep during an update: torch computes the updates of these bases."""
    quantised, _ = save(tmp_path)
    own = find_kernels(torch.bfloat16, CPU) is not None
    async with running(quantised, {}, quantised_experts=True) as engine:
        assert engine.server.generation.compute.startswith("lean") is (lean and own)
    shape = keep_experts(read_shape(_read(quantised)), "config.json")
    assert shape.lean is lean
    training = msgspec.structs.replace(MIX, policies=1, policy_rank=8)
    kept, torchs = (
        hold(each, DEVICES["cpu"], 1, training, "bfloat16")[0].activations
        for each in (shape, msgspec.structs.replace(shape, lean=False))
    )
    assert kept == torchs
