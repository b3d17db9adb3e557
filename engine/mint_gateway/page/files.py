"""The page's own files. They are the same for everybody and need no key."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
from aiohttp import web

_FOLDER = Path(__file__).parent

# Only the page's own files may be loaded or run: whatever a name contains, a browser treats it as text.
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # revalidated by ETag each time: another version of MinT has other files
}


class File(msgspec.Struct, frozen=True):
    """One file as it is sent."""

    body: bytes
    media_type: str
    etag: str


def _read(name: str, media_type: str) -> File:
    body = (_FOLDER / name).read_bytes()
    return File(body, media_type, hashlib.sha256(body).hexdigest()[:32])


FILES: Mapping[str, File] = {
    "/": _read("page.html", "text/html"),
    "/page.css": _read("page.css", "text/css"),
    **{f"/{name}": _read(name, "text/javascript") for name in ("page.js", "views.js", "elements.js")},
}


async def send(request: web.Request) -> web.Response:
    """Answer with the requested file, or with 304 if the browser's copy is still the same."""
    file = FILES[request.path]
    same = any(each.value == file.etag for each in request.if_none_match or ())
    answer = web.Response(status=304, headers=HEADERS) if same else _whole(file)
    answer.etag = file.etag
    return answer


def _whole(file: File) -> web.Response:
    return web.Response(body=file.body, headers=HEADERS, content_type=file.media_type, charset="utf-8")
