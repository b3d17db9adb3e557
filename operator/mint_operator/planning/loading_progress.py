"""Describes engines that are loading their base: how much is done, and how long the rest takes. Pure."""

from collections.abc import Sequence

import msgspec

from mint_contracts.durations import span
from mint_contracts.records import COPYING, LOADING, Bringing
from mint_contracts.resources import LoadingStatus
from mint_operator.planning.engines import Engine

_DONE = {COPYING: "copied", LOADING: "read into memory"}
_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"))
_MINUTE, _HOUR = 60, 3600


def is_copying(engine: Engine) -> bool:
    """Whether the base is being copied to the engine's node."""
    found = loading_progress(engine)
    return found is not None and found.phase == COPYING


def loading_progress(engine: Engine) -> Bringing | None:
    """Return the progress of an engine that does not serve yet; None if it reports none."""
    return engine.record.bringing if engine.record is not None and not engine.ready else None


def sentence(engine: Engine) -> str:
    """Return an engine's progress as text for people; "" if there is none."""
    found = loading_progress(engine)
    if found is None or found.phase not in _DONE:
        return ""
    about = f"engine {engine.name}: {_amount(found)} of the base {_DONE[found.phase]}"
    if found.percent is None:
        return about
    left = f", about {_time(found.left_s)} left" if found.left_s else ""
    return f"{about} ({found.percent}%){left}"


def with_base(loading: LoadingStatus, engines: Sequence[Engine]) -> LoadingStatus:
    """Return `loading` with its time extended to that of loading the base, if that takes longer."""
    known = [
        found.left_s for found in map(loading_progress, engines) if found is not None and found.left_s is not None
    ]
    last = max(known, default=0)
    if last <= (loading.eta_seconds or 0):
        return loading
    return msgspec.structs.replace(loading, eta_seconds=last, eta=span(last))


def planning_view(found: Bringing | None) -> object:
    """Return what planning uses of the progress: one plan per percent is enough."""
    if found is None:
        return None
    return found.phase, found.total, found.done // _UNITS[1][0] if found.percent is None else found.percent


def _amount(found: Bringing) -> str:
    """Format an amount like "312 of 980 GB", in the larger number's unit, with one decimal if that is below 10."""
    size, unit = next((each for each in _UNITS if max(found.total, found.done) >= each[0]), _UNITS[-1])
    digits = 1 if max(found.total, found.done) < 10 * size else 0
    done = f"{found.done / size:.{digits}f}"
    return f"{done} of {found.total / size:.{digits}f} {unit}" if found.total else f"{done} {unit}"


def _time(seconds: int) -> str:
    minutes = round(seconds / _MINUTE)
    if minutes <= 1:
        return "a minute"
    return f"{minutes} minutes" if seconds < 2 * _HOUR else f"{round(seconds / _HOUR)} hours"
