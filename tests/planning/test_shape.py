"""A shape counted from config.json equals what transformers builds and the engine lays out, element by element."""

import copy
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import (
    Dots1Config,
    Ernie4_5_MoeConfig,
    Ernie4_5Config,
    Exaone4Config,
    GemmaConfig,
    Glm4MoeConfig,
    Glm4MoeLiteConfig,
    GptOssConfig,
    GraniteConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2Config,
    SeedOssConfig,
    SmolLM3Config,
)
from transformers.conversion_mapping import _MODEL_TO_CONVERSION_PATTERN

from mint_contracts.errors import UnsupportedBase
from mint_engine.adapters.check import Fit
from mint_engine.adapters.export import export
from mint_engine.adapters.packed import lay_out
from mint_engine.adapters.read import read_adapter
from mint_engine.model.experts import route_shape
from mint_engine.model.modules import find_modules
from mint_engine.model.positions import positions_of
from mint_engine.residency.slots import Slots
from mint_engine.sources.fetch import WEIGHTS
from mint_engine.sources.local import LocalFolder
from mint_gateway.planning.config import read_shape
from mint_gateway.planning.devices import DEVICES
from mint_gateway.planning.fit import Mix, Storage, make_plan
from mint_gateway.planning.layouts import CONVERTED, layouts
from mint_gateway.planning.shape import KINDS
from tests.engine.expert_adapters import BOTH, save
from tests.engine.families import CPU, FAMILIES, LATENT, SEEING, SIZES, make_forward, make_model
from tests.planning.frontier import FRONTIER, GEMMA_3_4B, KIMI_K25, ORDINARY
from tests.planning.models import built, check_cache, config_fields

