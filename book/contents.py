"""Hold the contents, ``_toc.yml``, against the files: every notebook is listed, every entry is there.

The build takes the pages that the contents list and no others, so without this a chapter that is not listed
would be left out of the book in silence. ``python -m book.contents`` names what is amiss and the line to add.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from book.execute import ROOT, Layout, write

CONTENTS = "_toc.yml"
SUFFIXES = ("", ".md", ".ipynb", ".rst")  # an entry may leave its file's suffix out


def problems(root: Path = ROOT) -> list[str]:
    """What the contents lack, and what they list in vain, in words that say what to do."""
    try:
        listed = list(_entries(yaml.safe_load((root / CONTENTS).read_text("utf8"))))
    except (OSError, yaml.YAMLError) as error:
        return [f"{CONTENTS} cannot be read: {error}"]
    pages = {entry.removesuffix(".ipynb") for entry in listed}
    found = []
    for path in Layout(root).sources():
        page = f"notebooks/{path.stem}"
        if page in pages:
            continue
        before = max((entry for entry in pages if "notebooks/" <= entry < page), default=None)
        where = f"below `- file: {before}`, indented like it" if before else "among the chapters of its part"
        found.append(f"{CONTENTS} does not list {page}.ipynb; add the line `- file: {page}` {where}")
    for entry in listed:
        if not any((root / f"{entry}{suffix}").is_file() for suffix in SUFFIXES):
            found.append(f"{CONTENTS} lists {entry}, which is no file; add the file or remove the entry")
    return found


def _entries(contents: Any) -> Iterator[str]:
    """The files that the contents name, in order, at any depth."""
    if isinstance(contents, list):
        for part in contents:
            yield from _entries(part)
    elif isinstance(contents, dict):
        for key, value in contents.items():
            if key in {"root", "file"}:
                yield str(value)
            else:
                yield from _entries(value)


def mark_map(drawing: str, contents: str) -> str:
    """The map with each chapter drawn as ready where the contents list it, and dashed where they do not.

    Args:
        drawing: the text of ``book/figures/map.svg``.
        contents: the text of ``_toc.yml``.
    """
    listed = set(re.findall(r"file: notebooks/(\d\d)_", contents))

    def box(match: re.Match[str]) -> str:
        ready = match["number"] in listed
        classes = [name for name in match["classes"].split() if name != "coming"]
        shown = " ".join(classes if ready else [*classes, "coming"])
        state = "ready" if ready else "coming"
        return f'{match["start"]}data-state="{state}"{match["between"]}class="{shown}"'

    return re.sub(
        r'(?P<start><g data-chapter="(?P<number>\d\d)" )data-state="\w+"(?P<between>>\s*<rect )'
        r'class="(?P<classes>[\w ]+)"',
        box,
        drawing,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m book.contents", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--map", action="store_true", help="bring the map of the book up to the contents")
    if parser.parse_args(arguments).map:
        path = ROOT / "book" / "figures" / "map.svg"
        drawing = path.read_text("utf8")
        marked = mark_map(drawing, (ROOT / CONTENTS).read_text("utf8"))
        if marked != drawing:
            write(path, marked)
        return 0
    found = problems()
    for problem in found:
        print(problem)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
