"""Which mixes fit: properties of every plan, and the figures shown to users."""

import asyncio
import errno
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from mint_contracts.errors import SourceForbidden, UnsupportedBase
from mint_engine.adapters.packed import Header, lay_out
from mint_engine.adapters.packed_file import head_of
from mint_engine.model.cache_shape import cache_shape
from mint_engine.model.modules import find_modules
from mint_engine.training.policy import FormLimits, PolicySettings, form_of
from mint_gateway.cli import parser
from mint_gateway.planning.config import read_shape
from mint_gateway.planning.devices import DEVICES
from mint_gateway.planning.fit import WHOLE_LAYERS, Least, Mix, Plan, hold, least, make_plan
from mint_gateway.planning.limits import MOST_ADAPTER_RANK, MOST_CONTEXT, MOST_RANKS, MOST_SLOTS
from mint_gateway.planning.shape import KINDS, Targets
from tests.crds.schemas import schema, walk
from tests.engine.families import SIZES
from tests.engine.integers import KIMI_IGNORES, packed_config
from tests.planning.frontier import FRONTIER, KIMI_K2
from tests.planning.models import built
from tests.planning.planned import STORAGE, planned

GPUS = sorted(name for name, device in DEVICES.items() if not device.one_memory)
MIXES = st.builds(
    Mix,
    adapters=st.integers(1, 4000),
    rank=st.integers(1, 64),
    targets=st.sampled_from(["attention", "dense", "all"]),
    requests=st.integers(1, 256),
    context=st.integers(1, 40000),
    policies=st.integers(0, 64),
    policy_rank=st.integers(1, 64),
)


def plan(name: str, devices: int, mix: Mix, device: str = "h200") -> Plan:
    return make_plan(read_shape(FRONTIER[name]), DEVICES[device], devices, mix, "bfloat16", STORAGE)


@given(st.sampled_from(sorted(FRONTIER)), st.sampled_from([1, 2, 4, 8, 16, 24]), st.sampled_from(GPUS), MIXES)
@settings(max_examples=40)
def test_a_plan_that_fits_keeps_every_rank_within_its_memory(name: str, ranks: int, device: str, mix: Mix) -> None:
    """Slots fit into every rank's memory, one more would not fit on all ranks, and the engines hold the mix."""
    try:
        found = plan(name, ranks, mix, device)
    except UnsupportedBase:
        assume(False)
    usable = found.memory // ranks
    used = [each.least + (found.slots - 1) * each.adapter for each in found.held]
    if found.fits:
        assert max(used) <= usable
        full = any(bytes_ + each.adapter > usable for bytes_, each in zip(used, found.held, strict=True))
        assert found.slots in (mix.adapters, MOST_SLOTS - mix.policies) or full
        assert found.slots + mix.policies <= MOST_SLOTS
        assert (found.engines - 1) * found.slots < mix.adapters <= found.engines * found.slots
    else:
        assert found.engines == 0
        assert max(each.least for each in found.held) > usable
    assert sum(each.weights for each in found.held) == found.weights + found.repeated


