"""The input of a reward."""

import msgspec


class Completion(msgspec.Struct, frozen=True):
    """One completion of one example. Texts are as users see them: without special tokens and stop string."""

    prompt: str
    text: str
    answer: str | None = None  # None: the example has none
    example: str = "{}"  # the complete example as JSON
