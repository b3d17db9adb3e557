"""What a key's scope opens, and that no scopes file opens more than it says: the decisions and the file."""

import json
from pathlib import Path
from threading import Thread

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from mint_contracts import errors
from mint_contracts.entries import Entry
from mint_contracts.errors import InvalidRequest, PermissionDenied, SourceNotFound, SourceUnavailable, Unauthenticated
from mint_contracts.records import Held, Mentions, Place, Placement, Tier, WaveRecord
from mint_contracts.source import Source, child
from mint_contracts.training import Policies, Train
from mint_contracts.training_records import WaveTraining, published_in
from mint_gateway.catalog.writable import Writable
from mint_gateway.security.door_security import DoorSecurity
from mint_gateway.security.mounted import Files, Mounted, files_of
from mint_gateway.security.scope import EVERYTHING, Scope
from mint_gateway.security.scope_filter import training_within, waves_within, within
from mint_gateway.security.scopes import SCOPES_FILE, Scopes, read_scopes
from mint_gateway.view import MapView, live_engine
from tests.gateway.scripted import ScriptedEngine
from tests.gateway.secrets import mount
from tests.waiting import join

WORDS = st.text("ab/", min_size=1, max_size=4)
NAMES = st.lists(WORDS, unique=True, max_size=12)
BASES = st.sampled_from(["a/x", "a/y", "b/x", "ab/x"])
SCOPES = st.builds(
    Scope,
    adapters=st.none() | st.lists(WORDS, max_size=4).map(tuple),
    namespaces=st.none() | st.frozensets(st.sampled_from(["a", "b", "ab"])),
)


def view_of(base: str, names: list[str]) -> MapView:
    """Return a view with each adapter placed (for waves of two namespaces), held and published."""
    sources = {name: Source(f"s3://adapters/{name}") for name in names}
    placements = {
        name: Placement(name, source, ("a/wave", "b/wave"), (Place("e-0", Tier.DEVICE, "spread"),))
        for name, source in sources.items()
    }
    held = {name: Held(name, source, Tier.DEVICE, published=True) for name, source in sources.items()}
    engine = live_engine("e-0", ScriptedEngine(base, "e-0").record(), held)
    return MapView(base, 1, None, placements, {"e-0": engine}, sources, sources)


@given(SCOPES, st.dictionaries(BASES, NAMES, max_size=4))
def test_a_view_holds_what_its_scope_opens_and_nothing_else(scope: Scope, names: dict[str, list[str]]) -> None:
    whole = {base: view_of(base, of) for base, of in names.items()}
    narrow = within(whole, scope)
    assert set(narrow) == {base for base in whole if scope.base(base)}
    for base, view in narrow.items():
        own = {name for name in names[base] if scope.adapter(name)}
        engine = view.engines["e-0"]
        for mapping in (view.placements, view.catalogued, view.published, engine.held, engine.published):
            assert set(mapping) == own
            assert len(mapping) == len(own)
            assert all((name in mapping) == (name in own) for name in names[base])
        for name in names[base]:
            assert (view.source(name) == whole[base].source(name)) if name in own else view.source(name) is None
        for placement in view.placements.values():
            assert placement.waves == tuple(wave for wave in ("a/wave", "b/wave") if scope.wave(wave))


def test_without_a_scope_views_are_the_very_ones() -> None:
    whole = {"a/x": view_of("a/x", ["a"])}
    assert within(whole, EVERYTHING) is whole


@given(SCOPES, WORDS | st.just(""), NAMES)
def test_prefixes_open_each_name_of_the_scope_once(scope: Scope, wanted: str, names: list[str]) -> None:
    prefixes = scope.prefixes(wanted)
    assert list(prefixes) == sorted(prefixes)
    for name in names:
        opened = scope.adapter(name) and name.startswith(wanted)
        assert sum(name.startswith(prefix) for prefix in prefixes) == opened


def test_a_revision_opens_nothing() -> None:
    scope = Scope(("acme/",))
    assert scope.adapter("acme/bot@r1")
    assert not scope.adapter("acme@acme/bot")
    assert not scope.adapter("rival/bot@acme/")


def test_a_scope_of_nothing_opens_nothing() -> None:
    assert not Scope(()).adapter("acme/bot")
    assert not Scope(namespaces=frozenset()).base("acme/base")
    assert not Scope(namespaces=frozenset({"acme"})).base("acme-2/base"), "a namespace is meant whole"


@given(SCOPES, SCOPES, st.text(max_size=3), st.text(max_size=3))
def test_keys_of_one_scope_and_salt_share_cached_prefixes(
    scope: Scope, other: Scope, salt: str, other_salt: str
) -> None:
    alike = (salt, scope.namespaces) == (other_salt, other.namespaces) and (
        sorted(scope.adapters) == sorted(other.adapters)
        if scope.adapters is not None and other.adapters is not None
        else scope.adapters is other.adapters
    )
    assert (scope.salt(salt) == other.salt(other_salt)) == alike
    assert len(scope.salt(salt)) == (0 if scope == EVERYTHING and not salt else 32)


