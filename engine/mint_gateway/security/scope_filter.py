"""Restricting the placement map to a key's scope: pure. What is out of scope is absent, so nothing reveals it."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

import msgspec

from mint_contracts.records import Mentions, Placement, WaveRecord
from mint_contracts.training_records import WaveTraining
from mint_contracts.training_reports import Progresses
from mint_gateway.security.scope import EVERYTHING, Scope
from mint_gateway.view import Engine, MapView

T = TypeVar("T")

_KEPT_BACK = "withheld: the details may name objects outside this key's scope; contact the base model's owner"


def within(views: Mapping[str, MapView], scope: Scope) -> Mapping[str, MapView]:
    """Return the bases that a scope opens, each with only the adapters and waves that it opens."""
    if scope == EVERYTHING:
        return views
    return _Narrowed(views, scope.base, lambda view: _view(view, scope))


def waves_within(records: Mapping[str, WaveRecord], scope: Scope) -> Mapping[str, WaveRecord]:
    """Return one base's waves that a scope opens, with their queue positions among themselves."""
    if scope == EVERYTHING:
        return records
    own = {name: each for name, each in records.items() if scope.wave(name)}
    waiting = sorted(each.position for each in own.values() if each.position)
    return {name: _wave(each, waiting, scope) for name, each in own.items()}


def training_within(training: Mapping[str, WaveTraining], scope: Scope) -> Mapping[str, WaveTraining]:
    """Return one base's training waves that a scope opens, each with the policies that it opens."""
    if scope == EVERYTHING:
        return training
    return {name: _training(each, scope) for name, each in training.items() if scope.wave(name)}


def progresses_within(progresses: Progresses, scope: Scope) -> Progresses:
    """Return what each engine reports about the policies that a scope opens."""
    if scope.adapters is None:
        return progresses
    return {engine: _Narrowed(of, scope.adapter) for engine, of in progresses.items()}


def in_pieces(names: Mapping[str, object], size: int) -> Iterator[list[str]]:
    """Yield a mapping's names, or of a restricted one the opened names, after each `size` names looked at."""
    whole, opens = (names.whole, names.opens) if isinstance(names, _Narrowed) else (names, None)
    every = iter(whole)
    while piece := list(itertools.islice(every, size)):
        yield piece if opens is None else [name for name in piece if opens(name)]


class _Narrowed(Mapping[str, T], Generic[T]):
    """A view of a mapping without the names that a scope does not open. It copies nothing: there may be many."""

    def __init__(
        self, whole: Mapping[str, T], opens: Callable[[str], bool], shown: Callable[[T], T] = lambda value: value
    ) -> None:
        self.whole, self.opens, self._shown = whole, opens, shown

    def __getitem__(self, name: str) -> T:
        if not self.opens(name):
            raise KeyError(name)
        return self._shown(self.whole[name])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.opens(name) and name in self.whole

    def __iter__(self) -> Iterator[str]:
        return filter(self.opens, self.whole)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _view(view: MapView, scope: Scope) -> MapView:
    def shown(placement: Placement) -> Placement:
        waves = tuple(wave for wave in placement.waves if scope.wave(wave))
        return placement if len(waves) == len(placement.waves) else msgspec.structs.replace(placement, waves=waves)

    engines = view.engines
    if scope.adapters is not None:
        engines = {name: _engine(engine, scope) for name, engine in engines.items()}
    return msgspec.structs.replace(
        view,
        placements=_Narrowed(view.placements, scope.adapter, shown),
        engines=engines,
        catalogued=_Narrowed(view.catalogued, scope.adapter),
        published=_Narrowed(view.published, scope.adapter),
        scope=scope,
    )


def _engine(engine: Engine, scope: Scope) -> Engine:
    return msgspec.structs.replace(
        engine, held=_Narrowed(engine.held, scope.adapter), published=_Narrowed(engine.published, scope.adapter)
    )


def _wave(record: WaveRecord, waiting: list[int], scope: Scope) -> WaveRecord:
    message = _message(record.message, record.mentions, scope)
    position = waiting.index(record.position) + 1 if record.position else 0
    return msgspec.structs.replace(record, message=message, position=position)


def _message(message: str, mentions: Mentions | None, scope: Scope) -> str:
    """Return a wave's message, or a placeholder if it names, or may name, what the scope does not open."""
    if not message or (mentions is not None and _opens(scope, mentions)):
        return message
    return _KEPT_BACK


def _opens(scope: Scope, mentions: Mentions) -> bool:
    """Return whether a scope opens everything that a message mentions."""
    others = mentions.others and scope.adapters is not None
    return not others and all(map(scope.adapter, mentions.adapters)) and all(map(scope.wave, mentions.waves))


def _training(training: WaveTraining, scope: Scope) -> WaveTraining:
    return msgspec.structs.replace(
        training,
        policies=tuple(name for name in training.policies if scope.adapter(name)),
        last_words=tuple(each for each in training.last_words if scope.adapter(each.policy)),
        message=_message(training.message, training.mentions, scope),
    )
