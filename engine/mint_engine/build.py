"""Builds the computing parts of an engine: the base, its slots and cache, the forward pass, and other ranks if any.

Rank 0 is this process; it represents the engine to everything else. See `mint_engine.parallel`.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from mint_contracts.settings import EngineSettings
from mint_engine import metrics
from mint_engine.model.base import Base, load_base
from mint_engine.model.cache import PROBE_TOKENS
from mint_engine.model.device import choose_device, choose_dtype, count_threads, end_team
from mint_engine.model.forward import Forward, Team
from mint_engine.model.modules import find_modules
from mint_engine.model.reference import load_part
from mint_engine.model.unpacked import let_go
from mint_engine.parallel.handshake import RanksEndpoint
from mint_engine.parallel.member import lay_cache, lay_member
from mint_engine.parallel.part import Part
from mint_engine.parallel.ranks import Ranks
from mint_engine.preflight import check_config
from mint_engine.residency.slots import Slots
from mint_engine.scheduling.generation import Generation
from mint_engine.scheduling.places import limits_of
from mint_engine.scheduling.scheduler import Limits
from mint_engine.sources.load_progress import LoadProgress
from mint_engine.training.trainer import Lead

Equip = Callable[[Base, Slots, Lead | None], None]


def _nothing(*_: object) -> None:
    """Do nothing: the default callback."""


def build(
    settings: EngineSettings,
    base_path: Path,
    limits: Limits | None = None,
    equip: Equip = _nothing,
    on_lost: Callable[[], None] = _nothing,
    threads: int = 0,
    endpoint: RanksEndpoint | None = None,
    progress: LoadProgress | None = None,
) -> tuple[Base, Slots, Generation]:
    """Load the base and lay out slots and cache on its device. Takes seconds to minutes; raises a MintError.

    Without `limits` the base's default limits apply. `equip` gets the base before serving replaces its modules; with
    several ranks it gets the first rank's share, and the Lead by which that directs the others. `on_lost` is called,
    on any thread, if another rank has ended or nothing can be computed any more: then this engine cannot continue.
    `threads` is the number per rank; 0: its share of the cores. Other nodes connect at the `endpoint`. `progress`
    counts what is read of the base.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    threads = threads or max(1, count_threads() // settings.ranks_per_node)
    torch.set_num_threads(threads)
    dtype, device = choose_dtype(settings.dtype), choose_device(settings.device)
    if settings.tensor_parallel_size > 1:
        base, slots, generation = _build_rank_0(
            settings, base_path, limits, threads, device, equip, on_lost, endpoint, progress
        )
    else:
        base = load_base(
            base_path,
            dtype,
            device,
            admit=partial(check_config, settings),
            progress=progress,
            quantised_experts=settings.quantised_experts,
        )
        base = replace(base, context_length=settings.context_length)
        slots = Slots(
            find_modules(base.model, settings.target_modules), settings.device_slots, settings.max_rank, dtype, device
        )
        cache = lay_cache(settings, base)
        with ThreadPoolExecutor(1, "cache") as beside:
            coming = beside.submit(cache.bring_in)
            equip(base, slots, None)
            forward = Forward(base, slots, cache)
            if forward.is_packed and settings.training_store is None:
                let_go(base)
            generation = _generation(forward, limits, on_lost)
            coming.result()
    metrics.SLOTS_BYTES.set(slots.bytes)
    metrics.CACHE_BYTES.set(generation.cache_bytes)
    end_team()  # steps run on another thread
    return base, slots, generation


def _build_rank_0(
    settings: EngineSettings,
    base_path: Path,
    limits: Limits | None,
    threads: int,
    device: torch.device,
    equip: Equip,
    on_lost: Callable[[], None],
    endpoint: RanksEndpoint | None,
    progress: LoadProgress | None,
) -> tuple[Base, Slots, Generation]:
    rows = max((limits or Limits()).step_tokens, PROBE_TOKENS)
    ranks = Ranks(settings, base_path, rows, threads, on_lost, endpoint)
    try:
        part = Part(0, settings.tensor_parallel_size, settings.target_modules)
        # Rank 0 reads the complete base while the others read their shares: what all compute together is compared
        # with what transformers computes from it.
        admit = partial(check_config, settings)
        dtype, keep = choose_dtype(settings.dtype), settings.quantised_experts
        base, reference = load_part(
            base_path, dtype, part, admit, progress, ranks.listen, quantised_experts=keep, device=device
        )
        member = lay_member(settings, base, part, device, ranks)
        peers = ranks.meet(member, lean=True)
        equip(member.base, member.slots, Lead(ranks, peers.group, settings.ranks_per_node, ranks.room))
        forward = Forward(member.base, member.slots, member.cache, team=Team(ranks, peers, reference))
        return member.base, member.slots, _generation(forward, limits, on_lost)
    except BaseException:
        ranks.close()
        raise


def _generation(forward: Forward, limits: Limits | None, on_lost: Callable[[], None]) -> Generation:
    chosen = limits or limits_of(forward.base.config, matrices=forward.multiplies_matrices)
    return Generation(forward, chosen, on_lost)
