"""The layouts that PEFT's files may have for an adapter on routed experts, and what each takes in a slot."""

import msgspec

from mint_gateway.planning.shape import BaseShape, Targets

# Families whose network modules' names PEFT converts to stacked parameters (utils/transformers_weight_conversion.py):
# gate and up then become one with twice the rank and one A, and networks without routed experts are not adapted.
CONVERTED = frozenset(
    {
        *("qwen3_moe", "deepseek_v3", "kimi_k2", "deepseek_v32", "glm_moe_dsa", "glm4_moe", "glm4_moe_lite"),
        *("ernie4_5_moe", "dots1", "hunyuan_v1_moe"),
    }
)


class Layout(msgspec.Struct, frozen=True):
    """One layout, with the PEFT 0.21 configuration that gives it."""

    peft_config: str
    max_rank: int  # the maxRank that a BaseModel needs for it
    elements: int  # of the packed adapter
    tensors: int  # in PEFT's files


def layouts(shape: BaseShape, rank: int) -> tuple[Layout, ...]:
    """Return the layouts of an adapter of that rank on every linear; none for a base without routed experts."""
    if not shape.experts:
        return ()
    experts = [each for each in shape.linears if each.kind == "expert"]
    gates = rank * sum(each.count * (each.inputs + each.outputs) for each in experts if each.name != "down_proj")
    whole, tensors = shape.adapter_elements(rank, "all"), shape.adapter_tensors("all")
    beside: Targets = "attention" if shape.model_type in CONVERTED else "dense"
    stacked = whole - shape.adapter_elements(rank, "dense") + shape.adapter_elements(rank, beside)
    # An A and a B for each of a layer's two stacked parameters.
    few = shape.adapter_tensors(beside) + 2 * 2 * experts[0].count // shape.experts
    ways = [
        Layout("each expert's linears", rank, whole, tensors),
        Layout("target_parameters: gate_up_proj, down_proj", rank, stacked, few),
    ]
    if shape.model_type in CONVERTED:
        ways.append(Layout("target_modules: gate_proj, up_proj, down_proj", 2 * rank, stacked + gates, few))
    return tuple(ways)
