"""Token ids as programs have them: lists, arrays or tensors of whole numbers."""

import operator
from collections.abc import Sequence

from mint_contracts.errors import InvalidRequest


def token_ids(subject: str, name: str, given: Sequence[int]) -> list[int]:
    """Return the ids as a list. Raises InvalidRequest for anything else, such as a tokenizer's whole answer."""
    try:
        return [operator.index(token) for token in given]
    except TypeError:
        kind = type(given).__name__
        if isinstance(given, list | tuple):
            kind += f" of {type(given[0]).__name__}"
        reason = f"needs a list of token ids as {name}, not {kind}"
        raise InvalidRequest(subject, f"{reason}; a tokenizer returns them as input_ids") from None
