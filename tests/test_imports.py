"""Helpers that tests share are in modules of their own, so that each test module can be read and run by itself."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent


def imported(path: Path) -> set[str]:
    """Return the names of the modules, and of the names in them, that a module imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return {f"{node.module}.{alias.name}" for node in froms for alias in node.names}


def test_no_module_imports_from_a_test_module() -> None:
    tests = [".".join(path.relative_to(TESTS.parent).with_suffix("").parts) for path in TESTS.rglob("test_*.py")]
    found = {
        f"{path.relative_to(TESTS)}: {name}"
        for path in TESTS.rglob("*.py")
        for name in imported(path)
        if any(f"{name}.".startswith(f"{module}.") for module in tests)
    }
    assert found == set()
