"""The checked-in protobuf and gRPC code equals what the .proto files generate."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "protos/mint_contracts").glob("*.proto"))


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder with the files that `make protos` would write."""
    out = tmp_path_factory.mktemp("protos")
    kinds = ("--python_out=", "--mypy_out=quiet:", "--grpc_python_out=", "--mypy_grpc_out=quiet:")
    outputs = [f"{kind}{out}" for kind in kinds]
    plugins = str(Path(sys.executable).parent)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "-I",
            "protos",
            *outputs,
            *(str(proto.relative_to(ROOT)) for proto in PROTOS),
        ],
        cwd=ROOT,
        check=True,
        env=os.environ | {"PATH": f"{plugins}:{os.environ['PATH']}"},
    )
    return out / "mint_contracts"


@pytest.mark.parametrize("proto", PROTOS, ids=lambda path: path.stem)
def test_generated_code_is_fresh(generated: Path, proto: Path) -> None:
    for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi"):
        name = proto.stem + suffix
        fresh, checked_in = (generated / name).read_text(), (proto.parent / name).read_text()
        assert fresh == checked_in, f"{name} is stale; run `make protos`"


def test_no_generated_file_has_lost_its_proto() -> None:
    stems = {path.name.split("_pb2")[0] for path in PROTOS[0].parent.glob("*_pb2*")}
    assert stems == {proto.stem for proto in PROTOS}
