"""Secrets as a kubelet mounts them, and certificates that openssl makes."""

import shutil
import subprocess
from collections.abc import Mapping
from itertools import count
from pathlib import Path

_turns = count(1)


def mount(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Put the files into the folder, in place of those before, all at once: files -> ..data/ -> ..N/."""
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
    """An authority, which vouches for gateways."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder, self._name = folder, name
        folder.mkdir(exist_ok=True)
        _openssl(folder, *_FRESH, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN=mint test {name}")

    @property
    def file(self) -> Path:
        """Its own certificate."""
        return self._folder / f"{self._name}.crt"

    def certificate(self, name: str, alternative: str = "IP:127.0.0.1") -> dict[str, bytes]:
        """What cert-manager writes into a Secret: a new certificate, its key, and the authority."""
        _openssl(
            self._folder,
            *(*_FRESH, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}"),
            *("-CA", self.file.name, "-CAkey", f"{self._name}.key", "-addext", f"subjectAltName={alternative}"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
        )
        made = {"tls.crt": self._folder / f"{name}.crt", "tls.key": self._folder / f"{name}.key", "ca.crt": self.file}
        return {entry: path.read_bytes() for entry, path in made.items()}


_FRESH = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
