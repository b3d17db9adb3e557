"""A policy's mean rewards, step by step, as they are told in parts to those who follow them. Pure."""

import msgspec


class Rewards(msgspec.Struct, frozen=True):
    """Those of some steps one after another."""

    first: int = 0  # the index of the first of them among all of the policy's
    values: tuple[float, ...] = ()

    @property
    def end(self) -> int:
        """The index of the one that comes next."""
        return self.first + len(self.values)

    def followed_by(self, part: "Rewards") -> "Rewards":
        """These up to where `part` begins, then that; it alone where it begins before these, or beyond their end."""
        if not self.first <= part.first <= self.end:
            return part
        return Rewards(self.first, self.values[: part.first - self.first] + part.values)
