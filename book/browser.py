"""The browser that opens the pages: a headless Chromium of this machine."""

from __future__ import annotations

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def browser_path() -> str | None:
    """Where it is, or None; the variable BOOK_BROWSER may name another one."""
    return os.environ.get("BOOK_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
