"""What engines refuse today even if it fits: a plan may go beyond that, but must say so."""

from collections.abc import Iterable

# The most that a BaseModel may ask for, as in its CRD.
MOST_RANKS = 64  # tensorParallelSize
MOST_SLOTS = 1024  # deviceSlots
MOST_ADAPTER_RANK = 512  # maxRank
MOST_CONTEXT = 1 << 20  # contextLength


def refusal(ranks: int, nodes: int, adapter_rank: int, context: int, policies: int, *, base: Iterable[str]) -> str:
    """Return why no engine would start with this plan, or "". `base` are reasons that lie in the base itself."""
    reasons = {
        **{reason: bool(reason) for reason in base},
        f"nodes have as many ranks each, and {ranks} of these devices are in {nodes} nodes": bool(ranks % nodes),
        f"an engine has at most {MOST_RANKS} ranks": ranks > MOST_RANKS,
        f"an adapter's rank is at most {MOST_ADAPTER_RANK}": adapter_rank > MOST_ADAPTER_RANK,
        f"an engine has at most {MOST_SLOTS} slots, of which each policy takes one": policies >= MOST_SLOTS,
        f"a request has at most {MOST_CONTEXT} tokens": context > MOST_CONTEXT,
    }
    found = "; ".join(reason for reason, holds in reasons.items() if holds)
    return f"so far {found}" if found else ""
