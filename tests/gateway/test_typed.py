"""Programs that use the client are type-checked against it."""

from importlib.resources import files

import pytest


@pytest.mark.parametrize("package", ["mint_gateway", "mint_contracts"])
def test_type_checkers_read_the_types_of_a_package(package: str) -> None:
    assert files(package).joinpath("py.typed").is_file()
