"""The process that checks texts by JSON schemas: an answer to each request, until nobody asks any more.

It imports nothing of ours, so that it starts in a quarter of a second and takes some 25 MB.
"""

import json
import resource
import signal
import sys
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable

MOST_BYTES = 1 << 30  # of its memory
_SCHEMAS_CACHED = 32


def main() -> None:
    """Answer on the socket that the argument numbers. What takes longer than a request says ends by SIGPROF."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    connection = Connection(int(sys.argv[1]))
    while True:
        try:
            seconds, schema, text = json.loads(connection.recv_bytes())
        except EOFError:
            return
        connection.send_bytes(json.dumps(_answer(seconds, schema, text)).encode())


def _answer(seconds: float, schema: str, text: str) -> bool | str:
    """Whether the text is accepted, or what is wrong with the schema."""
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        validator = _compiled(schema)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # whether it was compiled before must make no difference
        return _accepts(validator, text)
    except SchemaError as error:
        return f"is no JSON schema: {error.message[:300]}"
    except Unresolvable as error:
        return f"refers to what it does not hold: {error}"
    except MemoryError:
        return f"takes more than {MOST_BYTES >> 20} MiB on {text[:100]!r}"
    except Exception as error:  # noqa: BLE001 - whatever it does to the validator is that schema's trouble alone
        return f"can't be used: {type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@lru_cache(_SCHEMAS_CACHED)
def _compiled(text: str) -> Any:
    schema = json.loads(text)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, registry=Registry())


def _accepts(validator: Any, text: str) -> bool:
    try:
        return bool(validator.is_valid(json.loads(text, parse_constant=_refuse)))
    except (ValueError, RecursionError, ArithmeticError):  # 1e999 is beyond all floats that could be divided
        return False


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


if __name__ == "__main__":
    main()
