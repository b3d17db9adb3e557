"""The rules for names that people choose."""

import re

from mint_contracts.errors import InvalidRequest

ADAPTER_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?(/[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?){0,3}$"
ADAPTER_MAX_LENGTH = 200
REVISION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:+/-]{0,127}$"
REVISION_MAX_LENGTH = 128
BASE_PATTERN = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?/[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
WAVE_MAX_LENGTH = 63 + 1 + 253

_ADAPTER = re.compile(ADAPTER_PATTERN)
_REVISION = re.compile(REVISION_PATTERN)
_BASE = re.compile(BASE_PATTERN)


def check_adapter(name: str) -> str:
    """Return `name` if it is one to four path segments of letters, digits, dot, dash and underscore.

    A segment neither starts nor ends with punctuation, so a name is always safe as a relative path.
    Raises InvalidRequest.
    """
    if len(name) > ADAPTER_MAX_LENGTH or not _ADAPTER.fullmatch(name):
        raise InvalidRequest(
            f"adapter {name[:ADAPTER_MAX_LENGTH]!r}",
            "is not a valid name; use up to four segments like 'team/support-7' of letters, digits, '.', '-', '_', "
            f"{ADAPTER_MAX_LENGTH} characters at most",
        )
    return name


def check_asked(name: str) -> str:
    """Return `name` if a request may ask for it: an adapter's name, or NAME@REVISION. Raises InvalidRequest."""
    if "@" not in name:
        return check_adapter(name)
    adapter, revision = split_asked(name)
    check_adapter(adapter)
    if not _REVISION.fullmatch(revision):
        raise InvalidRequest(
            f"adapter {name[:ADAPTER_MAX_LENGTH]!r}", "asks for no revision that can be; write NAME or NAME@REVISION"
        )
    return name


def split_asked(name: str) -> tuple[str, str]:
    """Split a requested NAME or NAME@REVISION into the adapter and the revision, "" if there is none."""
    adapter, _, revision = name.partition("@")
    return adapter, revision


def check_base(name: str) -> str:
    """Return `name` if it has the form "namespace/name" of a BaseModel. Raises InvalidRequest."""
    if not _BASE.fullmatch(name):
        raise InvalidRequest(f"base model {name[:300]!r}", "must read 'namespace/name' of a BaseModel")
    return name


def check_wave(name: str) -> str:
    """Return `name` if it has the form "namespace/name" of an AdapterWave. Raises InvalidRequest."""
    if len(name) > WAVE_MAX_LENGTH or not _BASE.fullmatch(name):
        raise InvalidRequest(f"wave {name[:WAVE_MAX_LENGTH]!r}", "must read 'namespace/name' of an AdapterWave")
    return name
