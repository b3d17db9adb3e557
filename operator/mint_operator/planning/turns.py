"""Whose turn it is: waves in the order in which they are admitted.

Priority comes first. Among waves of one priority, namespaces take turns by weighted fair queueing (Demers, Keshav,
Shenker, SIGCOMM 1989): a wave's turn comes when its namespace would have had that much of the base, for its weight.
Within a namespace it is age, then name. Since the order depends on nothing else, a wave that waits is always asked
before those that came later, and nobody starves behind smaller ones that pass it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TypeVar

import msgspec

from mint_contracts.resources import Tenant
from mint_operator.planning.asking import Ask

T = TypeVar("T")

NOTHING: Mapping[str, int] = {}


class Turn(msgspec.Struct, frozen=True, gc=False):
    """What a wave's turn depends on beside its age: `share` is what it takes, in slots."""

    priority: int
    namespace: str
    share: int


def in_turn(asks: Iterable[Ask], tenants: Mapping[str, Tenant], held: Mapping[str, int] = NOTHING) -> list[Ask]:
    """The waves by turn. `held` are slots that namespaces have beside them."""
    oldest = sorted(asks, key=lambda each: (-each.spec.priority, each.wave.meta.created, each.wave.meta.key))
    return fair(oldest, _turn, tenants, held)


def fair(
    oldest: Sequence[T], turn: Callable[[T], Turn], tenants: Mapping[str, Tenant], held: Mapping[str, int]
) -> list[T]:
    """What is given by priority and age, by turn."""
    turns = [turn(each) for each in oldest]
    if len({each.namespace for each in turns}) < 2:
        return list(oldest)
    tags, had = list[Fraction](), dict[tuple[int, str], Fraction]()
    for each in turns:
        account, of = (each.priority, each.namespace), weight(tenants, each.namespace)
        had[account] = had.get(account, Fraction(held.get(each.namespace, 0), of)) + Fraction(each.share, of)
        tags.append(had[account])
    order = sorted(range(len(oldest)), key=lambda index: (-turns[index].priority, tags[index]))
    return [oldest[index] for index in order]


def weight(tenants: Mapping[str, Tenant], namespace: str) -> int:
    """How much of the base a namespace gets, relative to the others, where not all fit."""
    return tenants[namespace].weight if namespace in tenants else 1


def quota(tenants: Mapping[str, Tenant], namespace: str) -> int:
    """Slots that a namespace may hold of the base; 0: as many as there are."""
    return tenants[namespace].device_slots if namespace in tenants else 0


def by_namespace(tenants: Sequence[Tenant]) -> dict[str, Tenant]:
    """The tenants of a base."""
    return {tenant.namespace: tenant for tenant in tenants}


def _turn(each: Ask) -> Turn:
    """A wave counts for its slots, or for its copies where it takes none."""
    share = each.slots or sum(want.replicas for want in each.wants)
    return Turn(each.spec.priority, each.wave.meta.namespace, share)
