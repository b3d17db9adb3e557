"""Compiles the engine's kernels when the package is built or installed; where no compiler is, goes on without."""

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_COMPILE = Path(__file__).parent / "engine" / "mint_engine" / "kernels" / "compile.py"


class CompileKernels(BuildHookInterface):  # type: ignore[misc]
    """Adds the libraries to the wheel, which then is of this machine's kind."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before a build."""
        if not _COMPILE.exists():  # only the dependencies are being installed
            return
        libraries = runpy.run_path(str(_COMPILE))["compile_all"]()
        if libraries:
            build_data["artifacts"] += [path.relative_to(self.root).as_posix() for path in libraries]
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
