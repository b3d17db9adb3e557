"""What a schema permits, by the grammar that is made of it."""

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from mint_engine.requests.grammar import Grammars, Shape


def may_come(tokenizer: PreTrainedTokenizerBase, schema: dict[str, Any], value: Any) -> bool:
    """Whether the value may be the complete answer under the schema."""
    grammar = Grammars(tokenizer, {0}).compile(Shape("json_schema", json.dumps(schema)))
    tokens = tokenizer.encode(json.dumps(value))
    return grammar.matcher.validate_tokens(tokens) == len(tokens)
