"""Cuts a rank's share out of an adapter, as its base is cut (S-LoRA, Sheng et al. 2024, section 6).

For a linear that is cut by outputs, the share is all of A and some columns of B; for one that is cut by inputs, some
columns of A and all of B; for experts, those that the rank holds. The ranks' contributions to their partial sums add
up to that of the complete adapter.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from mint_engine.adapters.packed import Layout, Packed, Place, halves
from mint_engine.parallel.shares import ModuleCut


def cut_layout(layout: Layout, cuts: Mapping[str, ModuleCut]) -> Layout:
    """Return the layout of the rank's parts in a run of their own."""
    places: list[Place] = []
    offset = 0
    for place in layout.places:
        inputs, outputs, experts = cuts[place.path]
        own = replace(
            place,
            experts=experts.size if experts else place.experts,
            in_features=inputs.size if inputs else place.in_features,
            out_features=outputs.size if outputs else place.out_features,
            offset=offset,
        )
        places.append(own)
        offset += own.elements
    return Layout(tuple(places))


def cut_packed(packed: Packed, layout: Layout, cuts: Mapping[str, ModuleCut]) -> Packed:
    """Return a copy of the rank's parts; `layout` is `cut_layout` of the adapter's layout."""
    run = torch.empty(layout.elements, dtype=packed.run.dtype, device=packed.run.device)
    for theirs, own in matched(packed.header.layout, packed.run, layout, run, cuts):
        own.copy_(theirs)
    return Packed(replace(packed.header, layout=layout), run)


def matched(
    layout: Layout, run: torch.Tensor, own_layout: Layout, own_run: torch.Tensor, cuts: Mapping[str, ModuleCut]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield pairs of views of each part of A and B that a rank has: in the complete run, and in the rank's own."""
    for (place, a, b), (_, own_a, own_b) in zip(halves(layout, run), halves(own_layout, own_run), strict=True):
        inputs, outputs, experts = cuts[place.path].slices
        yield a[experts, :, inputs], own_a
        start = 0
        for columns in outputs:
            part = b[experts, :, columns]
            yield part, own_b[:, :, start : start + part.shape[2]]
            start += part.shape[2]
