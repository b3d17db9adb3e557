"""What an engine's image installs is sufficient; a development machine has more installed."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from transformers import Qwen2Config

from tests.engine.families import SIZES, make_model
from tests.engine.ggufs import save
from tests.engine.running import save_base
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]
LOAD = """
import sys, torch
from pathlib import Path
import mint_engine.process
from mint_engine.model.base import load_base

for path in sys.argv[1:]:
    print(load_base(Path(path), torch.float32, torch.device("cpu")).architecture)
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with exactly the image's packages."""
    folder = tmp_path / "installed"
    folder.mkdir()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name in needed([*project["dependencies"], *project["optional-dependencies"]["engine"]]):
        here = distribution(name)
        for first in {each.parts[0] for each in here.files or ()} - {"..", "__pycache__"}:
            if not (folder / first).exists():
                (folder / first).symlink_to(Path(str(here.locate_file(first))))
    for package in (ROOT / "engine" / "mint_engine", ROOT / "protos" / "mint_contracts"):
        (folder / package.name).symlink_to(package)
    return folder


def needed(requirements: Iterable[str]) -> set[str]:
    """The named distributions and, recursively, those they require."""
    due, seen, found = [(each, "") for each in requirements], set[tuple[str, str]](), set[str]()
    while due:
        line, extra = due.pop()
        requirement = Requirement(line)
        if (line, extra) in seen or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        seen.add((line, extra))
        try:
            requires = distribution(requirement.name).requires or []
        except PackageNotFoundError:  # optional for those that use it
            continue
        found.add(requirement.name)
        due += [(each, wanted) for each in requires for wanted in ("", *requirement.extras)]
    return found


def test_bases_load(installed: Path, tmp_path: Path) -> None:
    base, file = tmp_path / "base", tmp_path / "tiny.gguf"
    save_base(base)
    save(file, make_model(Qwen2Config(**SIZES | {"hidden_size": 64})), "qwen2")
    done = subprocess.run(
        [sys.executable, "-S", "-c", LOAD, str(base), str(file)],
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True, text=True, cwd=tmp_path, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.stdout.split() == ["LlamaForCausalLM", "Qwen2ForCausalLM"], done.stderr