@given(st.sampled_from(sorted(FRONTIER)), st.sampled_from(GPUS), MIXES)
@settings(max_examples=15)
def test_the_fewest_ranks_are_found(name: str, device: str, mix: Mix) -> None:
    """Checked by trying all counts: any number up to one node's devices, and complete nodes beyond."""
    shape = read_shape(FRONTIER[name])
    fitting = []
    for ranks in (*range(1, 9), *range(16, MOST_RANKS + 1, 8)):
        with suppress(UnsupportedBase):
            if all(each.slots for each in hold(shape, DEVICES[device], ranks, mix, "bfloat16")):
                fitting.append(ranks)
    found = least(shape, DEVICES[device], mix, "bfloat16")
    assert found == (Least(fitting[0], -(-fitting[0] // 8)) if fitting else None)


def test_ranks_of_one_machine_share_its_memory() -> None:
    """Two ranks on one machine need what one needs, plus the parts that both hold."""
    mix = Mix(adapters=4, rank=8, targets="all", requests=4, context=1024)
    one, two = (plan("qwen3_30b_a3b", ranks, mix, "cpu") for ranks in (1, 2))
    assert one.memory == two.memory == int(0.9 * DEVICES["cpu"].memory)
    (alone,), (both,) = one.held, two.held
    assert both.weights == alone.weights + two.repeated - one.repeated > alone.weights
    assert both.cache == alone.cache  # each rank has two of the four key/value heads
    assert one.least is None
    assert not one.fits


@given(MIXES)
def test_a_warmer_adapter_is_there_sooner(mix: Mix) -> None:
    found = plan("qwen3_30b_a3b", 1, mix)
    assert 0 < found.from_host < found.from_disk < found.from_network


@pytest.mark.parametrize("targets", sorted(KINDS))
@pytest.mark.parametrize("name", ["kimi_k2", "glm_5", "qwen3_30b_a3b", "phi_3_mini"])
def test_a_cold_load_is_planned_with_the_packed_files_bytes(name: str, targets: Targets) -> None:
    """The file is as the engine writes it; the estimate is within two pages, for headers of up to 1000 modules."""
    shape = read_shape(FRONTIER[name])
    modules = find_modules(built(FRONTIER[name]), shape.target_modules(targets))
    layout = lay_out(modules, dict.fromkeys(modules, 8))
    config = form_of(PolicySettings(), modules, FormLimits(8, base_name="acme/a-base"), "p").config
    scalings = (2.0,) * len(layout.places)
    header = Header(torch.bfloat16, "0" * 64, config, layout, scalings, "0" * 64, revision="", head_bytes=0)
    mix = Mix(adapters=4, rank=8, targets=targets, requests=4, context=1024)
    found = make_plan(shape, DEVICES["h200"], 8, mix, "bfloat16", STORAGE)
    assert shape.adapter_parts(targets) == len(layout.places)
    assert found.adapter_file == pytest.approx(len(head_of(header)) + 2 * layout.elements, abs=2 * 4096)
    assert found.from_disk == found.from_host + found.adapter_file / STORAGE.disk
    assert found.from_network == found.from_disk + found.adapter_file / STORAGE.network


def test_a_trillion_parameters_on_h200s() -> None:
    """In bfloat16 Kimi-K2 does not fit on one node of eight devices: it takes three nodes."""
    mix = Mix(adapters=64, rank=1, targets="all", requests=64, context=4096)
    found = plan("kimi_k2", 24, mix)
    assert found.token == 61 * 576 * 2
    assert found.share < 0.01
    assert (found.slots, found.nodes) == (64, 3)
    assert all(each.cache == found.cache for each in found.held)  # every rank holds the complete compressed cache
    assert plan("kimi_k2", 8, mix).least == plan("kimi_k2", 16, mix).least == Least(24, 3)
    assert not plan("kimi_k2", 16, mix).fits


@pytest.mark.parametrize(
    ("name", "device", "ranks", "dtype", "expected"),
    [
        ("qwen3_30b_a3b", "h200", 1, "bfloat16", ""),
        ("qwen3_30b_a3b", "h200", 2, "bfloat16", ""),
        ("qwen3_30b_a3b", "cpu", 2, "bfloat16", ""),
        ("kimi_k2", "h200", 24, "bfloat16", ""),
        ("kimi_k2", "h200", 17, "bfloat16", "17 of these devices are in 3 nodes"),
        ("deepseek_v32", "h200", 128, "bfloat16", "at most 64 ranks"),
    ],
)
def test_a_plan_that_fits_but_is_not_served_says_so(
    name: str, device: str, ranks: int, dtype: str, expected: str
) -> None:
    mix = Mix(adapters=4, rank=1, targets="attention", requests=4, context=1024)
    found = make_plan(read_shape(FRONTIER[name]), DEVICES[device], ranks, mix, dtype, STORAGE).refusal
    assert expected in found if expected else found == ""


@pytest.mark.parametrize(
    ("family", "more", "expected"),
    [
        ("gemma3_text", {"use_bidirectional_attention": True}, "the base attends to later tokens too"),
        ("qwen3", {"layer_types": ["full_attention", "linear_attention"]}, "the base has layers of linear_attention"),
        ("llama", {"attention_chunk_size": 8192}, "the base attends in chunks of its context"),
        ("llama", {"num_kv_shared_layers": 1}, "the base shares keys and values between layers"),
        ("gemma3_text", {"layer_types": ["sliding_attention", "full_attention"]}, ""),
    ],
)
def test_a_base_that_engines_refuse_is_not_planned_as_served(
    family: str, more: dict[str, Any], expected: str
) -> None:
    """The plan gives the engine's own reason."""
    sizes: dict[str, Any] = {key: each for key, each in SIZES.items() if not key.startswith("rope")}
    sizes |= {"num_hidden_layers": 2} | more
    config = AutoConfig.for_model(family, **sizes)
    with pytest.raises(UnsupportedBase, match=expected.removeprefix("the base ")) if expected else nullcontext():
        cache_shape(config)
    refusal = planned({"model_type": family} | sizes, 1).refusal
    assert refusal == (f"so far {expected}, which is not served" if expected else "")


def test_plans_stay_within_the_limits_of_a_base_model() -> None:
    fields = dict(walk(schema("BaseModel")))
    engine, adapters = ".spec.engine", ".spec.adapters"
    for path, most in {
        f"{engine}.tensorParallelSize": MOST_RANKS,
        f"{engine}.contextLength": MOST_CONTEXT,
        f"{adapters}.deviceSlots": MOST_SLOTS,
        f"{adapters}.maxRank": MOST_ADAPTER_RANK,
    }.items():
        assert fields[path]["maximum"] == most
    many = Mix(adapters=4000, rank=1, targets="attention", requests=1, context=1024)
    found = plan("qwen3_30b_a3b", 1, many)
    assert (found.slots, found.engines) == (1024, 4)
    assert found.refusal == ""
    assert "at most 512" in plan("qwen3_30b_a3b", 1, msgspec.structs.replace(many, rank=513)).refusal
    assert "at most 1048576" in plan("qwen3_30b_a3b", 1, msgspec.structs.replace(many, context=2**20 + 1)).refusal


def test_loading_takes_the_host_each_ranks_share_and_layers_that_the_first_has_whole() -> None:
    shape, mix = read_shape(KIMI_K2), Mix(adapters=1, rank=1, targets="attention", requests=1, context=1024)
    one, eight = (make_plan(shape, DEVICES["cpu"], ranks, mix, "bfloat16", STORAGE) for ranks in (1, 8))
    assert one.loading == one.held[0].weights
    experts = 2 * 384 * 3 * 7168 * 2048
    assert eight.loading - eight.held[0].weights == pytest.approx(WHOLE_LAYERS * experts, rel=0.05)


def test_loading_onto_gpus_takes_the_host_what_is_being_read() -> None:
    """Of a base that is larger than all the memory of the host."""
    one, eight = planned(KIMI_K2, 1), planned(KIMI_K2, 8)
    experts, outside = 2 * 384 * 3 * 7168 * 2048, 2 * 2 * 163840 * 7168
    assert one.loading == pytest.approx(experts + outside, rel=0.05)
    assert eight.loading == pytest.approx(WHOLE_LAYERS * experts + 8 * outside, rel=0.05)
    assert eight.loading < one.weights / 10


async def mint_plan(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", "from mint_gateway.cli import main; main()", "plan"),
        *arguments,
        env={"COLUMNS": "140"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), err.decode()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(KIMI_K2))
    return tmp_path


async def test_the_table_that_a_person_reads(base: Path) -> None:
    code, out, err = await mint_plan(str(base), "--device", "h200", "--tensor-parallel", "24", "--rank", "1")
    assert (code, err) == (0, "")
    for word in ("1,026", "weights", "cache", "engines", "cold load", "attention", "of the base"):
        assert word in out


async def test_the_table_names_the_modules_that_a_base_model_is_to_offer(base: Path) -> None:
    arguments = ("--device", "h200", "--tensor-parallel", "24", "--targets", "dense")
    _, out, _ = await mint_plan(str(base), *arguments)
    for word in ("targetModules", "mlp.down_proj", "shared_experts.up_proj", "q_a_proj"):
        assert word in out
    assert "targetModules" not in (await mint_plan(str(base), *arguments[:-2]))[1]


async def test_a_plan_that_does_not_fit_says_what_would(base: Path) -> None:
    code, out, _ = await mint_plan(str(base / "config.json"), "--tensor-parallel", "8", "--memory", "80G")
    assert code == 2
    assert "48 such devices on 6 nodes of 8" in out


async def test_for_programs(base: Path) -> None:
    code, out, _ = await mint_plan(str(base), "--device", "cpu", "--memory", "4Ti", "-o", "json")
    assert code == 0
    printed = json.loads(out)
    assert printed["parameters"] > 10**12
    assert printed["files"] == 2 * printed["parameters"]
    assert printed["weights"] > printed["files"]  # since routers stay in float32


async def test_the_table_of_a_base_in_float8(base: Path) -> None:
    config = KIMI_K2 | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    (base / "config.json").write_text(json.dumps(config))
    _, out, _ = await mint_plan(str(base), "--device", "h200", "--tensor-parallel", "24", "--rank", "1")
    for word in ("1.03 TB", "float8 in blocks of 128 x 128; dequantised when loaded", "2.05 TB", "while it loads"):
        assert word in out


async def test_the_table_of_a_base_whose_experts_stay_quantised(base: Path) -> None:
    config = KIMI_K2 | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    (base / "config.json").write_text(json.dumps(config))
    _, out, _ = await mint_plan(
        str(base), "--device", "h200", "--tensor-parallel", "16", "--rank", "1", "--quantised-experts"
    )
    for word in ("float8 in blocks of 128 x 128; experts stay quantised, others dequantised", "1.04 TB"):
        assert word in out


async def test_a_plan_that_does_not_fit_suggests_quantised_experts(base: Path) -> None:
    options = (str(base), "--device", "h200", "--tensor-parallel", "16", "--rank", "1")
    advice = "quantised experts take less: see --quantised-experts"
    code, out, _ = await mint_plan(*options)
    assert (code, advice in out) == (2, False)
    config = KIMI_K2 | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    (base / "config.json").write_text(json.dumps(config))
    code, out, _ = await mint_plan(*options)
    assert (code, advice in out) == (2, True)
    code, out, _ = await mint_plan(*options, "--quantised-experts")
    assert (code, advice in out) == (0, False)


async def test_a_base_without_quantised_experts_says_so(base: Path) -> None:
    code, _, error = await mint_plan(str(base), "--quantised-experts")
    assert code == 1
    assert "has no quantised routed experts; leave out --quantised-experts" in error


async def test_the_table_of_a_base_that_says_beside_its_config_how_it_is_quantised(base: Path) -> None:
    (base / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "MXFP8"}}))
    _, out, _ = await mint_plan(str(base), "--device", "h200", "--tensor-parallel", "24", "--rank", "1")
    assert "linears in MXFP8; dequantised when loaded" in out


