"""Translation of every storage error, from the operating system or a library, to a MintError.

Messages never contain credentials: of a storage library's error they give only its class, HTTP status and code.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from mint_contracts.backends import Errors, backend
from mint_contracts.errors import MintError, Overloaded, SourceForbidden, SourceNotFound, SourceUnavailable

_FULL = {errno.ENOSPC, errno.EDQUOT}
_CODE = re.compile(r"[A-Za-z0-9]{1,60}")
_LISTING = re.compile("b/[^/]+/o")  # gcsfs names what it did not find: here the bucket's listing, elsewhere an object


@contextmanager
def storage_errors(scheme: str, subject: str) -> Iterator[None]:
    """Turn the errors of a scheme's library into SourceNotFound, SourceForbidden or SourceUnavailable.

    An error that means a full disk becomes Overloaded.
    """
    try:
        yield
    except MintError:
        raise
    except backend(scheme).errors as error:
        raise _meaning(cause_of(error), backend(scheme).no_credentials, subject) from error


def cause_of(error: Exception) -> Exception:
    """Return the actual failure: fsspec's http turns each one into FileNotFoundError, with the real one as cause."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and status_of(cause) != 404:
        return cause if not isinstance(cause, FileNotFoundError) else error
    return error


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that a storage library's error carries, or None."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    found = (
        getattr(error, "status", None) or getattr(error, "code", None) or getattr(response, "status_code", response)
    )
    return int(found) if isinstance(found, int) or (isinstance(found, str) and found.isdigit()) else None


def described(error: Exception) -> str:
    """Return what messages may say of a storage library's error: its own text may have a redirect's signed URL."""
    status = status_of(error)
    told = type(error).__name__, f"HTTP {status}" if status else "", _code_of(error) or _code_of(error.__cause__)
    return ", ".join(filter(None, told))


def lacks_bucket(error: Exception) -> bool:
    """Return whether a store says that it has no such bucket, so that nothing is known of a folder in it."""
    return _code_of(error.__cause__) == "NoSuchBucket" or bool(_LISTING.fullmatch(str(error)))


def _code_of(error: BaseException | None) -> str:
    """Return the code that S3 gives for an error, such as RequestTimeTooSkewed; "" for other errors."""
    response = getattr(error, "response", None)
    code = str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
    return code if _CODE.fullmatch(code) else ""


def _meaning(error: Exception, no_credentials: Errors, subject: str) -> MintError:
    if isinstance(error, MintError):  # of `WebFiles`, as the cause of fsspec's
        return type(error)(subject, str(error))
    status, what = status_of(error), described(error)
    if full := disk_full(error, subject):
        return full
    if isinstance(error, FileNotFoundError) or status in {404, 410}:
        return SourceNotFound(subject, "holds nothing there; check its path and revision")
    if isinstance(error, (PermissionError, *no_credentials)) or status in {401, 403}:
        return SourceForbidden(subject, f"storage refused access ({what}); check the credentials of secretRef")
    return SourceUnavailable(subject, f"storage did not answer ({what}); retrying")


@contextmanager
def os_errors(subject: str, did: str = "read") -> Iterator[None]:
    """Turn the operating system's errors about a source into MintErrors, which say that it could not be `did`."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceNotFound(subject, "does not exist; check its path") from error
    except PermissionError as error:
        raise SourceForbidden(subject, f"may not be {did} by the engine's user; check its permissions") from error
    except OSError as error:
        raise disk_full(error, subject) or SourceUnavailable(
            subject, f"could not be {did} ({error.strerror}); retrying"
        ) from error


@contextmanager
def writing_errors(subject: str) -> Iterator[None]:
    """Turn the operating system's errors about writing to a user's own volume into MintErrors."""
    try:
        yield
    except OSError as error:
        if full := volume_full(error, subject):
            raise full from error
        if error.errno == errno.EROFS or isinstance(error, PermissionError):
            message = f"may not be written ({error.strerror}); check how its volume is mounted, and its permissions"
            raise SourceForbidden(subject, message) from error
        raise SourceUnavailable(subject, f"could not be written ({error.strerror}); retrying") from error


def volume_full(error: OSError, subject: str) -> MintError | None:
    """Return Overloaded if the error says that a user's own volume is full."""
    if error.errno in _FULL:
        return Overloaded(subject, "has no room left on its volume; enlarge it", retry_after_s=5.0)
    return None


def disk_full(error: BaseException, subject: str) -> MintError | None:
    """Return Overloaded if the error says that this machine's own disk is full."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return Overloaded(
            subject, "finds the engine's disk full; give engines larger disks (engine.cache)", retry_after_s=5.0
        )
    return None
