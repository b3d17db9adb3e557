"""Google Cloud Storage's filesystem, each of whose requests is bounded as a whole, with its retries.

And by how its body is taken.
"""

from collections.abc import Mapping
from typing import Any

from gcsfs.core import GCSFileSystem  # not gcsfs's own choice, which asks for each bucket's type by gRPC first

from mint_contracts.paces import asked_for
from mint_contracts.uploads import Tracked, bounded


class GsFiles(GCSFileSystem):  # type: ignore[misc]
    """As its parent, but for the bounds. Raises TimeoutError."""

    @property
    def session(self) -> Tracked:
        """What its requests are made by."""
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
