"""Compiles the kernels: `python compile.py` makes one library per instruction set, beside this file.

Only the standard library is used, so that the package's build can run it before anything is installed.
"""

import hashlib
import platform
import re
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
CODE = HERE / "cpp"
SOURCES, HEADERS = (sorted(path.name for path in CODE.glob(kind)) for kind in ("*.cpp", "*.h"))
# No fused multiply-add unless the source asks for one: results must not depend on how a loop was vectorised.
# GCC 12 wrongly reports its own intrinsics as uninitialised (bug 105593).
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

# For each machine: instruction sets from the best to the most common one, and the compiler's flags for each.
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "amx_bf16": ("-march=x86-64-v4", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
        "avx512_bf16": ("-march=x86-64-v4", "-mavx512bf16"),
        "avx2": ("-march=x86-64-v3",),
    },
    "aarch64": {"asimd": ("-march=armv8-a",)},
}

_COMMENT_OR_STRING = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)


def library_path(variant: str) -> Path:
    """Return the path of the library for an instruction set."""
    return HERE / f"kernels-{variant}.so"


def digest() -> str:
    """Return a digest of the code of sources and headers, and of the flags; each library embeds that of its build."""
    digest = hashlib.sha256(repr((FLAGS, VARIANTS)).encode())
    for name in (*SOURCES, *HEADERS):
        digest.update(f"\0{name}\0{code_of((CODE / name).read_text())}".encode())
    return digest.hexdigest()


def code_of(source: str) -> str:
    """Return C++ source without comments, indentation and empty lines: edits of these need no new library."""
    code = _COMMENT_OR_STRING.sub(lambda found: " " if found[0].startswith("/") else found[0], source)
    lines = (re.sub(r"\s*\\$", r"\\", line).strip() for line in code.splitlines())
    return "\n".join(line for line in lines if line not in ("", "\\"))


def is_current(library: Path) -> bool:
    """Whether a library was built from these sources; others may expect other arguments and crash the process."""
    return library.exists() and digest().encode() in library.read_bytes()


def knows(compiler: str, flags: tuple[str, ...]) -> bool:
    """Whether the compiler supports an instruction set."""
    command = [compiler, *flags, "-E", "-x", "c++", "/dev/null"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0  # noqa: S603 - a fixed command


def compile_all() -> list[Path]:
    """Compile the libraries that are missing or out of date; return all that this machine's compiler can make."""
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
            command = [compiler, *FLAGS, *flags, sources, *(str(CODE / name) for name in SOURCES), "-o", str(partial)]
            subprocess.run(command, check=True)  # noqa: S603 - a fixed command over our own sources
            partial.replace(path)
        libraries.append(path)
    return libraries


if __name__ == "__main__":
    made = compile_all()
    print(
        "kernels:", ", ".join(path.name for path in made) or "no C++ compiler here; the engine will use plain torch"
    )
