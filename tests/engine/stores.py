"""Real servers of every kind that a source may name, each on loopback and over one local folder."""

import functools
import json
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http import HTTPStatus
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import boto3
import pytest
from gcp_storage_emulator.server import create_server
from gcsfs.core import GCSFileSystem
from moto.server import ThreadedMotoServer

from mint_contracts import backends
from mint_contracts.source import Source
from tests.redis_process import free_port

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BUCKET = "shelf"

Entry = dict[str, object]


class Files(SimpleHTTPRequestHandler):
    """Serves the files of `folder`. `faults` counts, by the end of a path, the 503 answers still to give."""

    faults: dict[str, int] = {}  # noqa: RUF012 - each server has a class of its own
    seen: list[str] = []  # noqa: RUF012

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if not self._fault():
            super().do_GET()

    def do_HEAD(self) -> None:
        if not self._fault():
            super().do_HEAD()

    def _fault(self) -> bool:
        self.seen.append(f"{self.command} {self.path}")
        for end, left in self.faults.items():
            if self.path.endswith(end) and left > 0:
                self.faults[end] = left - 1
                self.send_error(503)
                return True
        if self.path.startswith("/private"):
            self.send_error(403)
            return True
        return False


_KINDS = ("models", "datasets")


class Hub(Files):
    """The part of the Hugging Face hub that the engine uses: revision to commit, trees, paths and resolved files."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self._fault():
            return
        match path.strip("/").split("/"):
            case ["api", kind, owner, name, "revision", revision] if kind in _KINDS:
                known = self._repository(kind, owner, name).is_dir() and revision in {"main", "v1", COMMIT}
                self._json({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": []} if known else None)
            case ["api", kind, owner, name, "tree", commit, *rest] if kind in _KINDS and commit == COMMIT:
                self._json(self._tree(self._repository(kind, owner, name), rest))
            case ["datasets", owner, name, "resolve", commit, *rest] if commit == COMMIT:
                self._file(self._repository("datasets", owner, name).joinpath(*rest))
            case [owner, name, "resolve", commit, *rest] if commit == COMMIT:
                self._file(self._repository("models", owner, name).joinpath(*rest))
            case _:
                self._json(None)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        match path.strip("/").split("/"):
            case ["api", kind, owner, name, "paths-info", commit] if kind in _KINDS and commit == COMMIT:
                found = [self._entry(self._repository(kind, owner, name), each) for each in asked["paths"]]
                self._json([each for each in found if each])
            case _:
                self._json(None)

    def _repository(self, kind: str, owner: str, name: str) -> Path:
        return Path(self.directory, *(["datasets"] if kind == "datasets" else []), owner, name)

    def _tree(self, root: Path, rest: list[str]) -> list[Entry] | None:
        folder = root.joinpath(*rest)
        if not folder.is_dir():
            return None
        found = [self._entry(root, str(path.relative_to(root))) for path in sorted(folder.iterdir())]
        return [each for each in found if each]

    def _entry(self, root: Path, path: str) -> Entry | None:
        here = root / path
        if not here.exists():
            return None
        kind = "directory" if here.is_dir() else "file"
        return {"type": kind, "path": path, "size": here.stat().st_size, "oid": "0" * 40}

    def _json(self, answer: object) -> None:
        if answer is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._json(None)
            return
        body, status = path.read_bytes(), 200
        total = len(body)
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            body, status = body[int(first) : int(last or total - 1) + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"0"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(body) - 1}/{total}")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serving(
    handler: type[Files], folder: Path, tls: ssl.SSLContext | None = None
) -> Iterator[tuple[str, type[Files]]]:
    """A web server over `folder`: yields its host:port, and its handler class with `faults` and `seen`."""
    own = type(handler.__name__, (handler,), {"faults": {}, "seen": []})
    with _listening(functools.partial(own, directory=str(folder)), tls) as address:
        yield address, own


@contextmanager
def _listening(handler: Callable[..., BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Yield the host:port of a server that handles requests with `handler`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)


def self_signed(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Return a server's TLS context for 127.0.0.1, and the certificate file that clients must trust."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


@contextmanager
def s3(folder: Path) -> Iterator[str]:
    """The address of an S3 server (moto's) whose bucket holds the contents of `folder`. One at a time."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        _forget(host, port)
        url = f"http://{host}:{port}"
        client = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="id", aws_secret_access_key="secret"
        )
        client.create_bucket(Bucket=BUCKET)
        for path in _files(folder):
            client.put_object(Bucket=BUCKET, Key=str(path.relative_to(folder)), Body=path.read_bytes())
        yield url
    finally:
        server.stop()


