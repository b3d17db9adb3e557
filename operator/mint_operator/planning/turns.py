"""Whose turn it is: waves in the order in which they are admitted.

Priority comes first. Among waves of one priority, namespaces take turns by weighted fair queueing (Demers, Keshav,
Shenker, SIGCOMM 1989): a wave's turn comes when its namespace would have had that much of the base, for its weight.
Within a namespace it is age, then name. Since the order depends on nothing else, a wave that waits is always asked
before those that came later, and nobody starves behind smaller ones that pass it.
"""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from mint_contracts.resources import Tenant
from mint_operator.planning.asking import Ask


def in_turn(asks: Iterable[Ask], tenants: Mapping[str, Tenant]) -> list[Ask]:
    """The waves by turn."""
    oldest = sorted(asks, key=lambda each: (-each.spec.priority, each.wave.meta.created, each.wave.meta.key))
    if len({each.wave.meta.namespace for each in oldest}) < 2:
        return oldest
    tags, had = dict[str, Fraction](), dict[tuple[int, str], Fraction]()
    for each in oldest:
        namespace = each.wave.meta.namespace
        account = (each.spec.priority, namespace)
        had[account] = had.get(account, Fraction()) + Fraction(_share(each), weight(tenants, namespace))
        tags[each.wave.meta.key] = had[account]
    return sorted(oldest, key=lambda each: (-each.spec.priority, tags[each.wave.meta.key]))


def weight(tenants: Mapping[str, Tenant], namespace: str) -> int:
    """How much of the base a namespace gets, relative to the others, where not all fit."""
    return tenants[namespace].weight if namespace in tenants else 1


def by_namespace(tenants: Sequence[Tenant]) -> dict[str, Tenant]:
    """The tenants of a base."""
    return {tenant.namespace: tenant for tenant in tenants}


def _share(each: Ask) -> int:
    """What a wave counts for: its slots, or its copies where it takes none."""
    return each.slots or sum(want.replicas for want in each.wants)
