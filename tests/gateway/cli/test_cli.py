"""The `mint` program as a person runs it: its own process, against a gateway on a socket."""

import asyncio
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from mint_contracts import errors
from mint_contracts.records import BaseRecord, Failure, MapChange, Place, Placement, Tier
from mint_contracts.source import Source
from mint_contracts.training_pb2 import DropPolicyRequest, PolicyState
from mint_gateway.cli import gateway_options
from mint_gateway.client import Client
from mint_gateway.persistence import Persistence
from mint_gateway.placement_pages import PAGE
from tests.gateway.command import mint, own_lines
from tests.gateway.scene import BASE, LIMIT_S, STORE, Scene, complete
from tests.gateway.scripted import ScriptedEngine
from tests.gateway.scripted_trainer import ScriptedTrainer
from tests.waiting import PATIENCE_S


async def play(scene: Scene) -> None:
    await scene.base()
    first, second = await scene.engine("e-0"), await scene.engine("e-1")
    first.words, second.words = ("Arr", ", matey"), ("OH", " HELLO")
    await scene.place("demo/pirate", "e-0")
    await scene.place("demo/shout", "e-1")
    await first.hold("demo/pirate", f"{STORE}/demo/pirate", Tier.DEVICE)
    await second.hold("demo/shout", f"{STORE}/demo/shout", Tier.HOST)
    await scene.begin(first, second)


async def test_one_answer_is_plain_text(scene: Scene) -> None:
    await play(scene)
    assert await mint(scene.target, "ask", "--adapter", "demo/pirate", "Hello?") == (0, "Arr, matey\n", "")


async def test_an_answer_is_written_whatever_the_characters_of_the_terminal(scene: Scene) -> None:
    engine = await scene.with_engine()
    engine.words = ("Où est", " 🌊?")
    for encoding, printed in (("utf-8", "Où est 🌊?"), ("ascii", "O\\xf9 est \\U0001f30a?")):
        code, out, err = await mint(scene.target, "ask", "Hello?", PYTHONIOENCODING=f"{encoding}:strict")
        assert (code, err) == (0, "")
        assert out == f"{printed}\n"
        _, out, _ = await mint(scene.target, "ask", "-o", "json", "Hello?", PYTHONIOENCODING=encoding)
        assert json.loads(out)[0]["text"] == "Où est 🌊?"


@pytest.mark.parametrize("arguments", [("ask", "Hello?"), ("policy", "list"), ("explain", "-o", "json")])
async def test_a_full_disk_is_told_in_a_line(scene: Scene, arguments: tuple[str, ...]) -> None:
    await scene.with_engine()
    command = (
        sys.executable,
        "-c",
        "from mint_gateway.cli import main; main()",
        *arguments,
        "--gateway",
        scene.target,
    )
    full = os.open("/dev/full", os.O_WRONLY)
    process = await asyncio.create_subprocess_exec(*command, stdout=full, stderr=asyncio.subprocess.PIPE)
    os.close(full)
    _, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert (process.returncode, err.count(b"\n")) == (1, 1)
    assert err.startswith(b"mint: Overloaded: standard output: has no room left")


async def test_several_answers_stand_side_by_side(scene: Scene) -> None:
    await play(scene)
    code, out, _ = await mint(
        scene.target, "ask", "--adapter", "demo/pirate", "--adapter", "demo/shout", "--bare", "Hello?"
    )
    assert code == 0
    lines = out.splitlines()
    heads = next(line for line in lines if "demo/pirate" in line)
    texts = next(line for line in lines if "Arr, matey" in line)
    assert "demo/shout" in heads
    assert "(bare base)" in heads
    assert texts.index("Arr, matey") < texts.index("OH HELLO")
    assert "e-1, 2 tokens" in out


async def test_several_completions_stand_side_by_side_too(scene: Scene) -> None:
    await play(scene)
    code, out, _ = await mint(scene.target, "ask", "-n", "2", "--adapter", "demo/pirate", "Hello?")
    assert code == 0
    heads = next(line for line in out.splitlines() if "demo/pirate #0" in line)
    assert heads.index("demo/pirate #0") < heads.index("demo/pirate #1")
    assert "1Arr1, matey" in out
    _, out, _ = await mint(scene.target, "ask", "-n", "2", "-o", "json", "--adapter", "demo/pirate", "Hello?")
    assert [(each["index"], each["text"]) for each in json.loads(out)] == [(0, "Arr, matey"), (1, "1Arr1, matey")]
    code, _, err = await mint(scene.target, "ask", "-n", "3", "--adapter", "demo/nobody", "Hello?")
    assert (code, err.count("AdapterNotFound")) == (1, 1)


