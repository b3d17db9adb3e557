"""Checks the scheduler's books whenever the engine falls idle: page references, cached pages, slots and service."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from mint_contracts.layer_groups import PAGE_TOKENS
from mint_engine.residency.slots import NO_SLOT
from mint_engine.scheduling.prefix import PrefixCache, key_in
from mint_engine.scheduling.request import Completion, State
from mint_engine.scheduling.scheduler import Scheduler


def find_imbalance(scheduler: Scheduler) -> str:
    """Describe an inconsistency, or return "" if there is none."""
    return next(_imbalances(scheduler), "")


def _imbalances(scheduler: Scheduler) -> Iterator[str]:
    if len(scheduler.running) > scheduler.limits.running:
        yield f"{len(scheduler.running)} requests run where {scheduler.limits.running} may"
    groups = (
        (scheduler.running, State.RUNNING),
        (scheduler.waiting, State.WAITING),
        (scheduler.parked, State.PARKED),
    )
    for group, state in groups:
        if any(each.state is not state for each in group):
            yield f"a request among the {state.name.lower()} is in another state"
    if any(each.tables for group, _ in groups[1:] for each in group):
        yield "a request that waits owns pages"
    yield from _pages(scheduler.prefix, scheduler.running)
    live = scheduler.live
    yield from _slots(live)
    if Counter(sharer for each in live for sharer in each.request.party.path) != scheduler.fairness.active:
        yield f"clients and parties that count as active are not those of the {len(live)} requests"


def _pages(prefix: PrefixCache, running: Iterable[Completion]) -> Iterator[str]:
    """Every page must be free, idle, or referenced by exactly as many completions as it counts."""
    owners = Counter(page for completion in running for page in completion.pages)
    pages, idle = prefix.pages, prefix.idle
    for page in range(1, pages.total + 1):
        if owners[page] != pages.references(page):
            yield f"page {page} of the KV cache counts {pages.references(page)} references and has {owners[page]}"
    if len(owners) + len(idle) + pages.free != pages.total:
        yield f"{len(owners)} pages owned, {len(idle)} idle and {pages.free} free are not {pages.total} pages"
    for completion in running:
        for group, table in enumerate(completion.tables):
            yield from _table(prefix, owners, completion, group, table)
    if found := prefix.find_imbalance():
        yield found


def _table(
    prefix: PrefixCache, owners: Mapping[int, int], completion: Completion, group: int, table: Iterable[int]
) -> Iterator[str]:
    """The pages of a completion that others may see must be complete, and belong to its tokens."""
    for at, page in enumerate(table):
        key = prefix.key_of(page)
        if owners.get(page, 0) > 1 or key is not None:
            if at >= len(completion.keys) or key_in(group, completion.keys[at]) != key:
                yield f"page {page} is shared with a request that has other tokens"
            if (at + 1) * PAGE_TOKENS > completion.computed:
                yield f"page {page} is shared and still written to"


def _slots(live: Iterable[Completion]) -> Iterator[str]:
    """A slot must hold one revision as long as any request refers to it; the bare base has no slot."""
    tenants: dict[int, tuple[str, str]] = {}
    for each in live:
        request = each.request
        tenant = (request.adapter, request.revision)
        if request.slot == NO_SLOT:
            if request.revision:
                yield f"a request for {request.adapter or 'the bare base'} has a revision and no slot"
        elif tenants.setdefault(request.slot, tenant) != tenant:
            yield f"slot {request.slot} is referred to as {tenants[request.slot]} and as {tenant}"
