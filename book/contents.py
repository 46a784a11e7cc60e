"""Hold the contents, ``_toc.yml``, against the files: every notebook is listed, every entry is there.

The build takes the pages that the contents list and no others, so without this a chapter that is not listed
would be left out of the book in silence. ``python -m book.contents`` names what is amiss and the line to add.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from book.execute import ROOT, Layout

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


def main() -> int:
    """Run the command; returns the exit code."""
    found = problems()
    for problem in found:
        print(problem)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
