"""Paging through the placement map, by base and then adapter: the page token says where a page ended (AIP-158).

No adapter is returned twice. One added while a client pages is missed if it sorts before the pages already returned.
"""

import base64

import msgspec

from mint_contracts import placement_pb2
from mint_contracts.errors import InvalidRequest

PAGE = 1_000  # about 250 kB
PAGE_MAX = 10_000


class End(msgspec.Struct, frozen=True, array_like=True):
    """A page's last adapter and its base, with the base that was asked for: a token is valid for that list only."""

    asked: str
    base: str
    adapter: str


NOTHING_YET = End("", "", "")


def end_of(request: placement_pb2.ListPlacementsRequest) -> End:
    """Return where the previous page ended. Raises InvalidRequest if the token is not of this list."""
    if not request.page_token:
        return NOTHING_YET
    try:
        end = msgspec.json.decode(base64.b64decode(request.page_token, b"-_", validate=True), type=End)
    except (ValueError, msgspec.MsgspecError):
        end = None
    if end is None or end.asked != request.base_model:
        raise InvalidRequest("page_token", "is not the next_page_token of this list; start again without one")
    return end


def token_after(request: placement_pb2.ListPlacementsRequest, last: placement_pb2.Explanation) -> str:
    """Return the token for the page after the one that ends with `last`."""
    end = End(request.base_model, last.base_model, last.adapter)
    return base64.urlsafe_b64encode(msgspec.json.encode(end)).decode()
