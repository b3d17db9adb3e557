"""One forward pass over a packed batch: lean if base and machine allow it, otherwise generic; verified before use."""

import gc
import itertools
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import structlog
import torch

from mint_contracts.errors import UnsupportedBase
from mint_contracts.layer_groups import NULL_PAGE, PAGE_TOKENS, pages_for
from mint_engine.kernels.library import find_kernels
from mint_engine.model.base import Base
from mint_engine.model.cache import PROBE_TOKENS, Cache
from mint_engine.model.generic import Generic
from mint_engine.model.lean import Lean
from mint_engine.model.lean_layers import read_llama
from mint_engine.model.llama_like import Unlike
from mint_engine.model.reference import Reference, find_reference, probe
from mint_engine.model.routes import RouteCache
from mint_engine.model.span import Span
from mint_engine.parallel.peers import Peers
from mint_engine.residency.arrival import Arrival
from mint_engine.residency.slots import NO_SLOT, Slots

# Largest difference between the packed pass's logits and transformers', relative to their norm: only rounding.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
# If rounding changes choices: allow this much more than rounding was seen to do, but never more than `_MOST`, since
# unrelated logits are 1.4 of their norm apart.
_BEYOND, _MOST = 1.5, 1.0

_log = structlog.get_logger(__name__)


class Together(Protocol):
    """The engine's other ranks, which compute every step that this one computes."""

    @property
    def lost(self) -> bool:
        """Whether one of them has ended or was asked to end: no more steps can be computed."""
        ...

    def check_serving(self, own: str) -> None:
        """Raise UnsupportedBase if one of them serves with another kind of pass."""
        ...

    def step(self, tokens: Sequence[int], spans: Sequence[Span], keep: Sequence[int]) -> AbstractContextManager[None]:
        """Have them compute a step; this rank must compute its part during the block."""
        ...

    def tell_wipe(self, pages: Sequence[int]) -> None:
        """Have them zero pages of the cache."""
        ...

    def end(self) -> None:
        """End them all, since this rank cannot go on."""
        ...

    def close(self) -> None:
        """Let them end: no step follows."""
        ...


@dataclass(frozen=True)
class Team:
    """The other ranks as seen by rank 0, and the reference of the complete base."""

    others: Together
    peers: Peers
    reference: Reference


Pass = Lean | Generic


