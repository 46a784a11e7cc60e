"""What all tests share: one browser for a run, and Ctrl-C as in the foreground."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from book.browser import FLAGS, NAMES, browser_path

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# What a shell starts in the background ignores SIGINT, and so would what the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium of this machine; the variable BOOK_BROWSER may name another one.

    One for all tests of a process: playwright's event loop is the thread's until the browser is closed, so
    that a second one cannot start beside it. A test that wants its own (`asyncio.run`) takes another thread.
    """
    path = browser_path()
    if path is None:
        message = (
            f"no browser found (looked for {', '.join(NAMES)}); install Chromium with the system's packages, "
            "for example `apt-get install chromium`, or name one in BOOK_BROWSER"
        )
        if os.environ.get("CI"):  # nothing may go unchecked there
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()
