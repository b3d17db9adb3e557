"""Secrets mounted as by a kubelet, and certificates made by openssl."""

import shutil
import subprocess
from collections.abc import Mapping
from itertools import count
from pathlib import Path

_turns = count(1)


def mount(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Replace the folder's files atomically, as a kubelet does: files -> ..data/ -> ..N/. Return the folder."""
    folder.mkdir(exist_ok=True)
    own = folder / f"..{next(_turns)}"
    own.mkdir()
    for name, content in files.items():
        (own / name).write_bytes(content)
    data, fresh = folder / "..data", folder / "..data_tmp"
    before = data.resolve() if data.exists() else None
    fresh.symlink_to(own.name)
    fresh.rename(data)
    for name in files:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    for path in folder.iterdir():
        if path.name not in files and not path.name.startswith(".."):
            path.unlink()
    if before:
        shutil.rmtree(before)
    return folder


class Authority:
    """A certificate authority that signs gateways' certificates."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder, self._name = folder, name
        folder.mkdir(exist_ok=True)
        _openssl(folder, *_FRESH, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN=mint test {name}")

    @property
    def file(self) -> Path:
        """The file of its own certificate."""
        return self._folder / f"{self._name}.crt"

    def certificate(self, name: str, alternative: str = "IP:127.0.0.1") -> dict[str, bytes]:
        """Return what cert-manager writes into a Secret: a new certificate, its key, and the authority's."""
        _openssl(
            self._folder,
            *(*_FRESH, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}"),
            *("-CA", self.file.name, "-CAkey", f"{self._name}.key", "-addext", f"subjectAltName={alternative}"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
        )
        made = {"tls.crt": self._folder / f"{name}.crt", "tls.key": self._folder / f"{name}.key", "ca.crt": self.file}
        return {entry: path.read_bytes() for entry, path in made.items()}

    def expired(self, alternative: str = "IP:127.0.0.1") -> dict[str, bytes]:
        """Return a certificate that expired yesterday, and its key."""
        key, asked, made = (self._folder / f"expired.{each}" for each in ("key", "csr", "crt"))
        _openssl(
            self._folder,
            *("req", *_KEY, "-keyout", key.name, "-out", asked.name, "-subj", "/CN=expired"),
            *("-addext", f"subjectAltName={alternative}"),
        )
        _openssl(
            self._folder,
            *("x509", "-req", "-in", asked.name, "-out", made.name, "-days", "-1", "-copy_extensions", "copy"),
            *("-CA", self.file.name, "-CAkey", f"{self._name}.key"),
        )
        return {"tls.crt": made.read_bytes(), "tls.key": key.read_bytes()}


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_FRESH = ("req", "-x509", *_KEY, "-days", "2")


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
