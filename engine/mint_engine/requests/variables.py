"""A chat template's own variables, which a client may set, for example Qwen3's `enable_thinking`.

See https://huggingface.co/docs/transformers/chat_templating_writing. Values are data: control tokens in them stay
text, as in messages.
"""

import inspect
import re
from collections.abc import Collection
from typing import Any

from transformers import PreTrainedTokenizerBase

from mint_contracts.errors import InvalidRequest
from mint_engine.requests.tools import read_json

MOST_CHARACTERS = 4096  # of all variables together
PLACE = "prompt.chat.template_variables"
# Names that transformers passes to templates itself, or takes as its own parameters.
_TAKEN = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) | {
    *("conversations", "messages", "raise_exception", "strftime_now"),
}


def read_variables(text: str, template: str, special: Collection[str]) -> dict[str, Any]:
    """Return the variables by name, none for an empty text. `special` are the names of the tokenizer's own tokens.

    Raises InvalidRequest, also for variables that the template does not use: they would have no effect.
    """
    if not text:
        return {}
    if len(text) > MOST_CHARACTERS:
        raise InvalidRequest(PLACE, f"have {len(text)} characters; at most {MOST_CHARACTERS} are allowed")
    variables = read_json(text, PLACE)
    if not isinstance(variables, dict):
        raise InvalidRequest(PLACE, "are not a JSON object")
    for name, value in variables.items():
        if name in _TAKEN or name in special:
            raise InvalidRequest(PLACE, f"have {name!r}, which clients cannot set")
        if not name.isidentifier() or not re.search(rf"\b{name}\b", template):
            raise InvalidRequest(
                PLACE, f"have {name[:100]!r}, which this base's chat template does not use; leave it out"
            )
        if not isinstance(value, bool | int | float | str):
            raise InvalidRequest(
                PLACE, f"have {name!r}, which is not a boolean, a number or a string; give it as one of these"
            )
    return variables
