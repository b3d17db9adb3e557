"""The linear modules of a base that adapters may target, as loading and computing share them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Module:
    """A linear module of the base that an adapter may target. `path` is transformers' own, e.g.
    "model.layers.0.self_attn.q_proj"; its weight is [out_features, in_features].

    `experts` is 0 for a plain module, otherwise the number of linears stacked at `path`; PEFT names number 5 of
    "model.layers.0.mlp.experts.up_proj" as "model.layers.0.mlp.experts.5.up_proj". If transformers keeps the module
    as part of a larger tensor, `part_of` names that tensor, and `rows` (first, end, step) selects its outputs.
    """

    path: str
    in_features: int
    out_features: int
    experts: int = 0
    part_of: str = ""  # e.g. "model.layers.0.mlp.experts.gate_up_proj"
    rows: tuple[int, int | None, int] = (0, None, 1)

    @property
    def name(self) -> str:
        """PEFT's name of the module, with a star for an expert's number."""
        head, _, leaf = self.path.rpartition(".")
        return f"{head}.*.{leaf}" if self.experts else self.path

    @property
    def leaf(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def outputs(self) -> slice:
        """`rows` as a slice of the larger tensor's outputs."""
        return slice(*self.rows)
