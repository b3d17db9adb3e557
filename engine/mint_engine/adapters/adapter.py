"""What loading and computing share: the linear modules of a base that adapters may target."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Module:
    """A linear module of the base that an adapter may target. `path` is transformers' own, e.g.
    "model.layers.0.self_attn.q_proj"; its weight is [out_features, in_features].

    `experts` is 0 for a plain module; else so many linears are stacked at `path`, and PEFT names the fifth of
    "model.layers.0.mlp.experts.up_proj" as "model.layers.0.mlp.experts.5.up_proj". Where transformers keeps it as a
    part of a larger tensor, `part_of` is its name, and `rows` (first, end, step) which of its outputs are meant.
    """

    path: str
    in_features: int
    out_features: int
    experts: int = 0
    part_of: str = ""  # e.g. "model.layers.0.mlp.experts.gate_up_proj"
    rows: tuple[int, int | None, int] = (0, None, 1)

    @property
    def name(self) -> str:
        """What PEFT calls it, with a star for the number of any expert."""
        head, _, leaf = self.path.rpartition(".")
        return f"{head}.*.{leaf}" if self.experts else self.path

    @property
    def leaf(self) -> str:
        """The last part of its path."""
        return self.path.rpartition(".")[2]

    @property
    def outputs(self) -> slice:
        """`rows` as a slice of the larger tensor's outputs."""
        return slice(*self.rows)
