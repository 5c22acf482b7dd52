"""The live page in a headless Chromium: opening it, finding its parts, and what must never happen in it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.server.page_server import PATIENCE_S, ScriptedServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Dialog, Locator, Page, Request

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# What imports this module is skipped with it.
playwright = pytest.importorskip(
    "playwright.sync_api", reason="the live page is tested in a browser, which needs the package playwright"
)
if CHROMIUM is None:
    pytest.skip(
        "the live page is tested in a browser: install Debian's package chromium, or Google Chrome",
        allow_module_level=True,
    )
playwright.expect.set_options(timeout=PATIENCE_S * 1000)

# A test on a busy machine may take longer between two snapshots than a page takes for silence.
_PATIENCE = """
const timeout = setTimeout;
globalThis.setTimeout = (call, delay_ms) => timeout(call, delay_ms < 5000 ? delay_ms : delay_ms * 20);
"""
_REPORT_VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) => {
  console.error(`policy violated: ${event.violatedDirective} by ${event.blockedURI} at ${event.sourceFile}`);
});
"""


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser of its own, from the system's package."""
    # As root, which is what a container has, Chromium has no sandbox to offer.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with (
        playwright.sync_playwright() as running,
        contextlib.closing(running.chromium.launch(executable_path=CHROMIUM, args=arguments)) as browser,
    ):
        yield browser


@contextlib.contextmanager
def live_page(browser: Browser, *, patient: bool = True, **options: Any) -> Iterator[LivePage]:
    """The page of a scripted server, in a fresh profile; it must not have had anything to complain of.

    Args:
        browser: that of the test's module.
        patient: whether the page waits much longer than it does for readers before it takes silence for a loss.
        options: of the profile.
    """
    with ScriptedServer.running() as server, contextlib.closing(browser.new_context(**options)) as context:
        context.set_default_timeout(PATIENCE_S * 1000)
        live = LivePage(context.new_page(), server)
        live.page.add_init_script(_PATIENCE if patient else "")
        yield live
        assert live.complaints == []


class LivePage:
    """The page as a reader has it, with what its console said.

    Attributes:
        page: the browser's own.
        complaints: errors and warnings, of scripts, of the policy; dialogs; requests to elsewhere.
    """

    def __init__(self, page: Page, server: ScriptedServer) -> None:
        self.page = page
        self.server = server
        self.complaints: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("request", self._request)
        page.on("dialog", self._dialog)
        page.add_init_script(_REPORT_VIOLATIONS)

    def _console(self, message: ConsoleMessage) -> None:
        # That an answer was not 200 is told by the browser itself, and some tests are about just that.
        refused = message.text.startswith("Failed to load resource") and message.location["url"].endswith("/events")
        if message.type in ("error", "warning") and not refused:
            self.complaints.append(f"{message.type}: {message.text}")

    def _dialog(self, dialog: Dialog) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _request(self, request: Request) -> None:
        if urlsplit(request.url).scheme != "data" and not request.url.startswith(self.server.url):
            self.complaints.append(f"request to {request.url}")

    def shows(self, *script: Any) -> None:
        """Sends snapshots, and waits until the last one is what is shown."""
        uptime = self.page.locator("#uptime")
        after = _duration(script[-1]["server"]["uptime_s"])
        playwright.expect(uptime).not_to_have_text(after)  # else nothing would be waited for
        self.server.send(*script)
        playwright.expect(uptime).to_have_text(after)

    def open(self, *script: Any) -> None:
        """Goes to the page, and shows snapshots if there are any."""
        self.page.goto(self.server.url)
        if script:
            self.shows(*script)

    def group(self, index: int) -> Locator:
        """The row of a group."""
        return self.page.locator(".group").filter(
            has=self.page.get_by_role("heading", name=f"Group {index}", exact=True)
        )

    def model(self, name: str) -> Locator:
        """The tile of a model."""
        return self.page.locator(".model").filter(has=self.page.get_by_role("heading", name=name, exact=True))

    def names(self) -> list[str]:
        """The models that are shown, in order."""
        return self.page.locator(".model:visible h3").all_text_contents()


def _duration(seconds: float) -> str:
    """Less than a day in the page's words."""
    minutes, rest_s = divmod(int(seconds), 60)
    hours, rest_min = divmod(minutes, 60)
    if hours:
        return f"{hours} h {rest_min} min"
    return f"{minutes} min {rest_s} s" if minutes else f"{rest_s} s"


def field(part: Locator, name: str) -> Locator:
    """A piece of text, by the name that the page's templates give it."""
    return part.locator(f"[data-field='{name}']")