async def test_sampling_options_reach_the_engine(scene: Scene) -> None:
    engine = await scene.with_engine()
    options = ["--max-tokens", "7", "--temperature", "0.5", "--seed", "3", "--stop", "END", "--raw", "--base", BASE]
    assert (await mint(scene.target, "ask", *options, "Once upon"))[0] == 0
    request = engine.seen[0]
    assert (request.text, request.base_model) == ("Once upon", BASE)
    assert (request.sampling.max_tokens, request.sampling.temperature, request.sampling.seed) == (7, 0.5, 3)
    assert list(request.sampling.stop) == ["END"]


async def test_json_for_programs(scene: Scene) -> None:
    await play(scene)
    _, out, _ = await mint(scene.target, "ask", "-o", "json", "--adapter", "demo/pirate", "Hello?")
    answer = json.loads(out)[0]
    assert (answer["adapter"], answer["text"], answer["engine"]) == ("demo/pirate", "Arr, matey", "e-0")
    _, out, _ = await mint(scene.target, "explain", "-o", "json", "demo/pirate")
    assert json.loads(out)["chosen_engine"] == "e-0"
    _, out, _ = await mint(scene.target, "placements", "-o", "json")
    assert [each["adapter"] for each in json.loads(out)] == ["demo/pirate", "demo/shout"]


async def test_an_error_is_one_line_and_exit_code_1(scene: Scene) -> None:
    await play(scene)
    code, out, err = await mint(scene.target, "ask", "--adapter", "demo/nobody", "Hello?")
    assert (code, out) == (1, "")
    assert err.startswith("mint: AdapterNotFound: adapter 'demo/nobody': no wave serves it on demo/smollm2")
    assert err.count("\n") == 1


async def test_the_error_of_an_answer_that_was_cut_off_stands_in_a_line_of_its_own(scene: Scene) -> None:
    dying, _ = await scene.with_holder()
    dying.hold_after = 1
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from mint_gateway.cli import main; main()"),
        *("ask", "--adapter", "demo/pirate", "Ahoy?"),
        env={"MINT_GATEWAY": scene.target},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout
    assert await asyncio.wait_for(process.stdout.readexactly(5), 60) == b"Hello"
    await dying.deafen()
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert out.startswith(b"\nmint: EngineUnavailable: ")
    assert process.returncode == 1


async def test_one_failure_of_several_leaves_the_other_answers(scene: Scene) -> None:
    await play(scene)
    code, out, err = await mint(scene.target, "ask", "--adapter", "demo/nobody", "--adapter", "demo/shout", "Hello?")
    assert code == 1
    assert "OH HELLO" in out
    assert err.count("AdapterNotFound") == 1


async def test_a_gateway_that_is_not_there_is_reported() -> None:
    code, _, err = await mint("127.0.0.1:1", "placements", "--patience", "0.1")
    assert code == 1
    assert err.startswith("mint: Unavailable: ")
    address = "; give the gateway's address: --gateway, or $MINT_GATEWAY"
    forward = "; or forward its port: kubectl port-forward -n mint-system service/mint-gateway 8470"
    assert own_lines(err)[-1].endswith(f": Connection refused{address}{forward}")
    code, _, err = await mint("no address", "placements", "--patience", "0.1")
    assert (code, own_lines(err)[-1].endswith(address)) == (1, True), "no port-forward ends there"


async def test_one_who_waits_is_told_once_for_what_and_for_how_long() -> None:
    async def never(_error: object) -> bool:
        return False

    told = asyncio.Queue[tuple[errors.MintError, float]]()
    why = errors.Overloaded("gateway", "is full", retry_after_s=LIMIT_S / 2)
    persistence = Persistence(LIMIT_S, never, lambda error, left_s: told.put_nowait((error, left_s)))
    for _ in range(2):
        waiting = asyncio.create_task(persistence.wait(why))
        await asyncio.sleep(0)
        waiting.cancel()
    error, left_s = told.get_nowait()
    assert (error, round(left_s), told.empty()) == (why, LIMIT_S, True)


@pytest.mark.parametrize(("left_s", "how_long"), [(28.4, " for 28s more (--patience)"), (math.inf, "")])
def test_a_person_at_a_terminal_learns_what_is_waited_for_and_a_program_gets_the_error_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, left_s: float, how_long: str
) -> None:
    for terminal, line in ((False, ""), (True, f"mint: trying again{how_long}: Draining: engine 'e-0': ends\n")):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        gateway_options.tell_of_retries(errors.Draining("engine 'e-0'", "ends"), left_s)
        assert capsys.readouterr().err == line


