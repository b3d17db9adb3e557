"""Pages of the placement map, by base and then by adapter: where one ends is in the token of the next (AIP-158).

A name that comes while pages are asked for is in none that was given before; none is given twice.
"""

import base64

import msgspec

from mint_contracts import placement_pb2
from mint_contracts.errors import InvalidRequest

PAGE = 1_000  # about 250 kB
PAGE_MAX = 10_000


class End(msgspec.Struct, frozen=True, array_like=True):
    """The last that a page has told of, and the base that was asked for: another list has other pages."""

    asked: str
    base: str
    adapter: str


NOTHING_YET = End("", "", "")


def end_of(request: placement_pb2.ListPlacementsRequest) -> End:
    """Where the page before has ended. Raises InvalidRequest for what is no token of this list."""
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
    """What asks for the page after the one that ends so."""
    end = End(request.base_model, last.base_model, last.adapter)
    return base64.urlsafe_b64encode(msgspec.json.encode(end)).decode()
