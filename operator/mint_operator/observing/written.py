"""How objects look since the operator last wrote them, by which changes that others make are recognized.

Neither the digest in an object's annotation nor its generation shows these: the one is not recomputed, and not every
kind has the other.
"""

from mint_operator.observing import decode

Key = tuple[str, str, str]  # kind, namespace, name


class Written:
    """Fingerprints of the objects as they should be. One first seen, as after a start, counts as right.

    Such objects are applied again within some minutes anyway (see planning.repair).
    """

    def __init__(self) -> None:
        self._right: dict[Key, int] = {}

    def wrote(self, key: Key, answer: bytes) -> None:
        """Note how the API server has stored an object just written."""
        self._right[key] = decode.fingerprint(answer)

    def edited(self, key: Key, fingerprint: int) -> bool:
        """Whether somebody else has changed an object since."""
        return self._right.setdefault(key, fingerprint) != fingerprint

    def keep(self, keys: set[Key]) -> None:
        """Forget all other objects."""
        self._right = {key: each for key, each in self._right.items() if key in keys}
