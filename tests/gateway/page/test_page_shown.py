"""What people see: the page of a real gateway in a real browser."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from mint_contracts.records import Failure, MapChange, Tier, WaveRecord
from mint_contracts.source import Source
from mint_contracts.training_pb2 import PolicyState
from mint_contracts.training_records import Published, Stage
from mint_gateway.http.door import listen
from mint_gateway.security.door_security import DoorSecurity
from mint_gateway.server import serve
from tests.gateway.browser import Browser, browsing
from tests.gateway.scene import BASE, LIMITS, STORE, Scene
from tests.gateway.secrets import mount
from tests.gateway.tenants import Tenants, key_of, lessons
from tests.gateway.training_waves import NAMES, Training, reported, wave
from tests.redis_process import RedisProcess
from tests.relay import relaying
from tests.waiting import until

HOSTILE = "<img src=x onerror='document.title=`taken`'>"

# Records waits and shortens them; counts requests, and how many were in progress at once.
HURRIED = """
Object.assign(window, { waits: [], asked: 0, underWay: 0, atOnce: 0 });
const later = window.setTimeout, get = window.fetch;
window.setTimeout = (act, ms) => { window.waits.push(ms); return later(act, Math.min(ms, 20)); };
window.fetch = async (...what) => {
  window.asked += 1; window.atOnce = Math.max(window.atOnce, window.underWay += 1);
  try { return await get(...what); } finally { window.underWay -= 1; }
};
"""

# Records what screen readers announce of the state.
LISTENING = """
window.announced = [];
addEventListener("DOMContentLoaded", () => {
  const status = document.querySelector("[role=status]"), tell = () => window.announced.push(status.textContent);
  new MutationObserver(tell).observe(status, { subtree: true, childList: true, characterData: true });
});
"""


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with browsing() as browser:
        yield browser


@pytest.fixture
async def served(scene: Scene) -> Scene:
    """An engine with an adapter, a wave that serves it, and a training wave."""
    await scene.base()
    engine = await scene.engine("e-0")
    await engine.hold("demo/pirate", f"{STORE}/demo/pirate", Tier.DEVICE)
    await scene.place("demo/pirate", "e-0")
    serves = WaveRecord("demo/wave", "names", 1, 1, Tier.DEVICE, slots=1, admitted=True)
    refused = WaveRecord("demo/worse", "names", 1, 1, Tier.DEVICE, position=1, reason="Waiting", message=HOSTILE)
    await scene.writer.apply(BASE, MapChange(set_waves=(serves, refused)))
    await scene.begin(engine)
    training = Training(scene)
    await training.declare(wave(message=HOSTILE))
    failed = reported(NAMES[1], 1, Stage.FAILED, failure=Failure("BadReward", HOSTILE, terminal=True))
    await training.report(
        reported(NAMES[0], 3, reward_recent=0.5, tokens=1200), failed, rewards={NAMES[0]: [0.1, 0.5, 0.9]}
    )
    return scene


async def test_an_empty_gateway_says_what_to_do(scene: Scene, browser: Browser) -> None:
    await scene.open()
    await browser.open(scene.url)
    await browser.reads("No base model is served yet", "No training waves", "No serving waves", "Live")
    assert await browser.complaints() == []


async def test_all_is_seen_at_a_glance_and_names_are_only_text(served: Scene, browser: Browser) -> None:
    await browser.open(served.url)
    text = await browser.reads(BASE, "e-0", "Ready", "demo/wave", "Training", HOSTILE)
    assert "1 of 1" in text
    assert await browser.run("return document.querySelectorAll('#shown img, #shown script').length") == 0
    assert await browser.run("return document.title") == "MinT"
    assert await browser.complaints() == [], "and the page's own policy forbade nothing"


async def test_changes_appear_without_a_reload_and_keep_focus_and_input(served: Scene, browser: Browser) -> None:
    await browser.open(served.url)
    await browser.reads("Training")
    await browser.type("#name", "demo/pi")
    await until(lambda: browser.run("return document.querySelector('#names option')?.value === 'demo/pirate'"))
    await browser.run("document.querySelector(`a[href='#wave=demo%2Fw']`).focus()")
    await Training(served).declare(wave("Complete"))
    await browser.reads("Complete")
    kept = "return [document.activeElement.textContent, document.querySelector('#name').value]"
    assert await browser.run(kept) == ["demo/w", "demo/pi"]


async def test_it_asks_one_thing_at_a_time_and_nothing_while_nobody_looks(served: Scene, browser: Browser) -> None:
    await browser.begin_with(HURRIED)
    await browser.open(served.url)
    eagerly = "for (let i = 0; i < 9; i += 1) document.dispatchEvent(new Event('visibilitychange'));"
    quick = "Math.min(...window.waits) <= 3000"  # after answers that took long, it waits longer
    await until(lambda: browser.run(f"{eagerly} return window.asked > 12 && {quick}"))
    assert await browser.run("return [window.atOnce, Math.min(...window.waits)]") == [1, 3000]
    look_away = "Object.defineProperty(document, 'hidden', { value: arguments[0], configurable: true });"
    look_away += "document.dispatchEvent(new Event('visibilitychange'));"
    await browser.run(look_away, True)
    await until(lambda: browser.run("return window.asked % 4 === 0 && window.underWay === 0"))  # by the overview
    asked = await browser.run("return window.asked")
    assert [await browser.run("return window.asked") for _ in range(30)] == [asked] * 30
    await browser.run(look_away, False)
    await until(lambda: browser.run("return window.asked > arguments[0]", asked))


async def test_lists_are_turned_by_a_page_however_often_a_button_is_clicked(scene: Scene, browser: Browser) -> None:
    await scene.base()
    waves = [WaveRecord(f"demo/w{n}", "names", 1, 1, Tier.DEVICE, admitted=True) for n in range(100, 160)]
    await scene.writer.apply(BASE, MapChange(set_waves=tuple(waves)))
    await scene.begin()
    await browser.open(scene.url)
    await browser.reads("demo/w100", "60 waves")
    click = "const it = document.querySelector(arguments[0]); it.click(); arguments[1] && it.click();"
    for way, twice, first in (("on", False, 125), ("back", True, 100), ("on", True, 125), ("back", False, 100)):
        await browser.run(click, f"[data-turn={way}]", twice)
        await browser.reads(f"demo/w{first}")
    ways = "return [...document.querySelectorAll('[data-turn]')].map((each) => each.dataset.turn)"
    assert await browser.run(ways) == ["on"], "it is the first page"


async def test_policies_of_programs_are_shown_once_there_are_any(scene: Scene, browser: Browser) -> None:
    await scene.base(trains=True)
    engine = await scene.engine("e-0", trains=True)
    assert engine.trainer is not None
    await scene.begin(engine)
    await browser.open(scene.url)
    assert "Training by Trainer calls" not in await browser.reads(BASE, "No training waves")
    state = PolicyState(policy=HOSTILE, base_model=BASE, engine="e-0", step=2, sequence=1234)
    engine.trainer.policies[HOSTILE] = state
    await browser.reads("Training by Trainer calls", "1 policy", HOSTILE, f"on {BASE}", "1,234")
    assert await browser.complaints() == []


PHASE = "return document.querySelector('h1 + .pill')?.textContent"
IN_THE_LIST = "return document.querySelector(`tr[data-key='demo/wave'] .pill`).textContent"


@pytest.mark.parametrize(
    ("failure", "phase"), [(None, "Placing"), (Failure("StorageError", "no answer", terminal=False), "Degraded")]
)
async def test_a_wave_s_phase_is_the_same_in_its_list_and_on_its_own(
    scene: Scene, browser: Browser, failure: Failure | None, phase: str
) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    copies = (
        ("demo/pirate", Tier.DEVICE, None),
        ("demo/robot", Tier.DEVICE, None),
        ("demo/shout", Tier.REMOTE, failure),
    )
    for name, tier, found in copies:
        await scene.place(name, "e-0")
        await engine.hold(name, f"{STORE}/{name}", tier, found)
    serves = WaveRecord("demo/wave", "names", 10, 1, Tier.DEVICE, slots=10, admitted=True)
    await scene.writer.apply(BASE, MapChange(set_waves=(serves,)))
    await scene.begin(engine)
    await browser.open(scene.url)
    await browser.reads("demo/wave", "2 of 10")
    assert await browser.run(IN_THE_LIST) == phase
    await browser.run("document.querySelector(`a[href='#wave=demo%2Fwave']`).click()")
    assert await until(lambda: browser.run(PHASE)) == phase
    await browser.reads("2 of 10")


async def test_a_wave_that_trains_is_drawn(served: Scene, browser: Browser) -> None:
    await browser.open(served.url)
    await browser.reads("demo/w")
    await browser.run("document.querySelector(`a[href='#wave=demo%2Fw']`).click()")
    await browser.reads("Rewards", "1 to 2 of 2 policies", *NAMES, HOSTILE)
    said_of = await browser.run("return document.querySelector('.chart').getAttribute('aria-label')")
    assert said_of == "Mean reward of steps 1 to 3, of 1 policy"
    [curve] = await browser.run(
        "return [...document.querySelectorAll('.chart .each')].map((p) => p.getAttribute('d'))"
    )
    assert curve.count("L") == 2
    assert await browser.run("return document.title") == "demo/w · MinT"
    assert await browser.complaints() == []


async def test_a_policy_of_a_wave_leads_to_the_adapter_that_it_published_on_the_waves_base(
    served: Scene, browser: Browser
) -> None:
    published = Published("sha256:abc", 3, Source("s3://runs/abc"))
    await Training(served).report(reported(NAMES[0], 3, published=published))
    await browser.open(f"{served.url}/#wave=demo%2Fw")
    led = f"return document.querySelector(`.name a[href*='{quote(NAMES[0], safe='')}']`)?.getAttribute('href')"
    assert await until(lambda: browser.run(led)) == f"#{urlencode({'adapter': NAMES[0], 'base': BASE})}"


async def test_an_adapter_is_found_by_keyboard_alone(served: Scene, browser: Browser) -> None:
    await browser.open(served.url)
    await browser.type("#name", "demo/pirate\n")
    await browser.reads("A request sent now goes to e-0", "answers next")
    await browser.run("history.back()")
    await browser.reads("Base models")
    await browser.run("document.querySelector('#name').value = ''")
    await browser.type("#name", "demo/nobody\n")
    await browser.reads("adapter 'demo/nobody'", "check the name")


async def test_a_phone_shows_all_of_it_without_scrolling_sideways(served: Scene) -> None:
    async with browsing(width=360, height=780, dark=True) as phone:
        for path in ("/", "/#wave=demo%2Fw", "/#adapter=demo%2Fpirate"):
            await phone.open(served.url + path)
            await phone.reads("e-0", "Live")
            assert await phone.run("return document.documentElement.scrollWidth") == 360
        dark = await phone.run("return getComputedStyle(document.body).backgroundColor")
        assert dark == "rgb(14, 17, 22)"


async def test_a_key_is_asked_for_kept_for_the_tab_and_forgotten(
    scene: Scene, browser: Browser, tmp_path: Path
) -> None:
    await scene.base()
    await scene.open(LIMITS, DoorSecurity.by(None, mount(tmp_path / "keys", {"team-a": b"s3cret"})), key="s3cret")
    await browser.open(scene.url)
    await browser.reads("This gateway requires a key")
    assert BASE not in await browser.text()
    await browser.type("#key", "wrong\n")
    await browser.reads("holds an unknown key; check it")
    await browser.type("#key", "s3cret\n")
    await browser.reads(BASE, "Live", "Forget key")
    assert await browser.run("return [sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    await browser.open(f"{scene.url}/?again")
    await browser.reads(BASE)
    await browser.run("document.querySelector('#forget').click()")
    await browser.reads("This gateway requires a key")
    assert BASE not in await browser.text()


async def test_a_browser_that_keeps_nothing_of_sites_shows_all_until_the_page_is_left(
    scene: Scene, tmp_path: Path
) -> None:
    await scene.base()
    await scene.open(LIMITS, DoorSecurity.by(None, mount(tmp_path / "keys", {"team-a": b"s3cret"})), key="s3cret")
    async with browsing(keeps=False) as browser:
        await browser.open(scene.url)
        await browser.reads("This gateway requires a key")
        probe = "try { sessionStorage; return ''; } catch (error) { return error.name; }"
        assert await browser.run(probe) == "SecurityError"
        await browser.type("#key", "s3cret\n")
        await browser.reads(BASE, "Live", "Forget key")
        await browser.run("document.querySelector('#forget').click()")
        await browser.reads("This gateway requires a key")
        await browser.type("#key", "s3cret\n")
        await browser.reads(BASE, "Live")
        await browser.open(f"{scene.url}/?again")
        await browser.reads("This gateway requires a key")
        assert not [each for each in await browser.complaints() if "sessionStorage" in each]


async def test_a_defect_of_the_page_is_said_and_it_goes_on_asking(served: Scene, browser: Browser) -> None:
    broken = "window.whole = AbortSignal.timeout; AbortSignal.timeout = () => { throw new TypeError('a defect'); };"
    await browser.begin_with(HURRIED + broken)
    await browser.open(served.url)
    await browser.reads("This page has failed (a defect).", "Retrying in")
    await browser.run("AbortSignal.timeout = window.whole.bind(AbortSignal)")
    assert "has failed" not in await browser.reads(BASE, "Live")


async def test_a_scoped_key_shows_what_it_opens(tenants: Tenants, browser: Browser) -> None:
    await tenants.train(lessons("acme"), lessons("rival"))
    await browser.open(tenants.scene.url)
    await browser.reads("requires a key")
    await browser.type("#key", key_of("acme") + "\n")
    text = await browser.reads("models/base", "acme/own", "acme/wave", "acme/lessons")
    assert "rival" not in text
    assert "Device slots used" not in text, "others' adapters count among them"


async def test_a_gateway_that_ends_is_said_to_be_away_and_found_again(scene: Scene, browser: Browser) -> None:
    await scene.base()
    async with AsyncExitStack() as stack:
        leaving = Scene(scene.redis, stack)
        await leaving.open()
        await until(leaving.gateway.mirror.first_read.is_set)  # before, it answers 503: "Retrying"
        url, port = leaving.url, leaving.gateway.http_port
        await browser.begin_with(HURRIED + LISTENING)
        await browser.open(url)
        await browser.reads(BASE, "Live")
    await browser.reads("The gateway is not responding. The last known state is shown.", "Retrying in", BASE)
    await until(lambda: browser.run("return Math.max(...window.waits) >= 45_000"))
    assert await browser.run("return Math.max(...window.waits) <= 75_000"), "a minute, give or take a quarter"
    async with serve(scene.redis, "127.0.0.1:0", listen("127.0.0.1", port), LIMITS):
        await browser.reads("Live")
        assert "is not responding" not in await browser.text()
        assert await browser.run("return window.announced") == ["Live", "Retrying", "Live"], "and no seconds"


async def test_a_link_that_is_followed_while_the_gateway_is_away_is_not_live_before_it_answers(
    served: Scene, browser: Browser
) -> None:
    with relaying(f"127.0.0.1:{served.gateway.http_port}") as relay:
        await browser.begin_with(HURRIED)
        await browser.open(f"http://127.0.0.1:{relay.port}")
        await browser.reads(BASE, "demo/w", "Live")
        relay.fault = "cut"
        await browser.reads("Retrying in")
        relay.fault = "silent"
        await browser.run("document.querySelector(`a[href='#wave=demo%2Fw']`).click()")
        await browser.reads("Connecting…")
        relay.heal()
        await browser.reads("Rewards", "Live")


async def test_what_is_known_is_shown_while_redis_is_away(
    fragile: Scene, own_redis: RedisProcess, browser: Browser
) -> None:
    await fragile.base()
    await fragile.open()
    await until(lambda: BASE in fragile.gateway.mirror.views)
    own_redis.kill()
    await browser.open(fragile.url)
    await browser.reads(BASE, "Redis is not responding", f"not complete for {BASE}", "Live")
