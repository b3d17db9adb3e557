"""Products of rows with routed experts that stay quantised: codes are read as stored, and dequantised in registers.

Rows are sorted by expert. A program computes some outputs of one expert for a tile of its rows, and finds out by
itself which these are: the host knows no expert's rows, and launches as many programs as there may be tiles. Each
weight is rounded to the rows' dtype, as if dequantised beforehand. Products are added up in float32 and in the same
order whatever the tile, so a row's result does not depend on the others. Tensor cores take weights from registers and
rows from shared memory: they multiply at least 64 outputs at once (Hopper), but as few as 16 rows.

Letters in shapes: P rows, E experts, O outputs, I inputs, G groups of inputs.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import torch
from triton import next_power_of_2

from mint_contracts.errors import UnsupportedBase
from mint_engine.gpu.expert_kernels import multiply, multiply_back
from mint_engine.gpu.proof import TOLERANCE
from mint_engine.kernels.expert_structs import SCALES, ZEROS, Codes, Kind, ScaleKind, Stack, ZeroKind
from mint_engine.model.quantised_experts import QuantisedWeight

STEP = 64  # bytes of an output's codes that a program reads at once
_WHOLE = 1 << 30  # more bytes than any row has: it shares a scale
_FEW_ROWS = 5  # of each of three experts: most bases have more experts than 15


@dataclass(frozen=True)
class Tile:
    """Rows and outputs of a program, its warps, and the stages in which it reads ahead."""

    rows: int
    outputs: int
    warps: int
    stages: int


FEW, MANY = Tile(16, 64, 4, 4), Tile(64, 128, 8, 3)  # up to as many rows for each expert as FEW has, and for more


@dataclass(frozen=True)
class _Linear:
    """A linear of all experts as programs take it."""

    codes: torch.Tensor  # [E, O, bytes]
    parts: int  # codes in a byte
    width: int  # bytes of an output that hold its inputs
    scales: torch.Tensor  # [E, rows of blocks, G]
    high: int  # outputs that share a scale
    group: int  # bytes of a row that do
    factors: torch.Tensor  # [E]; this and zeros are something else if there are none, and not read
    zeros: torch.Tensor
    kinds: tuple[Kind, ScaleKind, ZeroKind]

    @classmethod
    def of(cls, codes: Codes, inputs: int) -> "_Linear | None":
        """Return None if no program takes it: bytes that share a scale are a power of two, or a row."""
        parts = 2 if codes.kind in (Kind.E2M1, Kind.INT4) else 1
        (high, wide), scales = codes.block, codes.scales
        group = _WHOLE if scales.shape[2] == 1 else wide // parts
        if inputs % parts or (group != _WHOLE and (wide % parts or group & (group - 1))):
            return None
        bytes_ = codes.codes.flatten(2).view(torch.uint8)  # GPUs before Ada know no float8
        zero_kind = ZeroKind.NONE if codes.zeros is None else ZEROS[codes.zeros.dtype]
        return cls(
            bytes_, parts, inputs // parts, scales.view(torch.uint8) if scales.itemsize == 1 else scales, high, group,
            bytes_ if codes.expert_scales is None else codes.expert_scales,
            bytes_ if codes.zeros is None else codes.zeros, (codes.kind, SCALES[scales.dtype], zero_kind),
        )  # fmt: skip

    def multiply(self, x: torch.Tensor, y: torch.Tensor, ends: torch.Tensor, tile: Tile) -> None:
        """Multiply x [P, parts, I / parts] -> y [P, O], which may be columns of a wider tensor."""
        grid = -(-self.codes.shape[1] // tile.outputs), _tiles(x.shape[0], ends, tile)
        multiply[grid](x, y, y.stride(0), *self._common(x.shape[0], ends), **self._options(tile))

    def multiply_back(self, dy: torch.Tensor, dx: torch.Tensor, ends: torch.Tensor, tile: Tile) -> None:
        """Multiply the gradient of y, dy [P, O], to that of x, dx [P, I]; dy may be columns of a wider tensor."""
        grid = -(-self.width // tile.outputs), _tiles(dy.shape[0], ends, tile)
        multiply_back[grid](dy, dy.stride(0), dx, *self._common(dy.shape[0], ends), **self._options(tile))

    def _common(self, rows: int, ends: torch.Tensor) -> tuple[torch.Tensor | int, ...]:
        (experts, height, pitch), (_, blocks, columns) = self.codes.shape, self.scales.shape
        return (
            ends, rows, self.codes, pitch, self.scales, blocks, columns, self.factors, self.zeros,
            self.zeros.numel() // experts, self.width, height,
        )  # fmt: skip

    def _options(self, tile: Tile) -> dict[str, int]:
        (kind, scale_kind, zero_kind), experts = self.kinds, self.codes.shape[0]
        return {
            "experts": experts,
            "padded_experts": next_power_of_2(experts),
            "kind": int(kind),
            "scale_kind": int(scale_kind),
            "zero_kind": int(zero_kind),
            "high": self.high,
            "group": self.group,
            "parts": self.parts,
            "tile": tile.rows,
            "outputs": tile.outputs,
            "step": STEP,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
        }


@dataclass(frozen=True)
class ExpertProduct:
    """The product with one linear of a layer's experts: with quantised ones that are stacked one below another."""

    shape: torch.Size  # [E, O, I]
    linears: tuple[_Linear, ...]

    @classmethod
    def of(cls, stack: Stack) -> "ExpertProduct | None":
        """Return the product with a stack of codes; None if no program takes these."""
        found = [_Linear.of(each, stack.shape[2]) for each in stack.codes]
        linears = tuple(each for each in found if each is not None)
        return cls(stack.shape, linears) if linears and None not in found else None

    @property
    def form(self) -> Hashable:
        """A key that is equal for products by the same compiled programs."""
        return tuple(
            (each.codes.shape, each.scales.shape, each.scales.dtype, each.width, each.high, each.group, each.kinds)
            for each in self.linears
        )

    def multiply(self, x: torch.Tensor, ends: torch.Tensor, tile: Tile | None = None) -> torch.Tensor:
        """Multiply rows x [P, I] -> [P, O]; those of each expert end at `ends` [E] int32. Never waits for the device.

        The `tile` is by default what suits so many rows.
        """
        tile = tile or _tile_for(x.shape[0], ends)
        y, by_parts = x.new_empty(x.shape[0], self.shape[1]), dict[int, torch.Tensor]()
        if not x.shape[0]:
            return y
        for each, own in self._columns(y):
            if each.parts not in by_parts:
                by_parts[each.parts] = _arrange(x, each.parts)
            each.multiply(by_parts[each.parts], own, ends, tile)
        return y

    def multiply_back(self, dy: torch.Tensor, ends: torch.Tensor, tile: Tile | None = None) -> torch.Tensor:
        """Multiply the gradient of what `multiply` returns, dy [P, O], to that of x [P, I]."""
        if not dy.shape[0]:
            return dy.new_empty(0, self.shape[2])
        tile, dy = tile or _tile_for(dy.shape[0], ends), dy.contiguous()
        total: torch.Tensor | None = None
        for each, own in self._columns(dy):
            dx = dy.new_empty((dy.shape[0], self.shape[2]), dtype=torch.float32)
            each.multiply_back(own, dx, ends, tile)
            total = dx if total is None else total.add_(dx)
        assert total is not None  # noqa: S101 - by `of`
        return total.to(dy.dtype)

    def _columns(self, y: torch.Tensor) -> Iterator[tuple[_Linear, torch.Tensor]]:
        """Yield each linear and its columns of y [P, O]."""
        heights = [each.codes.shape[1] for each in self.linears]
        yield from zip(self.linears, torch.split(y, heights, dim=1), strict=True)