async def test_the_table_of_a_base_whose_linears_differ(base: Path) -> None:
    layers = {"model.layers.0.self_attn.o_proj": {"quant_algo": "FP8"}, "model.layers.0.mlp": {"quant_algo": "NVFP4"}}
    scheme = {"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}}
    (base / "hf_quant_config.json").write_text(json.dumps(scheme))
    _, out, _ = await mint_plan(str(base), "--device", "h200", "--tensor-parallel", "24", "--rank", "1")
    assert "linears in NVFP4, others in float8; dequantised when loaded" in out


@pytest.mark.parametrize(
    ("ignore", "weights", "says"),
    [
        (KIMI_IGNORES, {"strategy": "group", "group_size": 32}, "experts in INT4 in groups of 32"),
        (["lm_head"], {"strategy": "channel", "num_bits": 8}, "linears in INT8 per channel"),
        (["lm_head"], {"strategy": "tensor", "num_bits": 8}, "linears in INT8 per tensor"),
    ],
)
async def test_the_table_of_a_packed_base(
    ignore: Sequence[str], weights: dict[str, Any], says: str, base: Path
) -> None:
    config = KIMI_K2 | {"quantization_config": packed_config(*ignore, **weights)}
    (base / "config.json").write_text(json.dumps(config))
    _, out, _ = await mint_plan(str(base), "--device", "h200", "--tensor-parallel", "24", "--rank", "1")
    assert f"{says}; dequantised when loaded" in out


async def test_one_error_for_bad_input(tmp_path: Path, base: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "garbled.json").write_text(json.dumps(KIMI_K2 | {"rope_scaling": "yarn"}))
    for arguments, word in (
        ((str(tmp_path / "nowhere"),), "nowhere"),
        ((str(tmp_path / "broken.json"),), "broken.json"),
        ((str(tmp_path / "deep.json"),), "deep.json: cannot be read as JSON"),
        ((str(tmp_path / "garbled.json"),), "garbled.json: has missing or invalid values: Expected `object"),
        ((str(base), "--context", "999999"), "131072"),
        ((str(base), "--tensor-parallel", "65"), "64 query heads"),
    ):
        code, out, err = await mint_plan(*arguments)
        assert (code, out) == (1, "")
        assert word in err
    assert (await mint_plan(str(base), "--memory", "lots"))[0] == 2


async def test_a_place_that_cannot_be_looked_up_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = await mint_plan("a" * 300)
    assert (code, out) == (1, "")
    assert err == f"mint: SourceNotFound: base {'a' * 300}: could not be looked up (File name too long)\n"

    def denied(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    for look in ("is_dir", "exists"):
        (tmp_path / "config.json").write_text(json.dumps(KIMI_K2))
        with monkeypatch.context() as patched:
            patched.setattr(Path, look, denied)
            options = parser().parse_args(["plan", str(tmp_path / "config.json")])
            with pytest.raises(SourceForbidden, match=r"config\.json: cannot be read; check the permissions"):
                await options.run(options)


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--tensor-parallel", "9" * 23, "is too large; the maximum is 65536"),
        ("--tensor-parallel", "65537", "'65537' is too large; the maximum is 65536"),
        ("--adapters", "9" * 400, "is too large; the maximum is 1000000000000000"),
        ("--adapters", "9" * 10_000, "is too large; the maximum is 1000000000000000"),
        ("--memory", "9" * 400, "is not a valid size; use for example 64Gi"),
        ("--memory", "999999T", "'999999T' is too large; the maximum is 1000000000000000"),
        ("--rank", "0" * 100, "is not a positive whole number"),
        ("--rank", "\u0663", "is not a positive whole number"),
        ("--rank", "-1", "'-1' is not a positive whole number"),
    ],
)
def test_numbers_out_of_range_are_refused(
    option: str, value: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["plan", "base", option, value])
    assert problem in capsys.readouterr().err


async def test_the_largest_numbers_can_be_planned(base: Path) -> None:
    counts = ("--adapters", "--rank", "--requests", "--train", "--disk", "--network", "--node", "--memory")
    most = [each for name in counts for each in (name, str(10**15))]
    code, _, err = await mint_plan(str(base), *most)
    assert (code, err) == (2, "")
