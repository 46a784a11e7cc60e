"""Number figures, tables and exercises by chapter: the third figure of chapter 4 is figure 4.3.

The number of a chapter is that of its file, ``notebooks/04_bpr.ipynb``, so that it stays the same while
chapters before it are still to come. Pages that are no chapter count on their own, without a prefix.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

Numbers = dict[str, dict[str, dict[str, tuple[int, ...]]]]


def chapter_number(docname: str) -> int | None:
    """Return 4 for ``notebooks/04_bpr``, None for a page that is no chapter."""
    match = re.match(r"(\d\d)_", PurePosixPath(docname).name)
    return int(match[1]) if match else None


def by_chapter(numbers: Numbers) -> Numbers:
    """Count anew on every page, in the order of the page, with the chapter's number in front.

    Args:
        numbers: page -> kind (``figure``, ``table``, ``exercise`` ...) -> id -> number, as Sphinx gives them.
    """
    renumbered: Numbers = {}
    for docname, kinds in numbers.items():
        chapter = chapter_number(docname)
        prefix = () if chapter is None else (chapter,)
        renumbered[docname] = {
            kind: {
                id_: (*prefix, place) for place, id_ in enumerate(sorted(ids, key=ids.__getitem__), start=1)
            }
            for kind, ids in kinds.items()
        }
    return renumbered


def restore(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Give Sphinx its own numbers back, to compare with the new ones (``env-get-updated``, before it)."""
    env.toc_fignumbers = vars(env).get("book_plain_numbers", {})
    return []


def renumber(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Replace Sphinx's numbers; return the pages where one changed (``env-get-updated``, after it)."""
    before: Numbers = vars(env).get("book_numbers", {})
    vars(env)["book_plain_numbers"] = env.toc_fignumbers
    vars(env)["book_numbers"] = env.toc_fignumbers = by_chapter(env.toc_fignumbers)
    return [docname for docname, kinds in env.toc_fignumbers.items() if kinds != before.get(docname)]


def setup(app: Sphinx) -> dict[str, bool | int]:
    """Register the extension."""
    app.connect("env-get-updated", restore, priority=100)
    app.connect("env-get-updated", renumber, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