@pytest.mark.parametrize(("gateway", "target"), [("", "127.0.0.1:8470"), ("gateway:1", "gateway:1")])
def test_an_empty_gateway_address_counts_as_unset(monkeypatch: pytest.MonkeyPatch, gateway: str, target: str) -> None:
    monkeypatch.setenv("MINT_GATEWAY", gateway)
    assert gateway_options.options().parse_args([]).gateway == target


async def test_an_invalid_time_is_reported() -> None:
    """With "nan" it would retry forever, since no time compares as later."""
    for patience in ("nan", "-1", "long"):
        code, _, err = await mint("127.0.0.1:1", "placements", f"--patience={patience}")
        assert code == 2
        assert err.splitlines()[-1].startswith("mint placements: error: argument --patience: "), err


@pytest.mark.parametrize("limit", ["0", "-1", "1.5", "all", ""])
async def test_a_limit_that_shows_nothing_is_reported(limit: str) -> None:
    code, out, err = await mint("127.0.0.1:1", "catalog", "list", f"--limit={limit}")
    assert (code, out) == (2, "")
    problem = f"argument --limit: {limit!r} is not a positive whole number"
    assert err.splitlines()[-1] == f"mint catalog list: error: {problem}"


async def test_explain_says_who_would_answer_and_why(scene: Scene) -> None:
    await play(scene)
    code, out, _ = await mint(scene.target, "explain", "demo/pirate")
    assert code == 0
    assert "wanted by    demo/wave" in out
    assert "goes to      e-0: holds it in Device" in out
    row = next(line for line in out.splitlines() if "e-0-demo/pir" in line)
    assert "spread" in row


async def test_placements_is_a_table_of_who_holds_what_and_why(scene: Scene) -> None:
    await play(scene)
    _, out, _ = await mint(scene.target, "placements")
    row = next(line for line in out.splitlines() if "demo/shout" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        *("demo/shout", "demo/wave", "e-1", "Device", "Host", "e-1-demo/sho", "spread")
    ]


async def training_engine(scene: Scene) -> tuple[ScriptedEngine, ScriptedTrainer]:
    await scene.base(trains=True)
    engine = await scene.engine("e-0", trains=True)
    await scene.begin(engine)
    assert engine.trainer is not None
    return engine, engine.trainer


async def test_policies_are_a_table_of_what_calls_train_and_how_far_it_is(scene: Scene) -> None:
    engine, trainer = await training_engine(scene)
    state = PolicyState(policy="demo/taught", step=3, sequence=7, life=5, engine="e-0", base_model=BASE)
    trainer.policies["demo/taught"] = state
    code, out, _ = await mint(scene.target, "policy", "list")
    [line] = [line for line in out.splitlines() if "demo/taught" in line]
    assert (code, [cell.strip() for cell in line.strip("│").split("│")]) == (
        0,
        ["demo/taught", BASE, "e-0", "3", "7"],
    )
    trainer.resting = {"demo/idle": PolicyState(policy="demo/idle", step=2, sequence=4, life=6)}
    _, out, _ = await mint(scene.target, "policy", "list")
    [line] = [line for line in out.splitlines() if "demo/idle" in line]
    assert [cell.strip() for cell in line.strip("│").split("│")] == ["demo/idle", BASE, "rests", "2", "4"]
    _, out, _ = await mint(scene.target, "policy", "list", "-o", "json")
    assert [each["life"] for each in json.loads(out)["policies"]] == [5, 6]
    assert await mint(scene.target, "policy", "drop", "demo/taught") == (0, "dropped demo/taught\n", "")
    assert not trainer.policies
    trainer.policies["demo/taught"] = state
    code, out, err = await mint(scene.target, "policy", "drop", "-o", "json", "demo/taught", "")
    assert (code, json.loads(out)) == (1, {"dropped": ["demo/taught"], "unknown": []})
    assert err.startswith("mint: InvalidRequest: ")
    trainer.policies["demo/taught"] = state
    code, out, err = await mint(scene.target, "policy", "drop", "demo/mistyped", "demo/taught")
    assert (code, out) == (1, "dropped demo/taught\n")
    assert err.startswith("mint: PolicyNotFound: policy 'demo/mistyped': does not exist, so it was not dropped; ")
    code, out, _ = await mint(scene.target, "policy", "drop", "-o", "json", "demo/mistyped")
    assert (code, json.loads(out)) == (1, {"dropped": [], "unknown": ["demo/mistyped"]})
    await engine.deafen()
    code, _, err = await mint(scene.target, "policy", "list")
    assert (code, err) == (1, "engines that did not answer, and may have more: e-0\n")