NOBODY = Mentions()


def test_waves_of_others_are_neither_counted_nor_named() -> None:
    waves = {
        name: WaveRecord(name, "names", 1, 1, Tier.DEVICE, position=position, message=message, mentions=mentions)
        for name, position, message, mentions in (
            ("a/first", 1, "", None),
            ("b/second", 2, "waits for a/first", Mentions(waves=("a/first",))),
            ("a/third", 3, "", None),
            ("b/fourth", 4, "needs 4 more", NOBODY),
        )
    }
    own = waves_within(waves, Scope(namespaces=frozenset({"b"})))
    assert {name: each.position for name, each in own.items()} == {"b/second": 1, "b/fourth": 2}
    assert "a/first" not in own["b/second"].message
    assert own["b/fourth"].message == "needs 4 more"
    assert waves_within(waves, EVERYTHING) is waves


@pytest.mark.parametrize(
    ("mentions", "shown"),
    [
        (NOBODY, True),
        (Mentions(("acme/x",)), True),
        (Mentions(("acme/x", "acme/y@3"), ("rival/w",)), True),
        (Mentions(("acme/x", "bot-7")), False),
        (Mentions(("rival/x",)), False),
        (Mentions(("acme/",)), False),  # a prefix of names, of which the key opens only some
        (Mentions(("acme/x",), others=True), False),
        (None, False),  # an operator of an earlier version does not say
    ],
    ids=str,
)
def test_a_key_of_some_names_is_told_of_no_other_name_in_what_is_said_of_waves(
    mentions: Mentions | None, shown: bool
) -> None:
    message, scope = "adapter acme/x waits", Scope(("acme/x", "acme/y"))
    record = WaveRecord("rival/w", "names", 1, 1, Tier.DEVICE, message=message, mentions=mentions)
    lessons = WaveTraining(
        "rival/w", 1, Train(Policies()), STORE, policies=("acme/x",), message=message, mentions=mentions
    )
    for wave in (record, msgspec.structs.replace(record, message="")):
        assert (waves_within({"rival/w": wave}, scope)["rival/w"].message == wave.message) is (
            shown or not wave.message
        )
    assert (training_within({"rival/w": lessons}, scope)["rival/w"].message == message) is shown
    of_a_namespace = Scope(namespaces=frozenset({"rival"}))
    seen = waves_within({"rival/w": record}, of_a_namespace)["rival/w"].message
    assert (seen == message) is (mentions is not None), "all adapters of its bases, and waves of its namespace alone"


STORE, TRAINING = Source("pvc://claim/adapters"), Source("pvc://claim/training")
WRITABLE = Writable(Scope(("acme/",)), STORE, TRAINING)


def published(policy: str) -> str:
    return child(published_in(TRAINING, policy), "0001764599277000-00000005").uri


@pytest.mark.parametrize(
    "entry",
    [
        Entry("acme/bot", child(STORE, "acme/bot").uri),
        Entry("acme/bot", child(STORE, "acme/bot").uri + "/r2"),
        Entry("acme/bot", "s3://claim/adapters/rival/bot"),
        Entry("acme/bot", "pvc://claim/adapters-2/rival/bot"),
        Entry("acme/bot", published("acme/haiku")),
        Entry("acme/bot", retired=True),
    ],
    ids=lambda entry: f"{entry.name} {entry.uri}",
)
def test_a_scoped_key_may_write_names_that_it_opens(entry: Entry) -> None:
    WRITABLE.check([entry])


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (
            Entry("rival/bot", "s3://anywhere"),
            "adapter 'rival/bot': is outside your key's scope; contact the gateway's administrator",
        ),
        (Entry("rival/bot", retired=True), "adapter 'rival/bot': is outside your key's scope"),
        (Entry("acme/bot", child(STORE, "rival/bot").uri), "would be fetched from pvc://claim/adapters/rival/bot"),
        (Entry("acme/bot", "pvc://claim//adapters//rival/bot/"), "is outside your key's scope"),
        (Entry("acme/bot", "file:///mint/pvc/claim/adapters/rival/bot"), "is outside your key's scope"),
        (Entry("acme/bot", STORE.uri), "is outside your key's scope"),
        (Entry("acme/bot", published("rival/haiku")), "would be fetched from pvc://claim/training/revisions/rival/"),
        (Entry("acme/bot", published("rival/haiku").replace("pvc://", "file:///mint/pvc/")), "is outside your key's"),
    ],
    ids=lambda part: f"{part.name} {part.uri}" if isinstance(part, Entry) else "",
)
def test_a_scoped_key_may_not_write_others_names_or_their_files_in_the_store(entry: Entry, problem: str) -> None:
    with pytest.raises(PermissionDenied) as refusal:
        WRITABLE.check([Entry("acme/other", "s3://anywhere"), entry])
    assert problem in str(refusal.value)
    Writable(EVERYTHING, STORE, TRAINING).check([entry])


