"""Whose turn it is: waves in the order in which they are admitted.

Priority comes first. Among waves of one priority, namespaces take turns by weighted fair queueing (Demers, Keshav,
Shenker, SIGCOMM 1989): a wave's turn comes when its namespace would have had that much of the base, for its weight.
Within a namespace it is age, then name. Since the order depends on nothing else, a wave that waits is always asked
before those that came later, and nobody starves behind smaller ones that pass it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from mint_contracts.resources import Tenant
from mint_operator.planning.asking import Ask

T = TypeVar("T")


class Turn(msgspec.Struct, frozen=True, gc=False):
    """What a wave's turn depends on beside its age: `share` is what it takes, in slots."""

    priority: int
    namespace: str
    share: int


def in_turn(asks: Iterable[Ask], tenants: Mapping[str, Tenant], held: Mapping[str, int]) -> list[Ask]:
    """The waves by turn. `held` are slots that namespaces have beside them."""
    return fair(sorted(asks, key=_age), _turn, tenants, held)


def fair(
    oldest: Sequence[T], turn: Callable[[T], Turn], tenants: Mapping[str, Tenant], held: Mapping[str, int]
) -> list[T]:
    """What is given by priority and age, by turn."""
    turns = [turn(each) for each in oldest]
    if len({each.namespace for each in turns}) < 2:
        return list(oldest)
    whole = math.lcm(
        *{tenant.weight for tenant in tenants.values()}
    )  # shares are counted in parts of a slot, exactly
    tags, had = list[int](), dict[tuple[int, str], int]()
    for each in turns:
        account, parts = (each.priority, each.namespace), whole // weight(tenants, each.namespace)
        had[account] = had.get(account, held.get(each.namespace, 0) * parts) + each.share * parts
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


def _age(each: Ask) -> tuple[int, str, str]:
    meta = each.wave.meta
    return -each.spec.priority, meta.created, meta.key


def _turn(each: Ask) -> Turn:
    """A wave counts for its slots, or for its copies where it takes none."""
    return Turn(each.wave.spec.priority, each.wave.meta.namespace, each.slots or each.copies)
