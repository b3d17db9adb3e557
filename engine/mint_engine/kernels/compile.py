"""Compiles the kernels: `python compile.py` makes one library per instruction set, beside the sources.

Only the standard library is used, so that the package's build can run it before anything is installed.
"""

import hashlib
import platform
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = (
    "attend.cpp",
    "backward.cpp",
    "choice.cpp",
    "draw.cpp",
    "experts.cpp",
    "logits.cpp",
    "lora.cpp",
    "pass.cpp",
    "ready.cpp",
    "rows.cpp",
    "runs.cpp",
    "sums.cpp",
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
        "amx_bf16": ("-march=x86-64-v4", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
        "avx512_bf16": ("-march=x86-64-v4", "-mavx512bf16"),
        "avx2": ("-march=x86-64-v3",),
    },
    "aarch64": {"asimd": ("-march=armv8-a",)},
}


def library_path(variant: str) -> Path:
    """Where the library for an instruction set lies."""
    return HERE / f"kernels-{variant}.so"


def digest() -> str:
    """Of the sources, headers and flags: a library keeps the one of those that it was made from."""
    told = hashlib.sha256()
    for name in (*SOURCES, *HEADERS, Path(__file__).name):
        told.update(f"\0{name}\0".encode() + (HERE / name).read_bytes())
    return told.hexdigest()


def is_current(library: Path) -> bool:
    """Whether a library was made from these sources; others may take other arguments, and end the process."""
    return library.exists() and digest().encode() in library.read_bytes()


def knows(compiler: str, flags: tuple[str, ...]) -> bool:
    """Whether the compiler is new enough for an instruction set."""
    command = [compiler, *flags, "-E", "-x", "c++", "/dev/null"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0  # noqa: S603 - a fixed command


def compile_all() -> list[Path]:
    """Compile what other sources made; returns the libraries of this machine's kind that its compiler can make."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return []
    sources = f'-DMINT_SOURCES="{digest()}"'
    libraries = []
    for variant, flags in VARIANTS.get(platform.machine(), {}).items():
        path = library_path(variant)
        if not knows(compiler, flags):
            continue
        if not is_current(path):
            partial = path.with_suffix(".partial")
            command = [compiler, *FLAGS, *flags, sources, *(str(HERE / name) for name in SOURCES), "-o", str(partial)]
            subprocess.run(command, check=True)  # noqa: S603 - a fixed command over our own sources
            partial.replace(path)
        libraries.append(path)
    return libraries


if __name__ == "__main__":
    made = compile_all()
    print(
        "kernels:", ", ".join(path.name for path in made) or "no C++ compiler here; the engine will use plain torch"
    )