# Billions, as their makers round them; without layers for predicting several tokens, which are not served.
PUBLISHED = {
    "kimi_k2": 1040,
    "deepseek_v32": 671,
    "glm_5": 744,
    "qwen3_30b_a3b": 30.5,
    "phi_3_mini": 3.8,
    "gemma_3_4b": 4.3,
    "kimi_k25": 1040,
    "qwen2_7b": 7.6,
    "gemma_7b": 8.5,
    "mixtral_8x7b": 46.7,
    "granite_8b": 8.1,
    "smollm3_3b": 3.1,
    "minimax_m2": 229,
    "glm_4_5": 355,
    "glm_4_7_flash": 30,
    "seed_oss_36b": 36,
    "ernie_45_03b": 0.36,
    "ernie_45_21b_a3b": 21.8,
    "dots_llm1": 142,
    "hunyuan_7b": 7.5,
    "hunyuan_a13b": 80,
    "granite_3b_a800m": 3.3,
    "exaone_4_32b": 32,
}
# Two layers of experts, without shared ones.
ERNIE: dict[str, Any] = {
    "num_experts": 6, "k": 2, "intermediate_size": 40, "num_shared_experts": 0, "layer_start_index": 0,
    "layer_end_index": 1,
}  # fmt: skip
# Served like llama, and not among the families of the engine's tests.
OTHERS: dict[str, PreTrainedConfig] = {
    "qwen2": Qwen2Config(**SIZES),
    "gemma": GemmaConfig(**SIZES),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
    "granite_biased": GraniteConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "ernie4_5_plain": Ernie4_5Config(**SIZES),
    "ernie4_5_moe_biased": Ernie4_5_MoeConfig(
        **SIZES,
        **{f"moe_{name}": each for name, each in ERNIE.items()},
        use_bias=True,
        tie_word_embeddings=False,
    ),
    "dots1_all_routed": Dots1Config(
        **SIZES, n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=1, moe_intermediate_size=40
    ),
    "exaone4_sees_all": Exaone4Config(**SIZES, sliding_window=None, layer_types=["full_attention"] * 3),
    "smollm3": SmolLM3Config(**SIZES),
    "kimi_seeing": SEEING["kimi_seeing"],
    "seed_oss": SeedOssConfig(**SIZES),
    "seed_oss_biased": SeedOssConfig(**SIZES, attention_bias=False, attention_out_bias=True, mlp_bias=True),
    "glm4_moe_plain": Glm4MoeConfig(**SIZES, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=40),
    "glm4_moe_lite": Glm4MoeLiteConfig(**(LATENT | {"n_group": 1})),
    "smollm3_untied": SmolLM3Config(**SIZES, tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_frontier_bases_to_the_last_byte(name: str) -> None:
    fields = (FRONTIER | ORDINARY | {"gemma_3_4b": GEMMA_3_4B, "kimi_k25": KIMI_K25})[name]
    model, shape = built(fields), read_shape(fields)
    parameters = dict(model.named_parameters())
    assert shape.parameters == sum(each.numel() for each in parameters.values())
    assert shape.resident_bytes("bfloat16") == sum(each.nbytes for each in parameters.values())
    assert sum(each.nbytes for each in model.buffers()) < 1e-3 * shape.parameters
    assert shape.parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=0.02)
    modules = find_modules(model)
    for targets in KINDS:
        named = find_modules(model, shape.target_modules(targets))
        assert shape.adapter_elements(1, targets) == lay_out(named, dict.fromkeys(named, 1)).elements
    attention = {path: 1 for path in modules if ".self_attn." in path}
    assert shape.adapter_elements(1, "attention") == lay_out(modules, attention).elements
    dense = {path: 1 for path, module in modules.items() if not module.experts}
    assert shape.adapter_elements(1, "dense") == lay_out(modules, dense).elements
    assert shape.adapter_tensors("all") == 2 * sum(max(module.experts, 1) for module in modules.values())
    check_cache(shape, model.config.get_text_config())
    routes = route_shape(model)
    assert shape.route_bytes == (routes.token_bytes if routes is not None else 0)
    assert shape.context_length == model.config.get_text_config().max_position_embeddings


def test_a_window_takes_no_more_of_a_longer_request() -> None:
    """In gpt-oss-20b every second layer sees 128 tokens: 100,000 tokens take little more than half the cache."""
    shape = read_shape(config_fields(GptOssConfig(num_hidden_layers=24)))
    places, elements = shape.cache_of(100_000, whole=True)
    assert 0.5 < places * elements / (100_000 * shape.cache_elements) < 0.502
    assert shape.cache_of(100, whole=True) == (100, shape.cache_elements)


@pytest.mark.parametrize("name", FRONTIER)
def test_rank_one_on_everything_is_less_than_a_hundredth_of_the_base(name: str) -> None:
    shape = read_shape(FRONTIER[name])
    assert shape.adapter_elements(1, "all") < shape.parameters / 100


def test_a_plan_names_what_a_base_model_is_to_offer() -> None:
    """As few names as PEFT's rules allow: none for all modules, parents' names where experts have the same ones."""
    kimi, phi = (read_shape(FRONTIER[name]) for name in ("kimi_k2", "phi_3_mini"))
    attention = ("kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_a_proj", "q_b_proj")
    networks = (f"{place}.{name}_proj" for place in ("mlp", "shared_experts") for name in ("down", "gate", "up"))
    assert kimi.target_modules("attention") == attention
    assert kimi.target_modules("dense") == tuple(sorted((*attention, *networks)))
    assert phi.target_modules("attention") == ("o_proj", "qkv_proj")
    assert kimi.target_modules("all") == phi.target_modules("dense") == ()


def test_the_tensors_of_a_30b_adapter() -> None:
    """The paper's layout has 37,248 tensors (arXiv 2605.13779)."""
    assert read_shape(FRONTIER["qwen3_30b_a3b"]).adapter_tensors("all") == 37248


@pytest.mark.parametrize("name", sorted(FAMILIES | OTHERS))
def test_small_bases_as_the_engine_holds_them(name: str) -> None:
    """Compares weights, slots and cache with a real engine's, in bytes of float32."""
    config = (FAMILIES | OTHERS)[name]
    forward = make_forward(config, pages=19)
    shape = read_shape(config_fields(forward.base.model.config))
    assert 4 * shape.parameters == sum(each.nbytes for each in forward.base.model.parameters())
    for targets in KINDS:
        named = find_modules(make_model(config), shape.target_modules(targets))
        assert 4 * 2 * shape.adapter_elements(8, targets) == Slots(named, 2, 8, torch.float32, CPU).bytes
    check_cache(shape, forward.base.config)
    long = 10**6
    assert 4 * 16 * 20 * shape.cache_of(long, whole=False)[1] == forward.cache.bytes
    trained = make_forward(config, pages=19, routes=True)
    assert 16 * 20 * (4 * shape.cache_of(long, whole=True)[1] + shape.route_bytes) == trained.cache.bytes


@pytest.mark.parametrize("family", sorted(CONVERTED | {each.model_type for each in FAMILIES.values()}))
def test_the_converted_families_are_those_of_peft(family: str) -> None:
    known = "deepseek_v3" if family == "kimi_k2" else family
    assert (_MODEL_TO_CONVERSION_PATTERN.get(known) == "qwen2_moe") is (family in CONVERTED)


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_layouts_of_experts_as_peft_writes_them(name: str, tmp_path: Path) -> None:
    """Reads PEFT's own files: experts as parameters, as one name for all linears, and as each expert's linears."""
    shape, modules = read_shape(config_fields(FAMILIES[name])), find_modules(make_model(FAMILIES[name]))
    found = {each.peft_config.partition(":")[0]: each for each in layouts(shape, 3)}
    stacked = {module.leaf for module in modules.values() if module.experts}
    linears = sorted({module.leaf for module in modules.values()} - stacked)
    ways: dict[str, dict[str, Any]] = {
        "target_parameters": {"target_modules": linears, "target_parameters": BOTH},
        "target_modules": {"target_modules": [*linears, *stacked]},
    }
    if shape.model_type not in CONVERTED:
        del ways["target_modules"]
    assert found.keys() == {"each expert's linears", *ways}
    for way, options in ways.items():
        model = save(tmp_path / way, name, **options)
        packed = read_adapter(LocalFolder(tmp_path / way, way), Fit(modules, found[way].max_rank), torch.float32)
        assert found[way].elements == packed.run.numel()
        assert found[way].max_rank == packed.rank
        assert found[way].tensors == sum("lora_" in each for each, _ in model.named_parameters())
    if name != "deepseek_v3":  # whose shared experts PEFT leaves out in both layouts
        apart = {path: replace(module, part_of="") for path, module in modules.items()}
        export(packed, tmp_path / "unpacked", apart)
        with safe_open(tmp_path / "unpacked" / WEIGHTS, "pt") as unpacked:
            assert found["each expert's linears"].tensors == len(unpacked.keys())


def test_long_ropes_first_length_is_what_a_request_may_have() -> None:
    rope = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [4.0] * 48}  # as in Phi-3-mini-128k
    fields = FRONTIER["phi_3_mini"] | {"max_position_embeddings": 131072, "rope_scaling": rope}
    assert read_shape(fields | {"original_max_position_embeddings": 4096}).context_length == 4096
    assert read_shape(FRONTIER["qwen3_30b_a3b"]).context_length == 40960