def read(content: object) -> Scopes:
    return read_scopes(
        Path("/scopes"), {SCOPES_FILE: content if isinstance(content, bytes) else json.dumps(content).encode()}
    )


def test_omitted_parts_of_a_scope_and_omitted_keys_are_unrestricted() -> None:
    scopes = read({"a": {"adapters": ["acme/"]}, "b": {"namespaces": ["team-b"]}, "c": {"adapters": []}})
    assert scopes.of("a") == Scope(("acme/",))
    assert scopes.of("b") == Scope(namespaces=frozenset({"team-b"}))
    assert scopes.of("c") == Scope(())
    assert scopes.of("d") == EVERYTHING


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        "acme/",
        {"adapters": None},
        {"adapters": "acme/"},
        {"adapters": [""]},
        {"adapters": ["acme/", ""]},
        {"adapters": ["*"]},
        {"adapters": [1]},
        {"namespaces": [""]},
        {"namespaces": ["Team"]},
        {"adapter": ["acme/"]},
        {"adapters": ["acme/"], "namespace": ["team-a"]},
    ],
    ids=repr,
)
def test_a_scope_that_cannot_be_read_closes_its_key_alone(content: object) -> None:
    with capture_logs() as logs:
        scopes = read({"torn": content, "whole": {"adapters": ["acme/"]}})
    with pytest.raises(Unauthenticated, match="whose scope the gateway cannot read; contact its administrator"):
        scopes.of("torn")
    assert scopes.of("whole") == Scope(("acme/",))
    [line] = [line for line in logs if line["log_level"] == "error"]
    assert (line["client"], line["file"]) == ("torn", "/scopes/scopes.json")
    assert line["error"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"team-a"',
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": {"adapters": ["acme/"]}, "a": {}}',
        b'{"a": {"adapters": ["acme/"], "adapters": ["r"]}}',
    ],
    ids=lambda content: repr(content[:40]),
)
def test_a_file_that_cannot_be_read_closes_every_key(content: bytes) -> None:
    with capture_logs() as logs:
        scopes = read(content)
    for name in ("a", "b"):
        with pytest.raises(Unauthenticated, match="the gateway cannot read"):
            scopes.of(name)
    [line] = logs
    assert (line["event"], line["file"]) == (
        "scopes cannot be read; every key is rejected until they can",
        "/scopes/scopes.json",
    )
    assert line["error"]


def test_a_gateway_without_its_file_of_scopes_does_not_begin(tmp_path: Path) -> None:
    keys, scopes = mount(tmp_path / "keys", {"team-a": b"key"}), mount(tmp_path / "scopes", {"other.json": b"{}"})
    with pytest.raises(SourceNotFound, match=r"scopes\.json: does not exist; create it with the scopes of the keys"):
        DoorSecurity.by(None, keys, scopes)
    with pytest.raises(SourceNotFound):
        DoorSecurity.by(None, keys, tmp_path / "nowhere")
    with pytest.raises(InvalidRequest, match="give --keys too"):
        DoorSecurity.by(None, None, scopes)


def test_mounted_files_are_read_as_of_one_moment(tmp_path: Path) -> None:
    def files(number: int) -> dict[str, bytes]:
        return {name: str(number).encode() for name in ("a.json", "b.json", SCOPES_FILE)}

    def change() -> None:
        for number in range(300):
            mount(tmp_path / "scopes", files(number))

    mount(tmp_path / "scopes", files(0))
    changing = Thread(target=change)
    changing.start()
    seen = list[Files]()
    while changing.is_alive() or not seen:
        seen.append(Mounted(tmp_path / "scopes", lambda _, found: found).now)
    join(changing)
    assert all(found == files(int(found[SCOPES_FILE])) for found in seen)


def test_a_folder_that_never_stays_the_same_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mint_gateway.security.mounted.PAUSE_S", 0.0)
    folder, versions = tmp_path / "scopes", iter(range(1, 1000))

    def read_as_it_changes(real: Path) -> Files:
        files = files_of(real)
        mount(folder, {SCOPES_FILE: str(next(versions)).encode()})
        return files

    mount(folder, {SCOPES_FILE: b"0"})
    monkeypatch.setattr("mint_gateway.security.mounted.files_of", read_as_it_changes)
    with pytest.raises(SourceUnavailable, match="scopes: changes whenever it is read"):
        Mounted(folder, lambda _, found: found)


def test_forbidden_writes_are_reported_by_both_ports() -> None:
    assert (errors.PermissionDenied.grpc_status.name, errors.PermissionDenied.http_status) == (
        "PERMISSION_DENIED",
        403,
    )