async def test_a_drop_whose_answer_is_lost_is_no_drop_of_an_unknown_policy(scene: Scene) -> None:
    """The gateway, or the client if it loses the gateway, sends it again and then finds nothing to drop."""
    engine, trainer = await training_engine(scene)
    trainer.policies["demo/taught"] = PolicyState(policy="demo/taught", life=5)
    trainer.loses_answers = True
    assert await mint(scene.target, "policy", "drop", "demo/taught") == (0, "dropped demo/taught\n", "")
    assert len([each for each in trainer.asked if isinstance(each, DropPolicyRequest)]) == 2
    trainer.policies["demo/taught"] = PolicyState(policy="demo/taught", life=6)
    assert await mint(engine.address, "policy", "drop", "demo/taught") == (0, "dropped demo/taught\n", "")
    assert len([each for each in trainer.asked if isinstance(each, DropPolicyRequest)]) == 4


async def test_a_drop_that_did_not_reach_the_gateway_at_first_has_dropped_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await scene.engine("e-0", trains=True)
    await engine.deafen()
    wait, failures = Persistence.wait, list[Exception]()

    async def listens_meanwhile(self: Persistence, error: Any, **options: bool) -> None:
        if not failures:
            await engine.listen()
        failures.append(error)
        await wait(self, error, **options)

    monkeypatch.setattr(Persistence, "wait", listens_meanwhile)
    async with Client(engine.address, patience_s=PATIENCE_S) as client:
        assert await client.drop_policy("demo/mistyped") is False
    assert failures


async def test_no_name_is_cut_however_narrow_a_terminal_is_and_in_a_pipe_each_row_is_a_line(scene: Scene) -> None:
    await play(scene)
    name, why = "demo/an-adapter-with-a-name-that-is-long", "it is there because of a rule that takes long to tell"
    place = Placement(name, Source(f"{STORE}/{name}"), ("demo/wave",), (Place("e-0", Tier.DEVICE, why),))
    scene.versions[BASE] = await scene.writer.apply(BASE, MapChange(set_placements=(place,)))
    await scene.seen()
    _, out, _ = await mint(scene.target, "placements", COLUMNS="60")
    [row] = [line for line in out.splitlines() if name in line]
    assert why in row
    _, out, _ = await mint(scene.target, "placements", COLUMNS="60", FORCE_COLOR="1", NO_COLOR="1")
    rows = [line for line in out.splitlines() if line.startswith("│")]
    assert name in "".join(row.strip("│").split("│")[0].strip() for row in rows)
    assert all(len(row) <= 60 for row in rows)


async def test_placements_shows_all_of_them_however_many_pages_they_take(scene: Scene) -> None:
    names = [f"demo/{n}" for n in range(PAGE + 5)]
    await scene.base(store=STORE)
    await scene.place_many(names, ["e-0"])
    await scene.begin()
    _, out, _ = await mint(scene.target, "placements", "-o", "json")
    assert [each["adapter"] for each in json.loads(out)] == sorted(names)