class Forward:
    """A base ready to serve. Owned by the step thread once created."""

    def __init__(
        self, base: Base, slots: Slots, cache: Cache, *, lean: bool = True, team: Team | None = None
    ) -> None:
        """Choose the pass and verify on a short prompt that it computes what transformers does.

        `lean=False` forces the generic pass. With a `team`, base, slots and cache are rank 0's shares. Raises
        UnsupportedBase if no pass is right.
        """
        self.base = base
        self.slots = slots
        self.cache = cache
        self._others = team.others if team else None
        began = time.perf_counter()
        reference = team.reference if team else find_reference(base)
        referred = time.perf_counter()
        self._pass = choose_pass(base, slots, cache, peers=team.peers if team else None, lean=lean)
        if self._others is not None:
            self._others.check_serving(self.compute)
        chosen = time.perf_counter()
        most = max(_TOLERANCE[base.dtype], min(_BEYOND * reference.moved, _MOST))
        difference = self._tried(reference.logits)
        if isinstance(self._pass, Lean) and team is None and not difference <= most:
            _log.warning("lean_pass_differs", architecture=base.architecture, difference=difference, most=most)
            self._pass = Generic(base, slots, cache)
            difference = self._tried(reference.logits)
        if self._uses_gpu_kernels and team is None and not difference <= most:
            _log.warning("gpu_kernels_differ", architecture=base.architecture, difference=difference, most=most)
            self._pass = Generic(base, slots, cache, gpu=False)
            difference = self._difference(reference.logits)
        if not difference <= most:
            raise UnsupportedBase(
                base.architecture,
                f"computes other logits with a paged cache than without (relative difference {difference:.3g}, "
                f"at most {most:.3g} by rounding); its attention needs something that is not supported",
            )
        _log.info(
            "pass_chosen",
            architecture=base.architecture,
            compute=self.compute,
            difference=difference,
            moved_by_rounding=reference.moved,
            proof_s=round(referred - began + time.perf_counter() - chosen, 4),
        )

    @property
    def compute(self) -> str:
        """Which pass computes, e.g. "lean (avx512_bf16)" or "generic"."""
        return self._pass.name

    @property
    def is_packed(self) -> bool:
        """Whether it computes with weights packed by own kernels, and not with transformers' modules."""
        return isinstance(self._pass, Lean)

    @property
    def multiplies_matrices(self) -> bool:
        """Whether the device has matrix units: GPUs' tensor cores, Intel's AMX."""
        kernels = find_kernels(self.base.dtype, self.base.device)
        return self.base.device.type == "cuda" or (kernels is not None and kernels.uses_amx)

    @property
    def follows_arrivals(self) -> bool:
        """Whether a step can begin before its adapter is completely in its slot."""
        return isinstance(self._pass, Lean) and self._others is None

    @property
    def routes(self) -> RouteCache | None:
        """The experts that cached tokens were routed to; None if routes are not kept."""
        return self.cache.routes

    @torch.inference_mode()
    def run(
        self, tokens: Sequence[int], spans: Sequence[Span], keep: Sequence[int], arrival: Arrival | None = None
    ) -> torch.Tensor:
        """Compute every span; return the logits [len(keep), V], in the base's dtype, of the batch's rows in `keep`.

        `spans` cover `tokens` in order; spans of the same slot are adjacent. The next call may overwrite the logits.
        With an `arrival`, all spans have the slot whose adapter is arriving; pass it only if `follows_arrivals`.
        Raises EngineUnavailable if another rank has ended, NotArrived if too little has arrived in time.
        """
        torch.get_num_threads()  # OpenMP keeps the number per thread: this sets ours for the step thread, too
        if arrival is not None and isinstance(self._pass, Lean):
            return self._pass.run(tokens, spans, keep, arrival)
        if self._others is None:
            return self._pass.run(tokens, spans, keep)
        try:
            with self._others.step(tokens, spans, keep):
                return self._pass.run(tokens, spans, keep)
        except BaseException:
            self._others.end()  # the others may have computed what this rank has not
            raise

    def wipe(self, pages: Sequence[int]) -> None:
        """Zero pages of the cache before a new request gets them, unless the pass never reads earlier contents."""
        if isinstance(self._pass, Lean):
            return
        self.cache.wipe(pages)
        if self._others is not None:
            self._others.tell_wipe(pages)

    def computes(self) -> bool:
        """Whether the bare base still computes a token. After some faults a device refuses all further work."""
        if self._others is not None and self._others.lost:
            return False
        for _ in range(2):
            try:
                self._probe()
            except torch.OutOfMemoryError:
                _log.warning("device_is_full")
            except Exception:  # noqa: BLE001 - whatever a broken device raises
                _log.exception("base_computes_nothing")
                return False
            else:
                return True
            gc.collect()  # reference cycles of tracebacks may hold memory of failed work
            torch.cuda.empty_cache()
        return self._others is None or not self._others.lost  # full is not broken, and memory may be freed again

    def _probe(self) -> None:
        """Compute a token that nobody asked for."""
        span = Span(0, 1, 0, [NULL_PAGE], NO_SLOT, [[NULL_PAGE]] * (len(self.cache.groups.windows) - 1))
        self.run([0], [span], [0]).cpu()
        self.wipe([NULL_PAGE])

    def close(self) -> None:
        """End the other ranks, if there are any."""
        if self._others is not None:
            self._others.close()

    @property
    def _uses_gpu_kernels(self) -> bool:
        return isinstance(self._pass, Generic) and self._pass.uses_gpu_kernels

    def _tried(self, expected: torch.Tensor) -> float:
        """As `_difference`; infinite if the kernels for GPUs cannot be launched on this base's shapes."""
        try:
            self._rehearse()
            return self._difference(expected)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if not self._uses_gpu_kernels:
                raise
            _log.warning("gpu_kernels_unavailable", architecture=self.base.architecture, why=str(error))
            return math.inf

    def _rehearse(self) -> None:
        """Compute steps for which other kernels for GPUs are compiled than for the probe: then no request waits."""
        for parts in self._pass.rehearsals if isinstance(self._pass, Generic) else ():
            spans, row = list[Span](), 0
            for length, position in parts:
                pages = [NULL_PAGE] * pages_for(position + length)
                others = [pages] * (len(self.cache.groups.windows) - 1)
                spans.append(Span(row, length, position, pages, NO_SLOT, others))
                row += length
            longest = max(span.position + span.length for span in spans)
            if not self.base.context_length or longest <= self.base.context_length:
                self.run([0] * row, spans, [0])
                self.wipe([NULL_PAGE])

    def _difference(self, expected: torch.Tensor) -> float:
        """Return how far the probe's logits, in two chunks and a single token, are from the expected ones."""
        tokens, each, groups = probe(self.base.vocab_size), pages_for(PROBE_TOKENS), len(self.cache.groups.windows)
        pages = list(range(1, 1 + groups * each))
        first, *others = [pages[at : at + each] for at in range(0, len(pages), each)]
        cuts = (0, PROBE_TOKENS // 3, PROBE_TOKENS - 1, PROBE_TOKENS)
        parts = []
        for start, stop in itertools.pairwise(cuts):
            span = Span(row=0, length=stop - start, position=start, pages=first, slot=NO_SLOT, others=others)
            parts.append(self.run(tokens[start:stop], [span], range(stop - start)).to(torch.float32, copy=True))
        self.cache.wipe(pages)  # for any pass: a wrong one may have left NaN for the next
        found = torch.cat(parts)
        expected = expected.to(found.device)
        return float((found - expected).norm() / expected.norm())


def choose_pass(base: Base, slots: Slots, cache: Cache, *, peers: Peers | None, lean: bool) -> Pass:
    """Choose the lean pass if base and machine allow it; all ranks choose alike. Raises UnsupportedBase."""
    found = _lean(base, slots, cache, peers) if lean else None
    return found or Generic(base, slots, cache, peers.group if peers else None)


def _lean(base: Base, slots: Slots, cache: Cache, peers: Peers | None) -> Lean | None:
    if peers is not None and peers.memory is None:
        _log.info("lean_pass_unavailable", why="its ranks meet in memory, and these are on several nodes")
        return None
    kernels = find_kernels(base.dtype, base.device)
    if kernels is None:
        _log.info("lean_pass_unavailable", why="no compiled kernels for this machine, device or dtype")
        return None
    # Not bounded by the cache: if all layers slide, requests longer than all of its pages have room in it.
    positions = max(PROBE_TOKENS, base.context_length or cache.pages * PAGE_TOKENS)
    try:
        llama = read_llama(base, slots, kernels, positions, peers.share if peers else None)
    except Unlike as why:
        _log.info("lean_pass_unavailable", architecture=base.architecture, why=str(why))
        return None
    return Lean(llama, kernels, slots, cache, peers.memory if peers else None)