class _WithoutLengths(BaseHTTPRequestHandler):
    """Passes on another server's answers without their lengths."""

    host, port = "", 0

    def log_message(self, *_: object) -> None:
        pass

    def pass_on(self) -> None:
        with closing(HTTPConnection(self.host, self.port)) as asked:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.request(self.command, self.path, body, dict(self.headers))
            answer = asked.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in {"content-length", "connection", "transfer-encoding"}:
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.read())


@contextmanager
def lengthless(url: str) -> Iterator[str]:
    """The address of a server that answers like the one at `url`, but without lengths."""
    at = urlsplit(url)
    calls = {f"do_{method}": _WithoutLengths.pass_on for method in ("GET", "HEAD", "PUT", "POST", "DELETE")}
    handler = type("Passing", (_WithoutLengths,), {"host": at.hostname, "port": at.port, **calls})
    with _listening(handler) as address:
        yield f"http://{address}"


@contextmanager
def gs(folder: Path) -> Iterator[str]:
    """The address of a Google Cloud Storage emulator whose bucket holds the contents of `folder`."""
    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
    server.start()
    try:
        url = f"http://127.0.0.1:{port}"
        files = GCSFileSystem(token="anon", endpoint_url=url, skip_instance_cache=True)
        for path in _files(folder):
            files.pipe_file(f"{BUCKET}/{path.relative_to(folder)}", path.read_bytes())
        yield url
    finally:
        server.stop()


def _forget(host: str, port: int) -> None:
    """Clear moto's memory, which all servers of a process share; else an earlier test's objects would remain."""
    with closing(HTTPConnection(host, port)) as asked:
        asked.request("POST", "/moto-api/reset")
        assert asked.getresponse().status == HTTPStatus.OK


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


@contextmanager
def credentials(monkeypatch: pytest.MonkeyPatch, s3_url: str) -> Iterator[None]:
    """An environment in which s3:// means the server at that address."""
    backends.backend.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
    for name, value in (("ACCESS_KEY_ID", "id"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    yield
    backends.backend.cache_clear()


def opened(scheme: str, shelf: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Source:
    """Start the scheme's server over the shelf until the stack closes; return its store, team/store, as a source."""
    backends.backend.cache_clear()
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(variable, raising=False)
    if scheme == "file":
        return Source(f"file://{shelf}/team/store")
    if scheme == "pvc":
        monkeypatch.setenv("MINT_PVC_ROOT", str(shelf))
        return Source("pvc://team/store")
    if scheme == "http":
        address, _ = stack.enter_context(serving(Files, shelf))
        return Source(f"http://{address}/team/store")
    if scheme == "hf":
        address, _ = stack.enter_context(serving(Hub, shelf))
        monkeypatch.setenv("HF_ENDPOINT", f"http://{address}")
        return Source("hf://team/store", "v1")
    if scheme in {"s3", "lengthless s3"}:
        url = stack.enter_context(s3(shelf))
        url = stack.enter_context(lengthless(url)) if scheme != "s3" else url
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        for name, value in {"ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        return Source(f"s3://{BUCKET}/team/store")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", stack.enter_context(gs(shelf)))
    return Source(f"gs://{BUCKET}/team/store")
