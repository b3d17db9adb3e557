"""A web server that serves ranges of files."""

import hashlib
from functools import cache
from pathlib import Path

from tests.engine import stores


class Ranged(stores.Files):
    """Serves ranges, with an ETag of the content. `cuts` counts the answers still to be cut off in their middle."""

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        path = Path(self.directory) / self.path.strip("/")
        if not self.headers.get("Range") or not path.is_file():
            super().do_GET()
            return
        self.seen.append(f"{self.headers['Range']} {path.name}")
        size, tag = path.stat().st_size, etag(path)
        first, last = (int(each) for each in self.headers["Range"].removeprefix("bytes=").split("-"))
        same = self.headers.get("If-Range", tag) == tag
        with path.open("rb") as file:
            file.seek(first if same else 0)
            part = file.read(last + 1 - first if same else size)
        self.send_response(206 if same else 200)
        self.send_header("Content-Length", str(len(part)))
        if same:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{size}")
        self.end_headers()
        if same and first and self.faults.get("cuts", 0):
            self.faults["cuts"] -= 1
            part = part[: len(part) // 2]
            self.close_connection = True
        self.wfile.write(part)

    def end_headers(self) -> None:
        path = Path(self.directory) / self.path.strip("/")
        if path.is_file():
            self.send_header("ETag", etag(path))
        super().end_headers()


def etag(path: Path) -> str:
    stat = path.stat()
    return _tag(path, stat.st_mtime_ns, stat.st_size)


@cache
def _tag(path: Path, _changed: int, _size: int) -> str:
    return f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"'
