"""The process that checks texts by JSON schemas or patterns: an answer to each request, until nobody asks any more.

It imports nothing of ours, so that it starts in a quarter of a second and takes some 25 MB.
"""

import json
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
from referencing import Registry
from referencing.exceptions import Unresolvable

MOST_BYTES = 1 << 30  # of its memory
_SCHEMAS_CACHED = 32
_SHALLOW = 32  # values within each other that any schema goes through
_PATTERNS_CACHED = 1024  # one that compares with answers is another one for each

_Check = Callable[[str], bool]


def main() -> None:
    """Answer on the socket that the argument numbers. What takes longer than a request says ends by SIGPROF."""
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
    """Whether the text is accepted, or what is wrong with what it is to be accepted by."""
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        check = KINDS[kind](rule)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # whether it was compiled before must make no difference
        return check(text)
    except SchemaError as error:
        return f"is not a valid JSON schema: {error.message[:300]}"
    except Unresolvable as error:
        return f"has a reference that does not resolve: {error}"
    except regex.error as error:
        return f"is not a valid regular expression: {error}"
    except MemoryError:
        return f"takes more than {MOST_BYTES >> 20} MiB on {text[:100]!r}"
    except Exception as error:  # noqa: BLE001 - whatever it does to who checks is its own trouble alone
        return f"cannot be used: {type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@lru_cache(_SCHEMAS_CACHED)
def _by_schema(rule: str) -> _Check:
    schema = json.loads(rule)
    Draft202012Validator.check_schema(schema)
    return partial(_accepts, Draft202012Validator(schema, registry=Registry()))


def _accepts(validator: Any, text: str) -> bool:
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    try:
        return bool(validator.is_valid(value))
    except ArithmeticError:  # 1e999 is beyond all floats that could be divided
        return False
    except RecursionError:  # by the text, where that is deep, or by a schema that leads back to itself
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


KINDS: dict[str, Callable[[str], _Check]] = {
    "schema": _by_schema, "pattern": _by_pattern, "whole pattern": _by_whole_pattern,
}  # fmt: skip

if __name__ == "__main__":
    main()
