"""Token ids as programs have them: lists, arrays or tensors of whole numbers."""

import operator
from collections.abc import Sequence

from mint_contracts.errors import InvalidRequest

MOST = 2**31 - 1  # messages have int32


def token_ids(subject: str, name: str, given: Sequence[int]) -> list[int]:
    """Return the ids as a list. Raises InvalidRequest for anything else, such as a tokenizer's whole answer."""
    found: list[int] = []
    try:
        found.extend(map(operator.index, given))
    except TypeError:  # after those before it were taken
        kind = type(given).__name__
        if isinstance(given, list | tuple):
            kind += f" of {type(given[len(found)]).__name__}"
        reason = f"needs a list of token ids as {name}, not {kind}"
        raise InvalidRequest(subject, f"{reason}; a tokenizer returns them as input_ids") from None
    for at, token in enumerate(found):
        if not 0 <= token <= MOST:
            raise InvalidRequest(
                subject, f"has {token} in {name}[{at}], which is no token id; give tokens of the base"
            )
    return found
