"""A real browser, and the measuring page opened in it as a person would."""

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, sync_playwright

# read before the fixture that hides TAILOR_* from the tests
_NAMED = os.environ.get("TAILOR_CHROMIUM")
_INSTALLED = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP phone.test 127.0.0.1",  # plain http that is not localhost
    # WebGPU on the processor, where there is no GPU
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
]
BRIEF = {
    "efforts": {
        "warmupRuns": 2,
        "warmupSeconds": 0,
        "minSamples": 10,
        "minSeconds": 0,
        "maxSeconds": 20,
        "interval": 1,
    },
    "sliceMs": 0.5,
    "sliceTicks": 1,
    "anchorTicks": 1,
    "anchorTolerance": 1000,
    "openingSeconds": 0.02,
    "decileTolerance": 1000,
    "driftTolerance": 1000,
    "retrySeconds": 0.05,
    "pollSeconds": 0.5,
}
"""Rules for tests that look at everything but the numbers: a task takes some milliseconds."""

_CORES = "Object.defineProperty(navigator, 'hardwareConcurrency', { value: N_CORES });"
_n_cores = itertools.count(2)  # each visit is a device of its own, with nothing measured yet


@dataclass
class Visit:
    """The page of one code in a browser of its own: what it shows, asks for and complains of."""

    context: BrowserContext
    page: Page
    complaints: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)

    def start(self, name: str = "a phone", runtime: str | None = None) -> None:
        """Fill the form and press Start."""
        self.reach("ready")
        self.page.get_by_label("Name of this device").fill(name)
        if runtime:
            self.page.locator(f"input[value={runtime}]").check()
        self.page.get_by_role("button", name="Start").click()

    def pause(self) -> None:
        """Press Pause and wait until the task at hand is done and uploaded."""
        self.page.get_by_role("button", name="Pause").click()
        self.reach("paused")

    def reach(self, state: str) -> None:
        """Wait until the page is in that state."""
        self.page.wait_for_selector(f"body[data-state={state}]")

    def read(self, text: str) -> None:
        """Wait until the page shows that text."""
        self.page.get_by_text(text).first.wait_for()

    def reach_count(self, n: int) -> None:
        """Wait until the page says that `n` tasks are measured."""
        script = "n => Number(document.getElementById('count').textContent.split(' ')[0]) >= n"
        self.page.wait_for_function(script, arg=n)

    @property
    def count(self) -> int:
        """How many tasks the page says are measured."""
        return int(self.page.inner_text("#count").split()[0])

    @property
    def identity(self) -> dict:
        """Who the page is for the server."""
        return self.page.evaluate("tailor.store.read('identity')")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window; the test fails where none can be had."""
    installed = next(filter(None, map(shutil.which, _INSTALLED)), None)
    with sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(
                executable_path=_NAMED or installed, args=_FLAGS, headless=True
            )
        except Error as error:
            pytest.fail(
                "the measuring page is tested in Chromium, and none could be started. Get one "
                "with `apt install chromium` or `playwright install chromium`, or name one in "
                f"TAILOR_CHROMIUM.\n{error}"
            )
        yield started
        started.close()


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., Visit]]:
    """`visit(url, code)` opens the page of that code; rules may be changed by name."""
    opened: list[BrowserContext] = []

    def go(url: str, code: str, *, routes=None, efforts=None, **changes: object) -> Visit:
        rules = {**BRIEF, **changes, "efforts": {**BRIEF["efforts"], **(efforts or {})}}
        context = browser.new_context(viewport={"width": 390, "height": 844})
        context.set_default_timeout(60_000)
        opened.append(context)
        page = context.new_page()
        made = Visit(context, page)
        page.on(
            "console",
            lambda line: made.complaints.append(line.text) if line.type == "error" else None,
        )
        page.on("pageerror", lambda error: made.complaints.append(str(error)))
        context.on("request", lambda request: made.requested.append(request.url))
        for pattern, answer in (routes or {}).items():
            context.route(pattern, answer)
        context.add_init_script(f"window.__tailorProtocol = {json.dumps(rules)}")
        context.add_init_script(_CORES.replace("N_CORES", str(next(_n_cores))))
        page.goto(f"{url}/measure/{code}")
        return made

    yield go
    for context in opened:
        context.close()
