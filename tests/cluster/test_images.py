"""Images without a registry."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from e2e.cluster.native.images import HOST_IMAGE, host_archive, host_paths, host_spec, pause_archive
from e2e.cluster.paths import REPOSITORY


def read(archive: bytes) -> tuple[dict[str, Any], dict[str, Any], tarfile.TarFile]:
    """Return the manifest entry, the image configuration and the one layer of a docker archive."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:

        def member(name: str) -> bytes:
            file = tar.extractfile(name)
            assert file is not None
            return file.read()

        (manifest,) = json.loads(member("manifest.json"))
        image = json.loads(member(manifest["Config"]))
        body = member(manifest["Layers"][0])
    assert image["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(body).hexdigest()}"]
    return manifest, image, tarfile.open(fileobj=io.BytesIO(body))


def test_the_pause_image_is_one_program(tmp_path: Path) -> None:
    program = tmp_path / "pause"
    program.write_bytes(b"\x7fELF")
    _, image, layer = read(pause_archive(program))
    assert layer.getnames() == ["pause"]
    assert layer.getmember("pause").mode == 0o755
    assert image["config"]["Entrypoint"] == ["/pause"]


def test_the_host_image_finds_the_environments_programs_first_and_is_not_root() -> None:
    manifest, image, layer = read(host_archive(Path("/opt/venv")))
    assert manifest["RepoTags"] == [HOST_IMAGE]
    assert image["config"]["User"] == "65532:65532"
    assert image["config"]["Env"][0].startswith("PATH=/opt/venv/bin:")
    assert layer.getmember("tmp").mode == 0o1777
    assert "etc/passwd" in layer.getnames()


def test_the_same_files_make_the_same_image() -> None:
    assert host_archive() == host_archive()


def test_the_machine_lends_outermost_folders_only() -> None:
    paths = host_paths(prefix=REPOSITORY / ".venv", base=Path("/usr/local"))
    assert Path("/usr") in paths
    assert REPOSITORY in paths
    assert REPOSITORY / ".venv" not in paths
    assert Path("/usr/local") not in paths
    assert not [path for path in paths if path in (Path("/"), Path("/root"), Path("/etc"), Path("/home"))]


def test_a_python_and_a_venv_elsewhere_are_lent_too() -> None:
    paths = host_paths(prefix=Path("/srv/venv"), base=Path("/srv/python/3.11"))
    assert {Path("/srv/venv"), Path("/srv/python/3.11")} <= set(paths)


def test_what_is_lent_is_read_only_and_under_the_same_path() -> None:
    default = {"process": {"rlimits": [{"type": "RLIMIT_NOFILE"}], "cwd": "/"}, "mounts": [{"destination": "/proc"}]}
    spec = json.loads(host_spec(default, [Path("/usr")]))
    assert spec["process"] == {"cwd": "/"}
    proc, usr = spec["mounts"]
    assert proc == {"destination": "/proc"}
    assert usr["source"] == usr["destination"] == "/usr"
    assert "ro" in usr["options"]
