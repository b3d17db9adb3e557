"""How many items a page of a list may have (AIP-158): one rule for all lists."""

from mint_contracts.errors import InvalidRequest


def page_size(asked: int, default: int, most: int) -> int:
    """Return the page size for a request's `page_size`: 0 means `default`, more than `most` means `most`.

    Raises InvalidRequest if it is negative.
    """
    if asked < 0:
        raise InvalidRequest("page_size", f"is {asked}; give 1 to {most}, or 0 for {default}")
    return min(asked or default, most)
