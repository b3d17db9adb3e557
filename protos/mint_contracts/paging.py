"""How many a page of a list may have (AIP-158): one rule for all lists."""

from mint_contracts.errors import InvalidRequest


def page_size(asked: int, default: int, most: int) -> int:
    """How many to give where a request's `page_size` is `asked`: 0 is `default`, more than `most` count as `most`.

    Raises InvalidRequest for less than 0.
    """
    if asked < 0:
        raise InvalidRequest("page_size", f"is {asked}; give 1 to {most}, or 0 for {default}")
    return min(asked or default, most)
