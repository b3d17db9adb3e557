"""Compiles the kernels: `python compile.py` makes one library per instruction set, beside the sources.

Only the standard library is used, so that the package's build can run it before anything is installed.
"""

import platform
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = (
    "adapt.cpp",
    "attend.cpp",
    "backward.cpp",
    "draw.cpp",
    "logits.cpp",
    "lora.cpp",
    "pass.cpp",
    "rows.cpp",
    "trees.cpp",
)
HEADERS = tuple(sorted(path.name for path in HERE.glob("*.h")))
# No fused multiply-add where the source does not say so: results must not depend on how a loop was vectorised.
# GCC 12 takes its own intrinsics for uninitialised (bug 105593).
FLAGS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-fopenmp",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall",
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
)

# By machine: instruction sets from the best to the most common one, and the compiler's flags for each.
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "avx512_bf16": ("-march=x86-64-v4", "-mavx512bf16"),
        "avx2": ("-march=x86-64-v3",),
    },
    "aarch64": {"asimd": ("-march=armv8-a",)},
}


def library_path(variant: str) -> Path:
    """Where the library for an instruction set lies."""
    return HERE / f"kernels-{variant}.so"


def compile_all() -> list[Path]:
    """Compile what is older than its sources; returns this machine's libraries, none where it has no compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return []
    newest = max((HERE / name).stat().st_mtime for name in (*SOURCES, *HEADERS, Path(__file__).name))
    libraries = []
    for variant, flags in VARIANTS.get(platform.machine(), {}).items():
        path = library_path(variant)
        if not path.exists() or path.stat().st_mtime < newest:
            partial = path.with_suffix(".partial")
            command = [compiler, *FLAGS, *flags, *(str(HERE / name) for name in SOURCES), "-o", str(partial)]
            subprocess.run(command, check=True)  # noqa: S603 - a fixed command over our own sources
            partial.replace(path)
        libraries.append(path)
    return libraries


if __name__ == "__main__":
    made = compile_all()
    print(
        "kernels:", ", ".join(path.name for path in made) or "no C++ compiler here; the engine will use plain torch"
    )
