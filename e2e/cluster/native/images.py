"""The two images of a machine without a registry: `pause`, and a nearly empty one that uses the machine's own files.

The host image has a few links and two small files. A RuntimeClass gives its containers the machine's /usr, the
Python installation, the virtual environment and the checkout, read-only and under the same paths as outside.
"""

import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.cluster.native.config import PAUSE_IMAGE
from e2e.cluster.paths import REPOSITORY

HOST_IMAGE = "mint.dev/host:dev"
NONROOT = 65532
PASSWD = f"root:x:0:0:root:/root:/sbin/nologin\nmint:x:{NONROOT}:{NONROOT}:mint:/tmp:/sbin/nologin\n"
GROUP = f"root:x:0:\nmint:x:{NONROOT}:\n"
USR_LINKS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
ETC = (
    "ssl",
    "ca-certificates",
    "alternatives",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "mime.types",
    "services",
)
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Entry:
    """One member of an image layer: a file with `content`, a link to `link`, or a folder."""

    name: str
    mode: int = 0o755
    content: bytes | None = None
    link: str | None = None


def layer(entries: Iterable[Entry]) -> bytes:
    """Return an uncompressed tar of `entries`; the bytes are reproducible."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for entry in entries:
            member = tarfile.TarInfo(entry.name)
            member.mode = entry.mode
            if entry.link is not None:
                member.type, member.linkname = tarfile.SYMTYPE, entry.link
            elif entry.content is None:
                member.type = tarfile.DIRTYPE
            else:
                member.size = len(entry.content)
            tar.addfile(member, io.BytesIO(entry.content or b""))
    return out.getvalue()


def archive(name: str, entries: Iterable[Entry], config: dict[str, object]) -> bytes:
    """Return a docker archive (docker save's format) of an image with one layer; `config` says how to run it."""
    body = layer(entries)
    digest = hashlib.sha256(body).hexdigest()
    machine = os.uname().machine
    image = {
        "architecture": ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    return layer(
        [
            Entry("config.json", 0o644, json.dumps(image).encode()),
            Entry("layer.tar", 0o644, body),
            Entry("manifest.json", 0o644, json.dumps(manifest).encode()),
        ]
    )


def pause_archive(binary: Path) -> bytes:
    """Return the pause image: one static program."""
    entries = [Entry("pause", 0o755, binary.read_bytes())]
    return archive(PAUSE_IMAGE, entries, {"Entrypoint": ["/pause"], "User": f"{NONROOT}:{NONROOT}"})


def host_archive(prefix: Path = Path(sys.prefix)) -> bytes:
    """Return the host image, with the programs of the virtual environment at `prefix` first on its PATH."""
    links = [Entry(path[1:], link=os.readlink(path)) for path in USR_LINKS if os.path.islink(path)]
    etc = [Entry("etc"), Entry("etc/passwd", 0o644, PASSWD.encode()), Entry("etc/group", 0o644, GROUP.encode())]
    env = [
        f"PATH={prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/tmp",
        "LANG=C.UTF-8",
        "PYTHONDONTWRITEBYTECODE=1",
        "PYTHONUNBUFFERED=1",
    ]
    entries = [*links, *etc, Entry("tmp", 0o1777)]
    return archive(HOST_IMAGE, entries, {"Env": env, "User": f"{NONROOT}:{NONROOT}"})


def host_paths(prefix: Path = Path(sys.prefix), base: Path = Path(sys.base_prefix)) -> list[Path]:
    """Return the machine's paths that host containers mount: outermost folders only, in path order."""
    system = [Path("/usr"), *(Path(path) for path in USR_LINKS if Path(path).is_dir() and not os.path.islink(path))]
    etc = [Path("/etc", name) for name in ETC if Path("/etc", name).exists()]
    own = [REPOSITORY, prefix, base, prefix.resolve(), base.resolve()]
    chosen: list[Path] = []
    for path in sorted({*system, *etc, *own}):
        if not any(path.is_relative_to(other) for other in chosen):
            chosen.append(path)
    return chosen


def host_spec(default: dict[str, Any], paths: Iterable[Path]) -> str:
    """Return the OCI runtime spec of host containers: containerd's `default` plus read-only bind mounts of `paths`.

    The default's file limit of 1,024 is dropped: containers inherit containerd's limit.
    """
    options = ["rbind", "ro", "nosuid", "rprivate"]
    binds = [{"destination": str(path), "type": "bind", "source": str(path), "options": options} for path in paths]
    process = {key: value for key, value in default["process"].items() if key != "rlimits"}
    return json.dumps({**default, "process": process, "mounts": [*default["mounts"], *binds]}) + "\n"
