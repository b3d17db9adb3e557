"""Limits and structs that the kernels' C++ and Python code share, and which edits of sources need new libraries."""

import ctypes

import pytest

from mint_contracts.errors import Internal
from mint_engine.kernels.compile import code_of
from mint_engine.kernels.layout import CONSTANTS, check_layout, constant
from mint_engine.kernels.library import load_library
from mint_engine.training.kernels import ADAPTER_RUN


def library() -> ctypes.CDLL:
    found = load_library()
    assert found is not None, "the kernels are not compiled; run make kernels"
    return found[0]


def test_both_sides_have_the_same_limits_kinds_and_structs() -> None:
    check_layout(library())
    assert constant(library(), "sizeof_AdapterRun") == ADAPTER_RUN.itemsize


@pytest.mark.parametrize(
    "name", ["max_rank", "e2m1", "scale_power", "zero_codes", "activation_clamped", "sizeof_Step", "lost"]
)
def test_a_library_that_disagrees_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels would read other memory than they are given."""
    monkeypatch.setitem(CONSTANTS, name, CONSTANTS[name] + 8)
    with pytest.raises(
        Internal, match=f"have {name} = {CONSTANTS[name] - 8} in C\\+\\+ and {CONSTANTS[name]} in Python"
    ):
        check_layout(library())


def test_comments_and_layout_do_not_make_a_library_outdated() -> None:
    plain = 'int x;\n#define F(a) \\\n  g(a); \\\n  h("// no comment", a)\n'
    commented = (
        "// Why.\nint x;  // of what\n\n#define F(a)      \\\n  /* more\n     words */     \\\n  g(a);           \\\n"
    )
    assert code_of(commented + '  h("// no comment", a)') == code_of(plain)
    assert code_of(plain.replace("no comment", "none")) != code_of(plain)
    assert code_of(plain.replace("g(a)", "g(b)")) != code_of(plain)
