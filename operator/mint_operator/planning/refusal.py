"""Why a wave is not admitted, and whom that names."""

import msgspec

from mint_contracts.errors import MintError
from mint_contracts.records import Failure, Mentions

NO_NAMES = Mentions()
ANY_ADAPTERS = Mentions(others=True)  # of what is said of a wave's own spec, and of what that names


def together(*mentions: Mentions | None) -> Mentions | None:
    """Whom messages mention that are joined to one; None where that is not known of one of them."""
    known = [each for each in mentions if each is not None]
    if len(known) < len(mentions):
        return None
    return Mentions(
        adapters=tuple(sorted({name for each in known for name in each.adapters})),
        waves=tuple(sorted({name for each in known for name in each.waves})),
        others=any(each.others for each in known),
    )


class Refusal(msgspec.Struct, frozen=True):
    """Why a wave is not admitted. A terminal one needs a person; any other has a position in the queue, from 1.

    Who makes one says whom its message `mentions`; None: nobody has, so that only who may learn of all reads it.
    """

    reason: str
    message: str
    terminal: bool = True
    position: int = 0
    mentions: Mentions | None = None

    @classmethod
    def of(cls, error: MintError | Failure, mentions: Mentions = ANY_ADAPTERS) -> "Refusal":
        """What keeps a wave from being looked up, served or trained as it is written."""
        if isinstance(error, MintError):
            return cls(error.reason, str(error), error.terminal, mentions=mentions)
        return cls(error.reason, error.message, error.terminal, mentions=mentions)

    def at(self, position: int, length: int) -> "Refusal":
        """The same, at its place in a queue of that length."""
        message = f"{self.message}; position {position} of {length} in the queue"
        return msgspec.structs.replace(self, message=message, position=position)
