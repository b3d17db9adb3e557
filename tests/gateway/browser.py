"""A real headless Chromium with a given window size and colour scheme, whose content tests can read."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from tests.waiting import until

T = TypeVar("T")


class Browser:
    """One window. WebDriver's calls block, so each runs in a thread while the gateway answers in this one."""

    def __init__(self, driver: Chrome) -> None:
        self._driver = driver

    async def do(self, act: Callable[[Chrome], T]) -> T:
        """Return the result of `act`, run in a thread."""
        return await asyncio.to_thread(act, self._driver)

    async def open(self, url: str) -> None:
        await self.do(lambda driver: driver.get(url))

    async def begin_with(self, script: str) -> None:
        """Run a script in each page opened from now on, before the page's own scripts."""
        name = "Page.addScriptToEvaluateOnNewDocument"
        await self.do(lambda driver: driver.execute_cdp_cmd(name, {"source": script}))

    async def run(self, script: str, *arguments: object) -> Any:
        """Run a script in the page and return its result."""
        return await self.do(lambda driver: driver.execute_script(script, *arguments))

    async def text(self) -> str:
        """Return the page's visible text."""
        return str(await self.run("return document.body.innerText"))

    async def reads(self, *words: str) -> str:
        """Wait until the text contains all of `words`, and return it."""

        async def look() -> str | None:
            text = await self.text()
            return text if all(word in text for word in words) else None

        try:
            return await until(look)
        except TimeoutError:
            raise AssertionError(f"{words} are not in:\n{await self.text()}\n{await self.complaints()}") from None

    async def type(self, selector: str, keys: str) -> None:
        """Type into an element."""
        await self.do(lambda driver: driver.find_element("css selector", selector).send_keys(keys))

    async def complaints(self) -> list[str]:
        """Return what the console has logged since the last call: errors and violations of the page's policy."""
        found: list[dict[str, Any]] = await self.do(lambda driver: driver.get_log("browser"))  # type: ignore[no-untyped-call]
        return [str(each["message"]) for each in found]


@asynccontextmanager
async def browsing(
    *, width: int = 1280, height: int = 900, dark: bool = False, keeps: bool = True
) -> AsyncIterator[Browser]:
    """Yield a browser until the block ends; `keeps`: whether it lets sites store data."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert browser, "chromium is missing; `make tools` installs it"
    assert driver, "chromedriver is missing; `make tools` installs it"
    options = ChromeOptions()
    options.binary_location = browser
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run"):
        options.add_argument(f"--{flag}")
    if not keeps:
        options.add_experimental_option("prefs", {"profile.default_content_setting_values.cookies": 2})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = await asyncio.to_thread(lambda: Chrome(options=options, service=Service(driver)))
    try:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        yield Browser(chrome)
    finally:
        await asyncio.to_thread(chrome.quit)
