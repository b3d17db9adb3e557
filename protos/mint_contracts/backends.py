"""The storage libraries behind each scheme: fsspec filesystems with time limits, and the errors that they raise.

Each is imported when its scheme is first used: most engines need at most one, and importing all takes seconds.
Credentials come from the environment (AWS_*, GOOGLE_*, HF_TOKEN), never from a URI.
"""

import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsspec.spec import AbstractFileSystem  # its import takes a fifth of the time that `mint` takes to start

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0
S3_CONNECTIONS = 64  # botocore's default is 10; a request that waits for a connection is not in flight
S3_PARTS = 4  # parallel parts of one upload: an engine's eight uploads use half of the connections and share a link

Errors = tuple[type[Exception], ...]

_PLAIN: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}


@dataclass(frozen=True)
class Backend:
    """One scheme's filesystem, every error type it raises, and the error types that mean missing credentials."""

    files: "AbstractFileSystem"
    errors: Errors
    no_credentials: Errors = ()


@cache
def backend(scheme: str) -> Backend:
    """Return a scheme's backend: one connection pool and one set of credentials. Listings are never cached."""
    return {"http": _web, "https": _web, "s3": _s3, "gs": _gs, "hf": _hf}[scheme]()


def commit_of(kind: str, repository: str, revision: str) -> str | None:
    """Return the commit that a branch or tag of a hub repository points to now. Raises the hf backend's errors."""
    from huggingface_hub import HfApi

    backend("hf")  # installs the client that limits the time of each request
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT")).repo_info(repository, repo_type=kind, revision=revision).sha


def _web() -> Backend:
    import aiohttp
    from fsspec.exceptions import FSTimeoutError

    from mint_contracts.web_files import WebFiles

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
    return Backend(WebFiles(timeout=timeout, **_PLAIN), (OSError, aiohttp.ClientError, FSTimeoutError))


def _s3() -> Backend:
    import aiohttp
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
    from fsspec.exceptions import FSTimeoutError

    from mint_contracts.s3_files import S3Files
    from mint_contracts.s3_session import S3Session

    limits = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S, "retries": {"max_attempts": 1}}
    limits |= {"max_pool_connections": S3_CONNECTIONS, "http_session_cls": S3Session}
    files = S3Files(config_kwargs=limits, max_concurrency=S3_PARTS, **_PLAIN)
    files.retries = 1  # botocore has tried twice by then, and the caller retries and reports why
    return Backend(
        files, (OSError, aiohttp.ClientError, BotoCoreError, ClientError, FSTimeoutError), (NoCredentialsError,)
    )


def _gs() -> Backend:
    import aiohttp
    from fsspec.exceptions import FSTimeoutError
    from gcsfs.retry import HttpError
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError

    from mint_contracts.gs_files import GsFiles

    # A plain number would limit the duration of a complete request, and a large checkpoint could never be read.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
    session = {"trust_env": True}  # aiohttp reads the variables of a proxy only then
    files = GsFiles(requests_timeout=timeout, session_kwargs=session, **_PLAIN)
    return Backend(
        files, (OSError, aiohttp.ClientError, FSTimeoutError, GoogleAuthError, HttpError), (DefaultCredentialsError,)
    )


def _hf() -> Backend:
    import httpx2

    from mint_contracts.hub_files import hub_files

    web = _web()
    files = hub_files(web.files, os.environ.get("HF_ENDPOINT"), **_PLAIN)
    return Backend(files, (*web.errors, httpx2.HTTPError))
