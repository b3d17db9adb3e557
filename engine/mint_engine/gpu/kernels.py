"""The kernels for GPUs as the passes use them. Importing this needs Triton, which torch's builds for GPUs bring."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import torch

from mint_contracts.layer_groups import pages_for
from mint_engine.gpu import attend, latent, lora
from mint_engine.gpu.attend import TOKENS, Work
from mint_engine.gpu.latent import LatentWork
from mint_engine.gpu.lora import GpuRows
from mint_engine.model.latent_sizes import LatentSizes
from mint_engine.model.span import Span

Lists = tuple[list[int], list[int], list[int], list[int]]
Rehearsal = tuple[tuple[int, int], ...]  # the length and position of each span of a step


@dataclass(frozen=True)
class LatentPlan:
    """What a step's `LatentWork` is made of, before its lists are on the device."""

    slots: tuple[int, ...]
    tokens: int
    runs: tuple[tuple[int, int, int], ...]
    whole: bool  # it computes all of the step's rows, in their order
    lists: tuple[list[int], ...]

    def work(self, lists: Sequence[torch.Tensor]) -> LatentWork:
        """Return the work, of these `lists` on the device."""
        rows, pasts, chunks, decodes, decoding, tables = lists
        return LatentWork(
            rows=None if self.whole else rows,
            slots=self.slots,
            chunks=chunks.view(-1, 5),
            tokens=self.tokens,
            decodes=decodes.view(-1, 5),
            decoding=decoding.view(-1, 3),
            tables=tables,
            pasts=pasts.view(-1, 2),
            runs=self.runs,
        )


class GpuKernels:
    """Makes a step's plans for the kernels."""

    name = "triton"

    def rehearsals(self, sizes: LatentSizes | None) -> list[Rehearsal]:
        """Return steps for which other programs are compiled than for a short prompt's; `sizes` if it has latents."""
        steps: list[Rehearsal] = [((1, 0),) * (lora.FEW + 1), ((1, attend.SPLIT),)]
        if sizes is not None and sizes.most is not None:
            steps += [((2, 0),), ((2, sizes.most), (1, 0)), ((1, max(sizes.most, attend.SPLIT)),)]
        return steps

    def form(self, rows: int) -> int:
        """Return which programs add adapters to so many rows."""
        return lora.tile_of(rows)

    def rows(self, slots: torch.Tensor, experts: torch.Tensor | None = None) -> GpuRows:
        """Return a step's rows, see GpuRows."""
        return GpuRows(slots, experts)

    def lists(self, spans: Sequence[Span], splits_of: Callable[[int], int] = attend.splits_of) -> Lists:
        """Return the parts of `Work` in order, to be copied to the device together with other lists.

        `splits_of` gives for a position how many splits a decoding request's past has.
        """
        chunks, decodes, decoding, tables = list[int](), list[int](), list[int](), list[int]()
        for span in spans:
            at = len(tables)
            tables += span.pages[: pages_for(span.position + span.length)]
            if span.length == 1:
                splits = splits_of(span.position)
                decoding += (span.row, len(decodes) // 5, splits)
                for number in range(splits):
                    decodes += (span.row, 1, span.position, at, number)
                continue
            for done in range(0, span.length, TOKENS):
                chunks += (span.row + done, min(TOKENS, span.length - done), span.position + done, at, 0)
        return chunks, decodes, decoding, tables

    def work(self, lists: Sequence[torch.Tensor]) -> Work:
        """Return a step's attention, of its `lists` on the device."""
        chunks, decodes, decoding, tables = lists
        return Work(chunks.view(-1, 5), decodes.view(-1, 5), decoding.view(-1, 3), tables)

    def plan_latents(self, spans: Sequence[Span], sizes: LatentSizes, *, whole: bool) -> LatentPlan:
        """Plan latent attention of these spans' rows, which are all of the step's if that is `whole`.

        Those of similar pasts come together, so that the indexer does not score a long one's length for all others.
        """
        kind_of = partial(_kind, sizes=sizes)
        kinds = [kind_of(span) for span in spans]
        chosen, whole = any(kinds), whole and kinds == sorted(kinds)
        own, rows, pasts, runs, row, at = list[Span](), list[int](), list[int](), list[tuple[int, int, int]](), 0, 0
        for kind, alike in groupby(sorted(spans, key=kind_of), kind_of):
            start, longest = row, 0
            for span in alike:
                own.append(replace(span, row=row))
                row += span.length
                longest = max(longest, span.position + span.length)
                if not whole:
                    rows += range(span.row, span.row + span.length)
                if chosen:
                    for position in range(span.position, span.position + span.length):
                        pasts += (position, at)
                    at += pages_for(span.position + span.length)
            if chosen:
                runs.append((start, row, longest if kind else 0))
        slots = tuple(span.slot for span in own for _ in range(span.length))
        lists = self.lists(own, partial(latent.splits_of, most=sizes.most))
        tokens = min(TOKENS, max((span.length for span in spans), default=0))
        return LatentPlan(slots, tokens, tuple(runs), whole, (rows, pasts, *lists))


def _kind(span: Span, sizes: LatentSizes) -> int:
    """Return what is the same for spans whose pasts are scored together: none of these is twice as long as another.

    0 for all that attend to all that they see.
    """
    tokens = span.position + span.length
    return tokens.bit_length() if sizes.chooses(tokens) else 0
