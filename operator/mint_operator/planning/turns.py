"""The order in which waves are admitted.

Priority comes first. Among waves of one priority, namespaces take turns by weighted fair queueing (Demers, Keshav,
Shenker, SIGCOMM 1989): waves are ordered by how much of the base their namespace would then hold, over its weight.
Within a namespace, age decides, then name. Since the order depends on nothing else, a waiting wave is always
considered before later ones, and none starves behind smaller ones that pass it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from mint_contracts.resources import Tenant
from mint_operator.planning.asking import Ask

T = TypeVar("T")


class Turn(msgspec.Struct, frozen=True, gc=False):
    """What a wave's turn depends on besides its age: `share` is what it takes, in slots."""

    priority: int
    namespace: str
    share: int


def in_turn(asks: Iterable[Ask], tenants: Mapping[str, Tenant], held: Mapping[str, int]) -> list[Ask]:
    """Return the waves by turn. `held` are the slots that namespaces hold besides these waves' own."""
    return fair(sorted(asks, key=_age), _turn, tenants, held)


def fair(
    oldest: Sequence[T], turn: Callable[[T], Turn], tenants: Mapping[str, Tenant], held: Mapping[str, int]
) -> list[T]:
    """Reorder by turn what is given by priority and age."""
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
    """Return how much of the base a namespace gets relative to the others when not everything fits."""
    return tenants[namespace].weight if namespace in tenants else 1


def quota(tenants: Mapping[str, Tenant], namespace: str) -> int:
    """Return how many slots of the base a namespace may hold; 0: no limit."""
    return tenants[namespace].device_slots if namespace in tenants else 0


def by_namespace(tenants: Sequence[Tenant]) -> dict[str, Tenant]:
    """Return a base's tenants by their namespace."""
    return {tenant.namespace: tenant for tenant in tenants}


def _age(each: Ask) -> tuple[int, str, str]:
    meta = each.wave.meta
    return -each.spec.priority, meta.created, meta.key


def _turn(each: Ask) -> Turn:
    """Return a wave's turn; its share is its slots, or its copies if it takes no slots."""
    return Turn(each.wave.spec.priority, each.wave.meta.namespace, each.slots or each.copies)
