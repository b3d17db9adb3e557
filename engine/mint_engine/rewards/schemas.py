"""Users' JSON schemas, checked in a separate process (see `Checker`)."""

import json

from mint_contracts.errors import InvalidRequest
from mint_engine.rewards.checker import Checker

MAX_SCHEMA = 64 << 10  # characters

_SUBJECT = "reward.jsonSchema"


class Schema:
    """One schema. References outside of it are never fetched."""

    def __init__(self, text: str) -> None:
        """Raises InvalidRequest for invalid JSON. Whether it is a valid schema is only known at the first check."""
        if len(text) > MAX_SCHEMA:
            raise InvalidRequest(_SUBJECT, f"has more than {MAX_SCHEMA} characters")
        try:
            json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(_SUBJECT, f"is not valid JSON: {error}") from None
        self._text = text

    def accepts(self, text: str) -> bool:
        """Whether a text is one JSON value that the schema accepts. NaN and infinity are not JSON. Blocks its thread.

        Raises InvalidRequest if the schema is invalid, refers outside of itself or takes too long; RewardUnavailable.
        """
        return _checker.check(_SUBJECT, "schema", self._text, text)


_checker = Checker("write it with fewer references and repeats")
