"""The input of a reward."""

import msgspec


class Completion(msgspec.Struct, frozen=True):
    """One completion of one example, without its stop string and special tokens, except for markers of channels."""

    prompt: str
    text: str
    answer: str | None = None  # None: the example has none
    example: str = "{}"  # the complete example as JSON