def test_yarn_gives_a_base_more_positions() -> None:
    """As Qwen3's makers recommend to serve it, and as DeepSeek's own files state the result."""
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert read_shape(FRONTIER["qwen3_30b_a3b"] | {"rope_scaling": rope}).context_length == 131072
    assert read_shape(FRONTIER["deepseek_v32"] | {"rope_scaling": rope}).context_length == 163840


YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 100}
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize("family", ["gemma3", "olmo3_one_key", "llama", "qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize(
    ("changes", "layered"),
    [
        ({"rope_parameters": YARN}, 400),
        ({"rope_parameters": {"full_attention": YARN, "sliding_attention": PLAIN}}, 400),
        ({"rope_parameters": {"full_attention": YARN, "sliding_attention": None}}, 400),
        ({"rope_parameters": {"full_attention": PLAIN, "sliding_attention": LONG}}, 64),
        ({"rope_parameters": {"full_attention": YARN, "sliding_attention": LONG}}, 64),
        ({"rope_parameters": {"full_attention": PLAIN, "sliding_attention": PLAIN}, "rope_scaling": YARN}, 400),
        ({"rope_parameters": None, "rope_scaling": YARN}, 400),
    ],
)
def test_positions_are_those_that_the_engine_knows(family: str, changes: dict[str, Any], layered: int) -> None:
    """Also if they are given per kind of layer, which only some families read."""
    fields = config_fields(FAMILIES[family]) | changes
    known = positions_of(built(copy.deepcopy(fields)).config.get_text_config())
    assert read_shape(fields).context_length == known
    if family in ("gemma3", "olmo3_one_key"):
        assert known == layered


def test_dual_chunk_attention_is_served_as_far_as_it_is_plain_attention() -> None:
    """As Qwen's makers have it in files for a million tokens; transformers ignores it."""
    fields = config_fields(FAMILIES["qwen3_moe"]) | {
        "max_position_embeddings": 1_010_000,
        "dual_chunk_attention_config": {"chunk_size": 262_144, "local_size": 8_192},
    }
    known = positions_of(built(copy.deepcopy(fields)).config)
    assert known == read_shape(fields).context_length == 262_144 - 8_192


def test_rope_scaling_takes_precedence_over_rope_parameters() -> None:
    fields = config_fields(FAMILIES["llama"]) | {"rope_parameters": PLAIN, "rope_scaling": YARN}
    assert positions_of(built(copy.deepcopy(fields)).config) == read_shape(fields).context_length == 400


def test_unknown_families_and_missing_sizes_are_refused() -> None:
    unknown: tuple[Any, ...] = ("mamba2", None, 7, ["llama"], {})
    for odd in unknown:
        with pytest.raises(
            UnsupportedBase, match=r"is of model type .*, which cannot be planned for; supported: deepseek"
        ):
            read_shape({"model_type": odd})
    with pytest.raises(UnsupportedBase, match="`hidden_size` is missing; give the base's own"):
        read_shape({"model_type": "llama", "num_hidden_layers": 2})


def test_a_base_of_which_only_the_text_model_is_known_is_refused() -> None:
    """Mistral Small 3.1's ranks hold a vision model as well, and own kernels do not compute it."""
    config = {"model_type": "mistral3", "text_config": config_fields(FAMILIES["mistral"])}
    why = "is of model type 'mistral3', of which 'mistral' is only a part; .* except gemma3 and kimi_k25$"
    with pytest.raises(UnsupportedBase, match=why):
        read_shape(config)


@pytest.mark.parametrize(
    ("of", "changes", "says"),
    [
        ("llama", {"text_config": 7}, r"Expected `object`, got '7' - at `\$.text_config`"),
        ("llama", {"hidden_size": "64"}, r"Expected `int`, got `str` - at `\$.hidden_size`"),
        ("llama", {"num_hidden_layers": 10**9}, "`num_hidden_layers` is 1000000000; it may be from 1 to 4096"),
        ("llama", {"vocab_size": 10**12}, "`vocab_size` is 1000000000000; it may be from 1 to 16777216"),
        ("llama", {"num_attention_heads": 0}, "`num_attention_heads` is 0; it may be from 1 to 65536"),
        ("llama", {"num_key_value_heads": 3}, "`num_key_value_heads` is 3; it must divide `num_attention_heads`, wh"),
        ("llama", {"hidden_size": 50, "head_dim": None}, "`hidden_size` is 50; without a `head_dim` it must be a m"),
        (
            "gemma3",
            {"text_config": {"model_type": "gemma3_text", "hidden_size": -8}},
            "`text_config.hidden_size` is -8;",
        ),
        ("deepseek_v3", {"num_experts_per_tok": 9}, "`num_experts_per_tok` is 9; it may be from 1 to `n_routed_ex"),
        ("llama", {"rope_scaling": 7}, r"Expected `object \| null`, got `int` - at `\$.rope_scaling`"),
        ("gemma3", {"rope_parameters": [YARN]}, r"got `array` - at `\$.rope_parameters`"),
        ("gemma3", {"rope_parameters": {"sliding_attention": "default"}}, r"rope_parameters.sliding_attention`"),
        ("deepseek_v3", {"kv_lora_rank": None}, r"Expected `int`, got `null` - at `\$.kv_lora_rank`"),
        ("deepseek_v3", {"mlp_layer_types": ["dense"]}, "`mlp_layer_types` names 1 layers where"),
    ],
)
def test_invalid_fields_are_reported_with_file_key_and_remedy(of: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(
        UnsupportedBase,
        match=rf"^file x: has missing or invalid values: .*{says}.*; give the base's own config.json$",
    ):
        read_shape(config_fields(FAMILIES[of]) | changes, "file x")


def test_layers_that_send_tokens_to_other_numbers_of_experts_are_refused() -> None:
    fields = ORDINARY["hunyuan_a13b"] | {"moe_topk": [8] * 31 + [4]}
    with pytest.raises(
        UnsupportedBase, match=r"^file x: has a `moe_topk` that differs between layers, \[8, .* is not supported$"
    ):
        read_shape(fields, "file x")


ODD = st.one_of(
    st.sampled_from([None, True, False, 0, -3, 1.5, 1e400, 10**400, float("nan"), "", "text"]),
    st.recursive(
        st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["factor", "type", "a"]), inner, max_size=3)
        ),
        max_leaves=4,
    ),
)
CONFIGS = [*FRONTIER.values(), GEMMA_3_4B, *map(config_fields, FAMILIES.values())]
NESTED = ("text_config", "vision_config", "rope_scaling", "rope_parameters", "quantization_config", "mlp_layer_types",
          "mlp_only_layers", "indexer_types", "index_topk_pattern", "layer_types")  # fmt: skip
KEYS = {
    *NESTED,
    *(key for fields in CONFIGS for key in fields),
    *(key for fields in CONFIGS for inner in fields.values() if isinstance(inner, dict) for key in inner),
}


@given(st.sampled_from(CONFIGS), st.sampled_from(("", *NESTED)), st.sampled_from(sorted(KEYS)), ODD)
@example(GEMMA_3_4B, "", "model_type", [])
@settings(max_examples=1000)
def test_every_config_is_planned_or_refused(fields: dict[str, Any], within: str, key: str, odd: Any) -> None:
    """Puts values of wrong types and sizes in place of any key, also of nested ones."""
    inner = fields.get(within)
    changed = fields | ({within: {**inner, key: odd}} if isinstance(inner, dict) else {key: odd})
    with suppress(UnsupportedBase):
        shape = read_shape(changed)
        for ranks in (1, 8):
            make_plan(shape, DEVICES["h100"], ranks, Mix(8, 8, "all", 2, 16), "bfloat16", Storage(1.0, 1.0))
