"""What making the book takes and what its pages weigh, kept over time, so that a slowdown is seen.

``python -m book.history --add`` appends an entry to ``book/history.json``: each chapter's time from its
executed copy, and, where the pages are built and a browser is here, what they weigh and how soon they show
something. ``--build`` times ``make book`` before, which is cold where nothing was executed and warm
otherwise. Without either the entry is printed. ``--check`` ends in an error where the newest entry is much
slower or heavier than the one before on the same machine.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import gzip
import http.server
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from book.browser import FLAGS, browser_path
from book.execute import ROOT, Layout, write

HISTORY = Layout(Path()).history
# What is worth a look: a chapter or a build that takes so many times as long, a page so many times as heavy.
SLOWER, HEAVIER = 1.5, 1.25


def chapters(root: Path = ROOT) -> tuple[dict[str, float], str]:
    """Seconds that each chapter took when it was executed, and on what; what was not executed is left out."""
    seconds, hardware = {}, ""
    for source in Layout(root).sources():
        copy = Layout(root).executed / source.name
        if not copy.is_file():
            continue
        run = json.loads(copy.read_text("utf8")).get("metadata", {}).get("recsys_book", {})
        if isinstance(run.get("seconds"), int | float):
            seconds[source.stem] = round(float(run["seconds"]), 1)
            hardware = str(run.get("hardware") or hardware)
    return seconds, hardware


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A server of a folder, and its address."""
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(quiet, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def pages(html: Path) -> dict[str, dict[str, int]]:
    """Of each built page: bytes as a server would send them compressed, and milliseconds to its first paint.

    Returns:
        By page; empty where there are no pages, or no browser to open them.
    """
    names = sorted(path for path in html.rglob("*.html") if path.parent.name in ("book", "notebooks"))
    chromium = browser_path()
    if not names or chromium is None:
        return {}
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return {}
    found = {}
    with served(html) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        for path in names:
            name = path.relative_to(html).as_posix()
            found[name.removesuffix(".html")] = _visit(browser, f"{address}/{name}")
        browser.close()
    return found


def _visit(browser: Any, url: str) -> dict[str, int]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    answers: list[Any] = []
    page.on("response", lambda answer: answers.append(answer))  # a method of a list will not do
    page.goto(url, wait_until="networkidle")
    paint = page.evaluate(
        "() => performance.getEntriesByName('first-contentful-paint').map(entry => entry.startTime)[0] ?? 0"
    )
    weight = {a.url: len(gzip.compress(a.body(), mtime=0)) for a in answers if a.status == 200}
    page.close()
    return {"bytes": sum(weight.values()), "first_paint_ms": round(paint)}


def commit(root: Path = ROOT) -> str | None:
    """The commit that is checked out; None where that is not known."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],  # noqa: S607
            cwd=root,
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def entry(root: Path = ROOT, build_seconds: float | None = None, warm: bool = True) -> dict[str, Any]:
    """What there is to say today."""
    seconds, hardware = chapters(root)
    found = pages(root / "_build" / "html")
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(root),
        "hardware": hardware,
        "chapters_s": seconds,
        "cold_book_s": build_seconds if not warm else None,
        "warm_book_s": build_seconds if warm else None,
        "pages": found,
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The entries, oldest first; none where there is no file.

    Raises:
        ValueError: the file is no history.
    """
    if not path.is_file():
        return []
    found = json.loads(path.read_text("utf8"))
    if not isinstance(found, list) or not all(
        isinstance(one, dict) and {"date", "chapters_s", "pages"} <= one.keys() for one in found
    ):
        raise ValueError(f"{path} is not a list of entries; `git checkout` it, or remove it to start anew")
    return found


def slowdowns(entries: Sequence[dict[str, Any]]) -> list[str]:
    """In what the newest entry is much worse than the one before of the same hardware; in words."""
    if not entries:
        return []
    now = entries[-1]
    before = next((one for one in reversed(entries[:-1]) if one.get("hardware") == now.get("hardware")), None)
    if before is None:
        return []
    found = [
        f"{name} took {seconds:.0f} s, and {before['chapters_s'][name]:.0f} s before"
        for name, seconds in now["chapters_s"].items()
        if seconds > SLOWER * before["chapters_s"].get(name, float("inf")) + 5
    ]
    for kind in ("cold", "warm"):
        new, old = now.get(f"{kind}_book_s"), before.get(f"{kind}_book_s")
        if new and old and new > SLOWER * old:
            found.append(f"a {kind} build took {new:.0f} s, and {old:.0f} s before")
    found += [
        f"{name} weighs {page['bytes']:,} bytes, and {before['pages'][name]['bytes']:,} before"
        for name, page in now["pages"].items()
        if name in before["pages"] and page["bytes"] > HEAVIER * before["pages"][name]["bytes"]
    ]
    return found


def summary(one: dict[str, Any]) -> dict[str, float | None]:
    """An entry in a few numbers: seconds of chapters and builds, bytes of pages, first paint."""
    weights = [page["bytes"] for page in one["pages"].values()]
    paints = [page["first_paint_ms"] for page in one["pages"].values()]
    return {
        "chapters_s": sum(one["chapters_s"].values()) if one["chapters_s"] else None,
        "cold_book_s": one.get("cold_book_s"),
        "warm_book_s": one.get("warm_book_s"),
        "median_bytes": statistics.median(weights) if weights else None,
        "most_bytes": max(weights, default=None),
        "first_paint_ms": statistics.median(paints) if paints else None,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m book.history", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--add", action="store_true", help="append today's entry")
    parser.add_argument("--build", action="store_true", help="time `make book` before")
    parser.add_argument("--check", action="store_true", help="fail where the newest entry is much slower")
    options = parser.parse_args(arguments)
    path = ROOT / HISTORY
    if options.add or not options.check:
        warm, took = bool(chapters()[0]), None
        if options.build:
            started = time.perf_counter()
            subprocess.run(["make", "book"], cwd=ROOT, check=True)  # noqa: S607
            took = round(time.perf_counter() - started, 1)
        today = entry(ROOT, took, warm)
        if options.add:
            write(path, json.dumps([*read(path), today], indent=1) + "\n")
        else:
            print(json.dumps(today, indent=1))
    if options.check:
        found = slowdowns(read(path))
        for problem in found:
            print(problem)
        return 1 if found else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
