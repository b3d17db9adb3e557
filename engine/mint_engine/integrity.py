"""The engine's books: every page has exactly one owner or is free. Checked whenever the engine falls idle."""

from mint_engine.scheduler import Scheduler


def find_imbalance(scheduler: Scheduler) -> str:
    """What does not add up, or "" when all is well."""
    owned = [page for sequence in scheduler.running for page in sequence.pages]
    if len(set(owned)) != len(owned):
        return "a page of the KV cache has two owners"
    if len(owned) + scheduler.pages.free != scheduler.pages.total:
        return f"{len(owned)} pages owned and {scheduler.pages.free} free are not {scheduler.pages.total} pages"
    if any(sequence.pages for sequence in scheduler.waiting):
        return "a waiting request owns pages"
    if len(scheduler.running) > scheduler.limits.running:
        return f"{len(scheduler.running)} requests run where {scheduler.limits.running} may"
    return ""