def _tile_for(rows: int, ends: torch.Tensor) -> Tile:
    return FEW if rows <= FEW.rows * ends.shape[0] else MANY


def _tiles(rows: int, ends: torch.Tensor, tile: Tile) -> int:
    """Return how many tiles so many rows may have, whatever each expert's; programs number them by the same rule."""
    return rows if rows <= (experts := ends.shape[0]) else rows // tile.rows + experts


def _arrange(x: torch.Tensor, parts: int) -> torch.Tensor:
    """Arrange inputs [P, I] by their codes' place in a byte: [P, parts, I / parts]."""
    return x.reshape(x.shape[0], -1, parts).transpose(1, 2).contiguous()


def prove(product: ExpertProduct, weight: QuantisedWeight, *, transposed: bool) -> None:
    """Compare products with plain torch's on the same device: of a few rows, and of more than there are experts.

    `transposed`: experts' weights are [I, O]. Raises UnsupportedBase if they differ by more than rounding.
    """
    count, device, draw = weight.shape[0], weight[0].device, torch.Generator().manual_seed(4)
    owners = sorted({0, count // 2, count - 1})  # the others have no rows
    many = max(MANY.rows, count // len(owners)) + 1
    before = torch.searchsorted(torch.tensor(owners), torch.arange(count), right=True)
    matrices = [weight[owner].float() if transposed else weight[owner].float().t() for owner in owners]  # [I, O]
    for tile, each in ((FEW, _FEW_ROWS), (FEW, many), (MANY, many)):
        ends = (before * each).int().to(device)
        # Drawn anew: memory that no program wrote to may still have the results of a previous one.
        x, dy = (
            torch.randn(each * len(owners), size, generator=draw).to(device, weight.dtype)
            for size in matrices[0].shape
        )
        for what, found, given, by in (
            ("the product", product.multiply(x, ends, tile), x, matrices),
            ("the gradient's product", product.multiply_back(dy, ends, tile), dy, [own.t() for own in matrices]),
        ):
            rows = given.float().split(each)  # type: ignore[no-untyped-call]
            expected = torch.cat([own @ matrix for own, matrix in zip(rows, by, strict=True)])
            difference = float((found.float() - expected).norm() / expected.norm())
            if not difference <= TOLERANCE[x.dtype]:
                raise UnsupportedBase(
                    f"{what} with quantised experts in {x.dtype} on {x.device}",
                    f"differs from plain torch by {difference:.3g} of its norm, at most {TOLERANCE[x.dtype]:.3g} by "
                    "rounding",
                )