async def test_placements_shows_a_failure_in_place_of_the_plans_reason(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    await scene.place("demo/pirate", "e-0")
    failure = Failure(errors.CorruptFile.__name__, "truncated [at 12]", terminal=True)
    await engine.hold("demo/pirate", f"{STORE}/demo/pirate", Tier.REMOTE, failure)
    await scene.begin(engine)
    _, out, _ = await mint(scene.target, "placements")
    assert "CorruptFile: truncated [at 12]" in out


async def test_a_catalog_is_registered_listed_shown_and_retired(scene: Scene, tmp_path: Path) -> None:
    record = BaseRecord(base_model=BASE, catalog=Source(f"file://{tmp_path}/catalog"))
    scene.versions[BASE] = await scene.writer.apply(BASE, MapChange(base=record))
    await scene.begin()
    await complete(scene.redis)
    lines = [
        json.dumps({"name": f"acme/bot-{number}", "uri": f"s3://b/acme/bot-{number}", "labels": {"tier": "gold"}})
        for number in range(3)
    ]
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text("\n".join(lines) + "\n")
    bad.write_text(lines[0] + "\n\nnonsense\n")
    rows, row = tmp_path / "rows.parquet", {"name": "acme/row", "uri": "s3://b/acme/row", "rank": 4, "bytes": 1 << 40}
    parquet.write_table(pyarrow.table({name: [value] for name, value in row.items()}), rows)
    assert await mint(scene.target, "catalog", "register", str(good)) == (0, "3 registered, 0 refused\n", "")
    assert (await mint(scene.target, "catalog", "register", str(rows)))[:2] == (0, "1 registered, 0 refused\n")
    code, out, err = await mint(scene.target, "catalog", "register", str(bad))
    assert (code, out) == (1, "1 registered, 1 refused\n")
    assert "not an entry" in next(line for line in err.splitlines() if " 3 " in line)
    code, out, _ = await mint(scene.target, "catalog", "list", "acme/", "--label", "tier=gold", "--limit", "2")
    assert code == 0
    assert "acme/bot-0" in out
    assert "acme/bot-2" not in out
    assert out.endswith("2 shown; the whole catalog has 4; raise --limit for more\n")
    code, out, _ = await mint(scene.target, "catalog", "show", "acme/row", "-o", "json")
    assert json.loads(out) == row | {"revision": "", "labels": {}, "retired": False}
    rows = tmp_path / "shown.jsonl"
    rows.write_text(json.dumps(json.loads(out)))
    assert (await mint(scene.target, "catalog", "register", str(rows)))[:2] == (0, "1 registered, 0 refused\n")
    assert (await mint(scene.target, "catalog", "retire", "acme/row"))[:2] == (0, "1 retired\n")
    code, out, _ = await mint(scene.target, "catalog", "retire", "-o", "json", "acme/bot-0", "acme/bot-1")
    assert (code, json.loads(out)) == (0, {"retired": 2, "unknown": []})
    message = "1 of them were not in the catalog, or were retired already: acme/bto-2\n"
    names = ("acme/bot-2", "acme/bto-2", "acme/bot-2")
    assert await mint(scene.target, "catalog", "retire", *names) == (0, "2 retired\n", message)
    code, _, err = await mint(scene.target, "catalog", "show", "acme/row")
    assert code == 1
    assert "AdapterNotFound" in err


async def test_a_table_is_registered_whatever_its_size_and_reported_if_corrupt(scene: Scene, tmp_path: Path) -> None:
    record = BaseRecord(base_model=BASE, catalog=Source(f"file://{tmp_path}/catalog"))
    scene.versions[BASE] = await scene.writer.apply(BASE, MapChange(base=record))
    await scene.begin()
    await complete(scene.redis)
    labels = {f"{number:02}-{'k' * 58}": "v" * 63 for number in range(32)}
    rows = [{"name": f"acme/row-{n}", "uri": f"s3://b/acme/row-{n}", "labels": labels} for n in range(2000)]
    file = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=500)
    assert await mint(scene.target, "catalog", "register", str(file)) == (0, "2,000 registered, 0 refused\n", "")
    page = parquet.read_metadata(file).row_group(3).column(0).data_page_offset
    with file.open("r+b") as opened:
        opened.seek(page)
        opened.write(b"\xff" * 36)
    code, out, err = await mint(scene.target, "catalog", "register", str(file))
    assert (code, out) == (1, "")
    assert "CorruptFile" in err
    assert "is no Parquet file" in err
    assert "Traceback" not in err
    code, _, err = await mint(scene.target, "catalog", "register", "/proc/self/mem")  # its first byte cannot be read
    assert code == 1
    assert "could not be read (Input/output error)" in err
    assert "Traceback" not in err


async def test_input_that_is_not_text_is_reported() -> None:
    for verb in ("ask", "explain"):
        code, _, err = await mint("127.0.0.1:1", verb, "Ahoy\udcff")  # a byte that is not valid UTF-8
        assert code == 1
        assert err == "mint: InvalidRequest: command line: holds 'Ahoy\\udcff', which is not valid UTF-8\n"


async def test_an_unusable_file_is_reported(tmp_path: Path) -> None:
    code, _, err = await mint("127.0.0.1:1", "catalog", "register", str(tmp_path / "none.jsonl"))
    assert code == 1
    assert "does not exist" in err
    code, _, err = await mint("127.0.0.1:1", "catalog", "register", "a" * 300)
    assert (code, err) == (1, f"mint: InvalidRequest: file '{'a' * 300}': could not be opened (File name too long)\n")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    code, _, err = await mint("127.0.0.1:1", "catalog", "register", str(tmp_path / "torn.parquet"))
    assert code == 1
    assert "CorruptFile" in err
