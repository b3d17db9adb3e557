"""Google Cloud Storage's filesystem, each of whose requests is bounded as a whole, with its retries."""

import asyncio
from collections.abc import Mapping
from typing import Any

from gcsfs.core import GCSFileSystem  # not gcsfs's own choice, which asks for each bucket's type by gRPC first

from mint_contracts.paces import allowed_s, asked_for


class GsFiles(GCSFileSystem):  # type: ignore[misc]
    """As its parent, but for the bound. Raises TimeoutError."""

    async def _request(
        self,
        method: str,
        path: str,
        *args: Any,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
        **options: Any,
    ) -> Any:
        moved = asked_for((headers or {}).get("Range", "")) + _length(data)
        async with asyncio.timeout(allowed_s(moved)):
            return await super()._request(method, path, *args, headers=headers, data=data, **options)


def _length(data: Any) -> int:
    if hasattr(data, "getbuffer"):
        return int(data.getbuffer().nbytes)
    return len(data) if hasattr(data, "__len__") else 0
