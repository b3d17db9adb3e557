"""What fits: properties of every plan, and the figures that a person sees."""

import asyncio
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_gateway.planning.config import read_shape
from mint_gateway.planning.devices import DEVICES
from mint_gateway.planning.fit import Mix, Plan, Storage, make_plan
from tests.planning.frontier import FRONTIER, KIMI_K2

STORAGE = Storage(disk=1.4e9, network=1.25e9)
MIXES = st.builds(
    Mix,
    adapters=st.integers(1, 4000),
    rank=st.integers(1, 64),
    targets=st.sampled_from(["attention", "dense", "all"]),
    requests=st.integers(1, 256),
    context=st.integers(1, 40000),
)


def plan(name: str, devices: int, mix: Mix, device: str = "h200") -> Plan:
    return make_plan(read_shape(FRONTIER[name]), DEVICES[device], devices, mix, "bfloat16", STORAGE)


@given(st.sampled_from(sorted(FRONTIER)), st.integers(1, 64), st.sampled_from(sorted(DEVICES)), MIXES)
def test_what_is_said_to_fit_fits(name: str, devices: int, device: str, mix: Mix) -> None:
    """Slots fill no more than the memory, and engines hold all; where none fits, enough devices make it fit."""
    found = plan(name, devices, mix, device)
    used = found.weights + found.cache + found.slots * found.adapter
    if found.fits:
        assert used <= found.memory
        assert found.slots == mix.adapters or used + found.adapter > found.memory
        assert (found.engines - 1) * found.slots < mix.adapters <= found.engines * found.slots
        assert devices >= found.devices_needed
    else:
        assert found.engines == 0
        assert devices < found.devices_needed
        assert plan(name, found.devices_needed, mix, device).fits
        assert not plan(name, found.devices_needed - 1, mix, device).fits or found.devices_needed == 1


@given(MIXES)
def test_a_warmer_adapter_is_there_sooner(mix: Mix) -> None:
    found = plan("qwen3_30b_a3b", 1, mix)
    assert 0 < found.from_host < found.from_disk < found.from_network


def test_a_trillion_parameters_on_two_nodes() -> None:
    """Kimi-K2 in bfloat16 takes more than 16 H200s; a token's compressed cache takes 70 kB."""
    mix = Mix(adapters=64, rank=1, targets="all", requests=64, context=8192)
    found = plan("kimi_k2", 24, mix)
    assert found.token == 61 * 576 * 2
    assert found.share < 0.01
    assert found.slots == 64
    assert not plan("kimi_k2", 16, mix).fits
    assert plan("kimi_k2", 16, mix).devices_needed > 16


async def mint_plan(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", "from mint_gateway.cli import main; main()", "plan"),
        *arguments,
        env={"COLUMNS": "140"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), err.decode()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(KIMI_K2))
    return tmp_path


async def test_the_table_that_a_person_reads(base: Path) -> None:
    code, out, err = await mint_plan(str(base), "--device", "h200", "--tensor-parallel", "24", "--rank", "1")
    assert (code, err) == (0, "")
    for word in ("1,026", "weights", "cache", "engines", "cold load", "attention", "of the base"):
        assert word in out


async def test_what_does_not_fit_says_what_would(base: Path) -> None:
    code, out, _ = await mint_plan(str(base / "config.json"), "--tensor-parallel", "8", "--memory", "80G")
    assert code == 2
    assert "such devices for one" in out


async def test_for_programs(base: Path) -> None:
    code, out, _ = await mint_plan(str(base), "--device", "cpu", "--memory", "4Ti", "-o", "json")
    assert code == 0
    assert json.loads(out)["parameters"] > 10**12


async def test_one_error_for_bad_input(tmp_path: Path, base: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    for arguments, word in (
        ((str(tmp_path / "nowhere"),), "nowhere"),
        ((str(tmp_path / "broken.json"),), "broken.json"),
        ((str(base), "--context", "999999"), "131072"),
    ):
        code, out, err = await mint_plan(*arguments)
        assert (code, out) == (1, "")
        assert word in err
    assert (await mint_plan(str(base), "--memory", "lots"))[0] == 2
