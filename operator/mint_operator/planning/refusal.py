"""Why a wave is not admitted, and which adapters and waves that mentions."""

import msgspec

from mint_contracts.errors import MintError
from mint_contracts.records import Failure, Mentions

NO_NAMES = Mentions()
ANY_ADAPTERS = Mentions(others=True)  # for messages about a wave's own spec and anything that it names


def together(*mentions: Mentions | None) -> Mentions | None:
    """Return what joined messages mention; None if that is unknown for one of them."""
    known = [each for each in mentions if each is not None]
    if len(known) < len(mentions):
        return None
    return Mentions(
        adapters=tuple(sorted({name for each in known for name in each.adapters})),
        waves=tuple(sorted({name for each in known for name in each.waves})),
        others=any(each.others for each in known),
    )


class Refusal(msgspec.Struct, frozen=True):
    """Why a wave is not admitted. A terminal refusal needs a person; any other has a position in the queue, from 1.

    Its maker states what its message `mentions`; None: unknown, so only those who may see everything may read it.
    """

    reason: str
    message: str
    terminal: bool = True
    position: int = 0
    mentions: Mentions | None = None

    @classmethod
    def of(cls, error: MintError | Failure, mentions: Mentions = ANY_ADAPTERS) -> "Refusal":
        """Return the refusal for an error that prevents a wave from being looked up, served or trained as written."""
        if isinstance(error, MintError):
            return cls(error.reason, str(error), error.terminal, mentions=mentions)
        return cls(error.reason, error.message, error.terminal, mentions=mentions)

    def at(self, position: int, length: int) -> "Refusal":
        """Return this refusal with its position in a queue of this length."""
        message = f"{self.message}; position {position} of {length} in the queue"
        return msgspec.structs.replace(self, message=message, position=position)
