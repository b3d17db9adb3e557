"""Google Cloud Storage's filesystem with a time limit on each complete request, its retries included.

A request is also bounded by how fast the server takes its body.
"""

from collections.abc import Mapping
from typing import Any

from gcsfs.core import GCSFileSystem  # not gcsfs's default class, which first queries each bucket's type by gRPC

from mint_contracts.time_limits import asked_for
from mint_contracts.uploads import Tracked, bounded


class GsFiles(GCSFileSystem):  # type: ignore[misc]
    """GCSFileSystem with these limits. Raises TimeoutError."""

    @property
    def session(self) -> Tracked:
        """The session that makes its requests."""
        return Tracked(super().session)

    async def _request(
        self,
        method: str,
        path: str,
        *args: Any,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
        **options: Any,
    ) -> Any:
        async with bounded(_length(data), asked_for((headers or {}).get("Range", ""))):
            return await super()._request(method, path, *args, headers=headers, data=data, **options)


def _length(data: Any) -> int:
    if hasattr(data, "getbuffer"):
        return int(data.getbuffer().nbytes)
    return len(data) if hasattr(data, "__len__") else 0
