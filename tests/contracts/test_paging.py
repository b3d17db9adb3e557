"""The number of items on a page of a list."""

import pytest

from mint_contracts.errors import InvalidRequest
from mint_contracts.paging import page_size


@pytest.mark.parametrize(("asked", "given"), [(0, 100), (1, 1), (999, 999), (1000, 1000), (1001, 1000)])
def test_a_page_has_as_many_as_requested_up_to_the_maximum(asked: int, given: int) -> None:
    assert page_size(asked, 100, 1000) == given


def test_negative_page_sizes_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="page_size: is -1; give 1 to 1000, or 0 for 100"):
        page_size(-1, 100, 1000)
