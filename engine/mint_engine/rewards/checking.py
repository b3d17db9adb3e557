"""The process that checks texts by JSON schemas or patterns: it answers requests until the connection ends.

It imports none of MinT's packages, so that it starts in a quarter of a second and takes about 25 MB.
"""

import json
import re
import resource
import signal
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from multiprocessing.connection import Connection
from typing import Any

import regex
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

MOST_BYTES = 256 << 20  # of its memory, which is the engine's container's: no rule may take what the engine needs
_SCHEMAS_CACHED = 32
_SHALLOW = 32  # levels of nesting that any schema can handle
_PATTERNS_CACHED = 1024  # a pattern with `{answer}` is a different one for each answer

_Check = Callable[[str], bool]


def main() -> None:
    """Answer on the socket whose descriptor is the argument. A check beyond its request's limit ends by SIGPROF."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    connection = Connection(int(sys.argv[1]))
    while True:
        try:
            seconds, kind, rule, text = json.loads(connection.recv_bytes())
        except EOFError:
            return
        connection.send_bytes(json.dumps(_answer(seconds, kind, rule, text)).encode())


def _answer(seconds: float, kind: str, rule: str, text: str) -> bool | str:
    """Return whether the rule accepts the text, or what is wrong with the rule."""
    # Again only if rules in the caches may be why the memory was full: others wait meanwhile.
    for _ in range(2 if any(cache.cache_info().currsize for cache in _caches()) else 1):
        found = _checked(seconds, kind, rule, text)
        if found is not None:
            return found
        _forget()
    return f"takes more than {MOST_BYTES >> 20} MiB on {text[:100]!r}"


def _checked(seconds: float, kind: str, rule: str, text: str) -> bool | str | None:
    """Return the answer, or None if the memory is full."""
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        check = KINDS[kind](rule)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # the full time, whether or not the rule was cached
        return check(text)
    except SchemaError as error:
        return f"is not a valid JSON schema: {error.message[:300]}"
    except Unresolvable as error:
        return f"has a reference that does not resolve: {error}"
    except regex.error as error:
        return f"is not a valid regular expression: {error}"
    except MemoryError:
        return None
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is a problem of the user's rule
        return f"cannot be used: {type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _forget() -> None:
    """Empty all caches, also those of the libraries."""
    for cache in _caches():
        cache.cache_clear()
    regex.purge()
    re.purge()


@lru_cache(_SCHEMAS_CACHED)
def _by_schema(rule: str) -> _Check:
    schema = json.loads(rule)
    named = schema if isinstance(schema, dict) else {}
    draft = validator_for(named, Draft202012Validator)  # its `$schema`, if that is known
    draft.check_schema(schema)
    return partial(_accepts, draft(schema, registry=Registry()))


def _accepts(validator: Any, text: str) -> bool:
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    try:
        return bool(validator.is_valid(value))
    except ArithmeticError:  # 1e999 is infinity as a float, which cannot be divided
        return False
    except RecursionError:  # caused by a deeply nested text, or by a schema that refers to itself
        if _is_deep(value):
            return False
        raise


def _is_deep(value: Any) -> bool:
    inner = [value]
    for _ in range(_SHALLOW):
        inner = [
            each
            for outer in inner
            if isinstance(outer, dict | list)
            for each in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(inner)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not valid JSON")


@lru_cache(_PATTERNS_CACHED)
def _by_pattern(pattern: str) -> _Check:
    compiled = regex.compile(pattern, regex.DOTALL)
    return lambda text: compiled.search(text) is not None


@lru_cache(_PATTERNS_CACHED)
def _by_whole_pattern(pattern: str) -> _Check:
    compiled = regex.compile(pattern, regex.DOTALL)
    return lambda text: compiled.fullmatch(text) is not None


def _caches() -> tuple[Any, ...]:
    return _by_schema, _by_pattern, _by_whole_pattern


KINDS: dict[str, Callable[[str], _Check]] = {
    "schema": _by_schema, "pattern": _by_pattern, "whole pattern": _by_whole_pattern,
}  # fmt: skip

if __name__ == "__main__":
    main()
