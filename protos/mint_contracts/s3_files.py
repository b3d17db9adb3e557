"""S3's filesystem, also for services that omit an object's length, as behind compressing proxies.

Some, as MinIO, forget an upload once it is complete. If their answer to its completion is lost, the repeated request
finds no such upload. Nothing is missing then: to upload the object again is all that is needed.
"""

import errno
from typing import Any

from botocore.exceptions import ClientError
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error


class S3Files(S3FileSystem):  # type: ignore[misc]
    """S3FileSystem, but if an object's head has no length, it comes from the bucket's listing.

    An unknown upload is an OSError, and no FileNotFoundError. To delete what may not be deleted is an error: s3fs
    takes a bucket's answer for success whatever it says of each object. Where a folder has nothing, the one above is
    not listed, though s3fs would: a store of adapters may have a million others.
    """

    async def _ls(
        self, path: str, detail: bool = False, refresh: bool = False, versions: bool = False, prefix: str = ""
    ) -> Any:
        path = self._strip_protocol(path).rstrip("/")
        files = await self._lsdir(path, refresh, versions=versions, prefix=prefix)
        if not files and "/" in path and not prefix:
            raise FileNotFoundError(path)
        return files if detail else sorted(each["name"] for each in files)

    async def _call_s3(self, method: str, *positional: Any, **named: Any) -> Any:
        try:
            answer = await super()._call_s3(method, *positional, **named)
        except FileNotFoundError as error:
            if "UploadId" not in named:
                raise
            raise OSError(errno.EBUSY, "the upload has ended") from error
        if method == "head_object" and "ContentLength" not in answer:
            answer["ContentLength"] = await self._listed_length(named["Bucket"], named["Key"])
        if method == "delete_objects":
            for refused in answer.get("Errors", ()):
                if refused.get("Code") != "NoSuchKey":
                    raise translate_boto_error(ClientError({"Error": refused}, "DeleteObjects"))
        return answer

    async def _listed_length(self, bucket: str, key: str) -> int:
        """Return an object's length from the listing. Raises FileNotFoundError if it is not listed."""
        # Of all keys with this prefix, the key itself sorts first.
        found = await super()._call_s3("list_objects_v2", self.kwargs, Bucket=bucket, Prefix=key, MaxKeys=1)
        for each in found.get("Contents", ()):
            if each["Key"] == key:
                return int(each["Size"])
        raise FileNotFoundError(key)
