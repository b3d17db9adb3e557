"""When binaries are rebuilt, and when they are reused."""

from pathlib import Path

import pytest

from e2e.cluster.errors import ClusterError
from e2e.cluster.native import binaries
from e2e.cluster.native.binaries import ALL, TARGETS, Target, ensure, folder, inputs_hash
from e2e.cluster.progress import Steps


def sources(root: Path) -> Path:
    for module in ("go", "helm"):
        (root / module).mkdir(parents=True)
        (root / module / "go.mod").write_text(f"module {module}\n")
    return root


def test_the_hash_follows_content_and_names_of_the_sources_and_nothing_else(tmp_path: Path) -> None:
    one, two = sources(tmp_path / "one"), sources(tmp_path / "two")
    assert inputs_hash(one) == inputs_hash(two)
    (two / "go" / "go.mod").write_text("module go // changed\n")
    changed = inputs_hash(two)
    (two / "go" / "go.mod").rename(two / "go" / "other.mod")
    assert len({inputs_hash(one), changed, inputs_hash(two)}) == 3


def test_every_program_of_the_cluster_is_built() -> None:
    kubernetes = {"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"}
    assert set(ALL) == kubernetes | {"etcd", "coredns", "pause", "local-path-provisioner", "helm"}


def test_a_target_can_be_narrowed_to_what_is_missing() -> None:
    target = Target("go", ("./a", "example.org/b"))
    assert target.outputs == ("a", "b")
    assert target.only(["b"]).packages == ("example.org/b",)
    etcd = next(target for target in TARGETS if target.name == "etcd")
    assert etcd.only(["etcd"]) == etcd


def test_cached_binaries_are_reused_without_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ClusterError, match="Go"):
        ensure(Steps(), ["helm"])
    folder().mkdir(parents=True)
    (folder() / "helm").touch()
    assert ensure(Steps(), ["helm"]) == folder()


def test_a_binary_is_built_and_its_build_files_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = sources(tmp_path / "native")
    command = root / "go" / "hello"
    command.mkdir()
    (root / "go" / "go.mod").write_text("module example.org/hello\n\ngo 1.21\n")
    (command / "main.go").write_text("package main\n\nfunc main() {}\n")
    monkeypatch.setenv("MINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(binaries, "HERE", root)
    monkeypatch.setattr(binaries, "TARGETS", (Target("go", ("./hello",)),))
    built = ensure(Steps(), ["hello"])
    assert [path.name for path in built.iterdir()] == ["hello"]
    assert sorted(path.name for path in built.parent.iterdir()) == ["bin", "lock"]
