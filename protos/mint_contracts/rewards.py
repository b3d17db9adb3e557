"""A policy's mean reward of each step, as followers receive it in parts. Pure."""

import msgspec


class Rewards(msgspec.Struct, frozen=True):
    """The rewards of consecutive steps."""

    first: int = 0  # the index of the first of them among all of the policy's rewards
    values: tuple[float, ...] = ()

    @property
    def end(self) -> int:
        """The index of the next reward."""
        return self.first + len(self.values)

    def followed_by(self, part: "Rewards") -> "Rewards":
        """Return these rewards up to where `part` begins, then `part`; only `part` if it begins outside of these."""
        if not self.first <= part.first <= self.end:
            return part
        return Rewards(self.first, self.values[: part.first - self.first] + part.values)
