"""What the tests of the live page share: a browser for each module, and in it a page for each test.

`page_browser` skips whatever imports it where there is no browser, so it is imported only where one is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.server.page_browser import LivePage


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from tests.server.page_browser import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture
def live(browser: Browser) -> Iterator[LivePage]:
    from tests.server.page_browser import live_page

    with live_page(browser) as live:
        yield live
