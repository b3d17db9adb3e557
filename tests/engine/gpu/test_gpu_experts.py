"""Products with quantised experts by kernels for GPUs, interpreted, against naive ones; and engines that use them."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from mint_contracts.cuts import Cut
from mint_contracts.errors import UnsupportedBase
from mint_engine.gpu import experts as gpu_experts
from mint_engine.gpu import lora
from mint_engine.gpu.expert_kernels import multiply
from mint_engine.gpu.experts import FEW, MANY, ExpertProduct, Tile
from mint_engine.gpu.find import put_expert_products
from mint_engine.kernels.expert_structs import Codes, Kind, Stack
from mint_engine.model.base import Base
from mint_engine.model.experts import forward, is_stack
from mint_engine.model.modules import replace_modules
from mint_engine.model.quantised_experts import QuantisedWeight, kept_stacks, move
from mint_engine.parallel.shard import _cut_stack
from mint_engine.residency.slots import Slots
from mint_engine.training.routed import read_stack
from tests.engine.device_double import CUDA, Noted, Silent, standing_in
from tests.engine.quantised_experts import SAVES, load
from tests.engine.running import Answer, ask, running
from tests.engine.saved_families import SERVED, save_adapter

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
BITS = {Kind.E4M3: 8, Kind.INT8: 8, Kind.E2M1: 4, Kind.INT4: 4}
# How bases are published: a code's kind, outputs and inputs that share a scale (0: all), the scales' type, zeros.
FORMATS: dict[str, tuple[Kind, int, int, torch.dtype, torch.dtype | None]] = {
    "float8": (Kind.E4M3, 16, 128, torch.float32, None),
    "float8 by channels": (Kind.E4M3, 1, 0, torch.bfloat16, None),
    "float8 by tensors": (Kind.E4M3, 0, 0, torch.float32, None),
    "mxfp8": (Kind.E4M3, 1, 32, torch.uint8, None),
    "mxfp4": (Kind.E2M1, 1, 32, torch.uint8, None),
    "nvfp4": (Kind.E2M1, 1, 16, torch.float8_e4m3fn, None),
    "int4": (Kind.INT4, 1, 32, torch.bfloat16, None),
    "int4 by channels": (Kind.INT4, 1, 0, torch.float16, None),
    "int4 with zeros": (Kind.INT4, 1, 8, torch.float16, torch.int32),
    "int8": (Kind.INT8, 1, 0, torch.float32, None),
    "int8 with packed zeros": (Kind.INT8, 1, 16, torch.bfloat16, torch.int32),
    "int8 with zeros": (Kind.INT8, 0, 0, torch.bfloat16, torch.int8),
}


def values(codes: torch.Tensor, kind: Kind) -> torch.Tensor:
    """What bytes [E, O, B] stand for, [E, O, I]."""
    if kind == Kind.E4M3:
        return codes.view(torch.float8_e4m3fn).float()
    if kind == Kind.INT8:
        return codes.float() - 128
    halves = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(2).long()
    return E2M1[halves] if kind == Kind.E2M1 else halves.float() - 8


def random_codes(name: str, shape: tuple[int, int, int], draw: torch.Generator) -> tuple[Codes, torch.Tensor]:
    """Codes of one format, and the weights [E, O, I] that they stand for, in float32."""
    kind, high, wide, dtype, zero_dtype = FORMATS[name]
    (experts, outputs, inputs), bits = shape, BITS[kind]
    high, wide = high or outputs, wide or inputs
    rows, columns = -(-outputs // high), -(-inputs // wide)
    codes = torch.randint(0, 256, (experts, outputs, inputs * bits // 8), generator=draw, dtype=torch.uint8)
    if kind == Kind.E4M3:
        codes[codes % 128 == 127] = 1  # NaN
    numbers = values(codes, kind)
    scales = torch.rand(experts, rows, columns, generator=draw) + 0.1
    factors = torch.rand(experts, generator=draw) if dtype == torch.float8_e4m3fn else None
    if dtype == torch.uint8:
        scales = torch.randint(120, 130, scales.shape, generator=draw, dtype=dtype)
    scales = scales.to(dtype)
    plain = scales.view(torch.float8_e8m0fnu).float() if dtype == torch.uint8 else scales.float()
    if factors is not None:
        plain = plain * factors[:, None, None]
    zeros, less = None, torch.zeros(experts, rows, columns)
    if zero_dtype == torch.int8:
        zeros = torch.randint(-128, 128, (experts, rows, columns), generator=draw, dtype=torch.int8)
        less = zeros.float()
    elif zero_dtype == torch.int32:
        each = 32 // bits
        packed = torch.randint(0, 256, (experts, -(-rows // each), columns, 4), generator=draw, dtype=torch.uint8)
        zeros = packed.view(torch.int32).squeeze(3)
        fields = [(zeros.long() >> bits * at) % (1 << bits) for at in range(each)]
        less = torch.stack(fields, dim=2).flatten(1, 2)[:, :rows].float() - (1 << bits - 1)
    spread = [
        of.repeat_interleave(high, 1)[:, :outputs].repeat_interleave(wide, 2)[:, :, :inputs] for of in (plain, less)
    ]
    laid = codes.view(torch.float8_e4m3fn) if kind == Kind.E4M3 else codes
    return Codes(kind, laid, scales, (high, wide), factors, zeros), (numbers - spread[1]) * spread[0]


def on_device(codes: Codes) -> Codes:
    tensors = (codes.codes, codes.scales, codes.expert_scales, codes.zeros)
    there = [None if each is None else each.to(CUDA) for each in tensors]
    assert there[0] is not None
    assert there[1] is not None
    return Codes(codes.kind, there[0], there[1], codes.block, there[2], there[3])


def product_of(
    names: list[str], shape: tuple[int, int, int], draw: torch.Generator
) -> tuple[ExpertProduct, torch.Tensor]:
    """The product with linears of these formats, and their weights one below another."""
    made = [random_codes(name, shape, draw) for name in names]
    experts, outputs, inputs = shape
    stack = Stack(
        torch.Size((experts, outputs * len(names), inputs)), None, tuple(on_device(each) for each, _ in made)
    )
    product = ExpertProduct.of(stack)
    assert product is not None
    return product, torch.cat([weights for _, weights in made], dim=1)


def multiplied(product: ExpertProduct, x: torch.Tensor, counts: list[int], tile: Tile | None = None) -> torch.Tensor:
    ends = torch.tensor(counts).cumsum(0).int()
    return product.multiply(x.to(CUDA), ends.to(CUDA), tile).cpu()


def naive(weights: torch.Tensor, x: torch.Tensor, counts: list[int]) -> torch.Tensor:
    owners = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return torch.stack([weights[owner] @ row for owner, row in zip(owners, x, strict=True)])


def assert_alike(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.norm(dim=1).mean()))


@settings(max_examples=20)
@given(
    names=st.lists(st.sampled_from(sorted(FORMATS)), min_size=1, max_size=2),
    counts=st.lists(st.sampled_from([0, 0, 1, 3, 17, 66]), min_size=1, max_size=4).filter(any),
    outputs=st.sampled_from([8, 70]),
    inputs=st.sampled_from([16, 96, 280]),
    tile=st.sampled_from([None, FEW, MANY]),
    seed=st.integers(0, 1 << 20),
)
def test_every_row_is_multiplied_by_its_own_expert(
    names: list[str], counts: list[int], outputs: int, inputs: int, tile: Tile | None, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    with standing_in() as seen:
        product, weights = product_of(names, (len(counts), outputs, inputs), draw)
        x = torch.randn(sum(counts), inputs, generator=draw)
        given, ends = x.to(CUDA), torch.tensor(counts).cumsum(0).int().to(CUDA)
        seen.forget()
        found = product.multiply(given, ends, tile)
        back = product.multiply_back(found, ends, tile)
        assert not seen.waits
        found, back = found.cpu(), back.cpu()
    assert_alike(found, naive(weights, x, counts))
    assert_alike(back, naive(weights.mT, found, counts))


@pytest.mark.parametrize("name", ["float8", "int4"])
def test_a_rank_may_have_no_rows(name: str) -> None:
    """In an update, as routers may choose none of its experts for any of the tokens."""
    with standing_in():
        product, _ = product_of([name], (3, 24, 160), torch.Generator().manual_seed(5))
        ends = torch.zeros(3, dtype=torch.int32).to(CUDA)
        found = product.multiply(torch.empty(0, 160).to(CUDA), ends)
        assert found.shape == (0, 24)
        assert product.multiply_back(found, ends).shape == (0, 160)


@pytest.mark.parametrize("rows", [1, 30, 32, 33, 47, 48, 150])
def test_no_expert_is_left_out_however_rows_are_routed(rows: int) -> None:
    """As many experts as rows, more, and fewer; some get none of them."""
    draw, experts = torch.Generator().manual_seed(rows), 32
    with standing_in():
        product, weights = product_of(["int8"], (experts, 8, 16), draw)
        for most in (1, experts // 2, experts):
            owners = torch.randint(experts - most, experts, (rows,), generator=draw)
            counts = torch.bincount(owners, minlength=experts).tolist()
            x = torch.randn(rows, 16, generator=draw)
            assert_alike(multiplied(product, x, counts), naive(weights, x, counts))


@pytest.mark.parametrize("tile", [FEW, MANY])
def test_products_are_proved_for_more_rows_than_experts_too(tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then tiles are numbered by another rule, whatever their size."""

    def too_few(rows: int, ends: torch.Tensor, given: Tile) -> int:
        return tiles(rows, ends, given) if rows <= len(ends) or given is not tile else rows // given.rows

    tiles = gpu_experts._tiles
    with standing_in():
        product, weights = product_of(["int8"], (32, 8, 16), torch.Generator().manual_seed(3))
        proved: Any = weights.to(CUDA)
        gpu_experts.prove(product, proved, transposed=False)
        monkeypatch.setattr(gpu_experts, "_tiles", too_few)
        with pytest.raises(UnsupportedBase, match="differs from plain torch"):
            gpu_experts.prove(product, proved, transposed=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_weights_are_those_of_torch_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    """In the rows' dtype; the interpreter cannot multiply in bfloat16."""
    shape = experts, outputs, inputs = 2, 24, 160
    with standing_in():
        product, weights = product_of([name], shape, torch.Generator().manual_seed(1))
        every = torch.eye(inputs, dtype=dtype).repeat(experts, 1)
        found = multiplied(product, every, [inputs] * experts)
    assert torch.equal(found.view(experts, inputs, outputs), weights.to(dtype).mT)


@pytest.mark.parametrize("tile", [FEW, MANY])
def test_a_row_gives_the_same_whatever_else_is_in_the_batch(tile: Tile) -> None:
    """At the same place in its tile: a tile's products are the host's here, which round differently elsewhere."""
    draw, row = torch.Generator().manual_seed(2), 20 + tile.rows
    x = torch.randn(row + 9, 160, generator=draw)
    with standing_in():
        product, _ = product_of(["int4"], (3, 24, 160), draw)
        alone = multiplied(product, x[row : row + 1], [0, 1, 0], tile)
        beside = multiplied(product, x, [20, tile.rows + 7, 2], tile)
    assert torch.equal(beside[row : row + 1], alone)


@pytest.mark.parametrize(
    ("block", "inputs"), [((16, 24), 48), ((1, 3), 12)], ids=["no power of two", "no power of two in bytes"]
)
def test_groups_that_no_program_takes_are_left_to_torch(block: tuple[int, int], inputs: int) -> None:
    codes = torch.zeros(2, 16, inputs, dtype=torch.uint8)
    scales = torch.ones(2, 16 // block[0], inputs // block[1])
    stack = Stack(torch.Size((2, 16, inputs)), None, (Codes(Kind.INT8, codes, scales, block),))
    assert ExpertProduct.of(stack) is None


def kept(base: Base) -> dict[str, QuantisedWeight]:
    return {path: weight for path, _, weight in kept_stacks(base.model)}


@pytest.mark.parametrize("program", ["multiply", "multiply_back"])
@pytest.mark.parametrize("files", sorted(set(SAVES) - {"reordered numbers", "float8"}))
def test_bases_in_all_formats_are_multiplied_by_kernels_if_these_are_right(
    files: str, program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = load(SAVES[files][1](tmp_path)[0], dtype=torch.float32)
    with standing_in():
        move(base.model, CUDA)
        put_expert_products(base.model, use=True)
        assert all(weight.product is not None for weight in kept(base).values())
    broken = load(SAVES[files][1](tmp_path)[0], dtype=torch.float32)
    monkeypatch.setattr(gpu_experts, program, Silent())
    with standing_in(), capture_logs() as lines:
        move(broken.model, CUDA)
        put_expert_products(broken.model, use=True)
    assert all(weight.product is None for weight in kept(broken).values())
    assert {line["event"] for line in lines} == {"expert_kernels_unavailable"}
    assert "differs from plain torch" in lines[0]["why"]


@pytest.mark.parametrize("files", ["float8", "reordered numbers"])
def test_torch_multiplies_by_what_no_kernel_reads(files: str, tmp_path: Path) -> None:
    """Blocks of 24 columns, and columns in another order."""
    base = load(SAVES[files][1](tmp_path)[0], dtype=torch.float32)
    with standing_in(), capture_logs() as lines:
        move(base.model, CUDA)
        put_expert_products(base.model, use=True)
    assert all(weight.product is None for weight in kept(base).values())
    assert [(line["linear"], line["why"]) for line in lines] == [
        (next(iter(kept(base))), "no kernel reads its format")
    ]


@pytest.mark.parametrize("held", [None, Cut(1, 3)], ids=["all experts", "a rank's"])
@pytest.mark.parametrize("files", ["float8 by channels", "mxfp4", "numbers"])
def test_a_layer_computes_what_it_does_with_plain_torch_and_does_not_wait(
    files: str, held: Cut | None, tmp_path: Path
) -> None:
    """Gates and what they gate one below another or interleaved, with biases and without."""
    base = load(SAVES[files][1](tmp_path)[0], dtype=torch.float32)
    draw = torch.Generator().manual_seed(3)
    with standing_in() as seen, torch.inference_mode():
        move(base.model, CUDA)
        replace_modules(base.model, Slots({}, 1, 8, base.dtype, CUDA), held)
        experts: Any = next(module for module in base.model.modules() if is_stack(module))
        if held is not None:
            _cut_stack(experts, held)
        if experts.has_bias:
            for bias in (experts.gate_up_proj_bias, experts.down_proj_bias):
                bias.data.copy_(torch.randn(bias.shape, generator=draw))
        x = torch.randn(9, base.model.config.hidden_size, generator=draw).to(CUDA)
        weights, routes = (each.to(CUDA) for each in torch.rand(9, experts.num_experts, generator=draw).topk(2))
        expected = forward(experts, x, routes, weights).cpu()
        put_expert_products(base.model, use=True)
        seen.forget()
        found = forward(experts, x, routes, weights)
        assert not seen.waits
        assert_alike(found.cpu(), expected)


@pytest.mark.parametrize("files", ["float8 by channels", "mxfp4", "numbers"])
def test_an_update_computes_what_it_does_with_plain_torch(files: str, tmp_path: Path) -> None:
    base = load(SAVES[files][1](tmp_path)[0], dtype=torch.float32)
    draw = torch.Generator()
    with standing_in(), torch.inference_mode():
        move(base.model, CUDA)
        experts: Any = next(module for module in base.model.modules() if is_stack(module))
        bounds = (0, *[3] * (experts.num_experts - 1), 8)
        computed = list[list[torch.Tensor]]()
        for _ in range(2):
            computed.append([])
            for name in ("gate_up_proj", "down_proj"):
                stack = read_stack(experts, name, ())
                _, outputs, inputs = getattr(experts, name).coded().shape
                x, dy = (torch.randn(8, size, generator=draw.manual_seed(3)).to(CUDA) for size in (inputs, outputs))
                computed[-1] += [stack.multiply(x, bounds).cpu(), stack.multiply_back(dy, bounds).cpu()]
            put_expert_products(base.model, use=True)
    for found, expected in zip(computed[1], computed[0], strict=True):
        assert_alike(found, expected)


async def answers(base: Path, adapter: Path, ready: list[Callable[[], None]]) -> list[Answer]:
    """Of requests that decode beside a prompt, with and without an adapter; calls what is to be done when ready."""
    long, short = [5 + at % 200 for at in range(50)], [5, 6, 7]
    async with running(base, {"a": adapter}, device="cuda", quantised_experts=True) as engine:
        for each in ready:
            each()
        asked = [(short, "a"), (long, "a"), (short, "")]
        told = [ask(engine, prompt, who, max_tokens=3, ignore_eos=True) for prompt, who in asked]
        return list(await asyncio.gather(*told))


@pytest.mark.parametrize("files", ["mxfp4", "numbers"])
async def test_engines_give_plain_torchs_tokens_and_no_request_waits_for_the_compiler(
    files: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    family, save = SAVES[files]
    base, plain = save(tmp_path)
    adapter = save_adapter(plain, tmp_path / "a", 4, **SERVED[family])
    forms, ready = set[tuple[str, Any]](), set[tuple[str, Any]]()
    monkeypatch.setattr(lora, "FEW", 1)
    with standing_in():
        monkeypatch.setattr(gpu_experts, "multiply", Noted(multiply, forms))
        found = await answers(base, adapter, [lambda: ready.update(forms)])
        monkeypatch.setattr("mint_engine.model.generic.find_gpu_kernels", lambda *_, **__: None)
        monkeypatch.setattr(gpu_experts, "multiply", None)
        expected = await answers(base, adapter, [])
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert forms
    assert forms == ready
