"""An immutable mapping with cheap modified copies: its entries are spread over many small dictionaries.

A plan over 64,000 adapters that differs from the last in one wave shares all but a few dictionaries with it, and
identity shows which ones differ (the idea of Bagwell's hash array mapped tries, EPFL 2001, with one level).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, overload

V = TypeVar("V")
D = TypeVar("D")

COUNT = 2048  # a power of two; about thirty entries each if a base has 64,000

_NONE: list[dict[str, Any]] = [{}] * COUNT


class Shards(Mapping[str, V]):
    """The mapping. It iterates in no particular order."""

    __slots__ = ("_parts", "_whole")

    def __init__(self, entries: Mapping[str, V] | None = None) -> None:
        """`entries` are kept for `flat`, so they must not change."""
        parts: list[dict[str, V]] = [{} for _ in range(COUNT)] if entries else _NONE
        for name, value in (entries or {}).items():
            parts[hash(name) & (COUNT - 1)][name] = value
        self._parts = parts
        self._whole = entries

    def __getitem__(self, name: str) -> V:
        return self._parts[hash(name) & (COUNT - 1)][name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts[hash(name) & (COUNT - 1)]

    def __iter__(self) -> Iterator[str]:
        for part in self._parts:
            if part:
                yield from part

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __bool__(self) -> bool:
        return any(self._parts)

    @overload
    def get(self, name: str, /) -> V | None: ...
    @overload
    def get(self, name: str, /, default: V | D) -> V | D: ...
    def get(self, name: str, /, default: Any = None) -> Any:
        """Like `dict.get`; overridden for speed."""
        return self._parts[hash(name) & (COUNT - 1)].get(name, default)

    def changed(self, entries: Mapping[str, V], gone: Iterable[str] = ()) -> "Shards[V]":
        """Return a copy with these entries and without the `gone` names; it shares the rest."""
        parts = list(self._parts)

        def part_of(name: str) -> dict[str, V]:
            index = hash(name) & (COUNT - 1)
            if parts[index] is self._parts[index]:
                parts[index] = dict(parts[index])
            return parts[index]

        for name, value in entries.items():
            part_of(name)[name] = value
        for name in gone:
            part_of(name).pop(name, None)
        made = Shards[V]()
        made._parts, made._whole = parts, None
        return made

    def flat(self) -> Mapping[str, V]:
        """Return all entries in one dictionary, for readers of all of them."""
        if self._whole is not None:
            return self._whole
        found: dict[str, V] = {}
        for part in self._parts:
            if part:
                found.update(part)
        return found

    def parts(self) -> list[dict[str, V]]:
        """Return the dictionaries, which are read-only; equal hashes share an index in all mappings of a process."""
        return self._parts


def flat(entries: Mapping[str, V]) -> Mapping[str, V]:
    """Return the mapping as one dictionary."""
    return entries.flat() if isinstance(entries, Shards) else entries


def shards(entries: Mapping[str, V]) -> Shards[V]:
    """Return the mapping as shards; the same object if it already is."""
    return entries if isinstance(entries, Shards) else Shards(entries)


def differing(new: Mapping[str, object], old: Mapping[str, object]) -> set[str]:
    """Return the keys whose values differ or that only one of the mappings has."""
    if new is old:
        return set()
    if isinstance(new, Shards) and isinstance(old, Shards):
        pairs = zip(new.parts(), old.parts(), strict=True)
        return {name for after, before in pairs if after is not before for name in _differing(after, before)}
    return _differing(new, old)


def _differing(new: Mapping[str, object], old: Mapping[str, object]) -> set[str]:
    found = {name for name, value in new.items() if old.get(name) is not value and old.get(name) != value}
    if len(new) != len(old) or found:
        found |= old.keys() - new.keys()
    return found
