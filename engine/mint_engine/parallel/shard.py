"""Leaves of a base, as transformers has it, what one rank holds."""

from torch import nn

from mint_engine.model.base import Base
from mint_engine.model.modules import layers_prefix
from mint_engine.parallel.shares import Dimensions, ModuleCut, Share, not_shared, share_out


def share_of(base: Base, rank: int, count: int) -> Share:
    """A rank's share by the base's configuration. Raises UnsupportedBase."""
    config = base.config
    heads = int(config.num_attention_heads)
    dimensions = Dimensions(
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        inner=int(config.intermediate_size),
        vocabulary=int(config.vocab_size),
    )
    return share_out(dimensions, count)[rank]


def shard(base: Base, share: Share) -> None:
    """Cut every linear of the decoder layers, in place. Raises UnsupportedBase for a layer that is not shared out."""
    prefix = layers_prefix(base.model)
    for path, module in base.model.named_modules():
        if not path.startswith(prefix) or not isinstance(module, nn.Linear):
            continue
        cut = share.of_linear(path.rpartition(".")[2])
        if cut is None:
            raise not_shared(path)
        own = cut_linear(module, cut, whole_bias=share.rank == 0)
        module.weight, module.bias = own.weight, own.bias
        module.in_features, module.out_features = own.in_features, own.out_features


def cut_linear(linear: nn.Linear, cut: ModuleCut, *, whole_bias: bool) -> nn.Linear:
    """A copy of a share of a linear; of one cut by inputs the bias goes with one rank's share alone."""
    rows, columns = slice(*cut.outputs or (None,)), slice(*cut.inputs or (None,))
    weight = linear.weight[rows, columns].clone()
    own = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    own.weight = nn.Parameter(weight, requires_grad=False)
    if linear.bias is not None and (cut.inputs is None or whole_bias):
        own.bias = nn.Parameter(linear.bias[rows].clone(), requires_grad=False)
    return own
