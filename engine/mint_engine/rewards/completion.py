"""What a reward is given."""

import msgspec


class Completion(msgspec.Struct, frozen=True):
    """One completion of one example. Texts are as a user would read them: no special tokens, no stop string."""

    prompt: str
    text: str
    answer: str | None = None  # None: the example has none
    example: str = "{}"  # the whole example, as JSON
