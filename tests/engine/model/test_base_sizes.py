"""Impossible sizes in a base's config are refused by file, field and value, before anything of that size is made."""

import json
from pathlib import Path
from typing import Any

import pytest

from mint_contracts.base_sizes import odd_size
from mint_contracts.errors import UnsupportedBase
from mint_engine.model.files import BaseFiles, find_files, read_config
from mint_engine.preflight import check_small_files
from tests.engine.families import FAMILIES, SEEING
from tests.engine.ggufs import write
from tests.engine.running import settings_for
from tests.planning.frontier import FRONTIER, GEMMA_3_4B, KIMI_K25


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("llama", {"num_hidden_layers": 10**9}, "`num_hidden_layers` is 1000000000; it may be from 1 to 4096"),
        ("qwen3", {"num_hidden_layers": 10**9}, "`num_hidden_layers` is 1000000000; it may be from 1 to 4096"),
        ("llama", {"num_hidden_layers": 0}, "`num_hidden_layers` is 0; it may be from 1 to 4096"),
        ("llama", {"num_hidden_layers": 1e9}, "`num_hidden_layers` is 1000000000.0; it may be from 1 to 4096"),
        ("llama", {"vocab_size": 10**12}, "`vocab_size` is 1000000000000; it may be from 1 to 16777216"),
        ("llama", {"vocab_size": -5}, "`vocab_size` is -5; it may be from 1 to 16777216"),
        ("llama", {"vocab_size": 10**400}, f"`vocab_size` is 1{'0' * 39}; it may be from 1 to 16777216"),
        ("llama", {"hidden_size": 0}, "`hidden_size` is 0; it may be from 1 to 16777216"),
        (
            "llama",
            {"intermediate_size": 10**12},
            "`intermediate_size` is 1000000000000; it may be from 1 to 16777216",
        ),
        ("llama", {"num_attention_heads": 0}, "`num_attention_heads` is 0; it may be from 1 to 65536"),
        ("llama", {"num_attention_heads": -2}, "`num_attention_heads` is -2; it may be from 1 to 65536"),
        ("llama", {"num_key_value_heads": 0}, "`num_key_value_heads` is 0; it may be from 1 to 65536"),
        (
            "llama",
            {"num_key_value_heads": 3},
            "`num_key_value_heads` is 3; it must divide `num_attention_heads`, which is 4",
        ),
        (
            "llama",
            {"hidden_size": 50, "head_dim": None},
            "`hidden_size` is 50; without a `head_dim` it must be a multiple of `num_attention_heads`, which is 4",
        ),
        ("llama", {"head_dim": 10**9}, "`head_dim` is 1000000000; it may be from 1 to 16777216"),
        ("llama", {"max_position_embeddings": -1}, "`max_position_embeddings` is -1; it may be from 0 to 2147483648"),
        ("mistral", {"sliding_window": 10**30}, f"`sliding_window` is 1{'0' * 30}; it may be from 0 to 2147483648"),
        ("glm_5", {"n_routed_experts": 10**9}, "`n_routed_experts` is 1000000000; it may be from 0 to 65536"),
        ("glm_5", {"n_group": 3}, "`n_group` is 3; it must divide `n_routed_experts`, which is 8"),
        ("glm_5", {"topk_group": 3}, "`topk_group` is 3; it may be from 1 to `n_group`, which is 2"),
        ("glm_5", {"kv_lora_rank": 0}, "`kv_lora_rank` is 0; it may be from 1 to 16777216"),
        ("glm_5", {"index_topk": -1}, "`index_topk` is -1; it may be from 1 to 2147483648"),
        (
            "gpt_oss",
            {"num_experts_per_tok": 99},
            "`num_experts_per_tok` is 99; it may be from 1 to `num_local_experts`, which is 6",
        ),
        ("ernie4_5_moe", {"moe_k": 9}, "`moe_k` is 9; it may be from 1 to `moe_num_experts`, which is 6"),
        ("hunyuan_moe", {"moe_topk": 0}, "`moe_topk` is 0; it may be from 1 to `num_experts`, which is 6"),
        (
            "gemma3_seeing",
            {"vision_config": {"num_hidden_layers": 10**9}},
            "`vision_config.num_hidden_layers` is 1000000000; it may be from 1 to 4096",
        ),
        (
            "gemma3_seeing",
            {"text_config": {"num_hidden_layers": 10**9}},
            "`text_config.num_hidden_layers` is 1000000000; it may be from 1 to 4096",
        ),
    ],
)
def test_a_size_that_no_base_has_is_told_by_its_file_its_field_and_what_may_be(
    family: str, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    told = told_of(family)
    for field, value in changes.items():
        told[field] = {**told[field], **value} if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(UnsupportedBase) as error:
        check_small_files(settings_for(tmp_path), tmp_path, "base b")
    assert str(error.value) == f"base b: has a config.json where {says}"


def test_a_gguf_file_of_a_size_that_no_base_has_is_told_of(tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf", layers=10**9)
    with pytest.raises(UnsupportedBase, match=r"tiny\.gguf: has metadata where `num_hidden_layers` is 1000000000; "):
        read_config(find_files(tmp_path))


PUBLISHED = FRONTIER | {"gemma_3_4b": GEMMA_3_4B, "kimi_k25": KIMI_K25}


@pytest.mark.parametrize("family", sorted([*FAMILIES, *SEEING, *PUBLISHED]))
def test_sizes_of_real_bases_are_accepted(family: str) -> None:
    assert odd_size(PUBLISHED.get(family) or told_of(family)) == ""


def test_a_family_with_a_size_of_heads_may_leave_it_out(tmp_path: Path) -> None:
    told = told_of("qwen3") | {"hidden_size": 50}
    del told["head_dim"]
    (tmp_path / "config.json").write_text(json.dumps(told))
    config, _ = read_config(BaseFiles(tmp_path, None))
    assert config.head_dim == 128


def told_of(family: str) -> dict[str, Any]:
    config = (FAMILIES | SEEING)[family]
    told: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return told
