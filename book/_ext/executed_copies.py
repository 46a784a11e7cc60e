"""Build the pages of notebooks from their executed copies.

The committed notebooks hold no outputs. ``book/execute.py`` runs them and keeps the executed copies under
``_build/executed``. When Sphinx reads a notebook, this extension hands it the text of the copy instead, so
that addresses, launch buttons and downloads keep pointing at the committed source.

Four things that an incremental build would get wrong are seen to:

* a copy that is missing, or older than what it was made from, is a warning on every build, not only when the
  page is read again;
* a page is read again when its copy or its results file changes;
* every page is written again when the contents, which it shows in its side bar, have changed;
* a build that was interrupted or had warnings leaves nothing that the next build takes for finished.
"""

from __future__ import annotations

from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

from book.execute import stale

logger = logging.getLogger(__name__)

UNFINISHED = "unfinished"


def is_notebook(env: BuildEnvironment, docname: str) -> bool:
    """Tell whether a page is made from a notebook."""
    return Path(env.doc2path(docname)).suffix == ".ipynb"


def copy_of(app: Sphinx, docname: str) -> Path:
    """Return where the executed copy of a notebook lies."""
    return Path(app.srcdir, app.config.executed_dir, f"{docname}.ipynb")


def results_of(app: Sphinx, docname: str) -> Path:
    """Return where the results file of a chapter lies."""
    return Path(app.srcdir, app.config.results_dir, f"{Path(docname).name}.json")


def check_copies(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """Warn of every copy that is missing or stale (``env-before-read-docs``, on every build)."""
    for docname in sorted(env.found_docs):
        if is_notebook(env, docname) and (reason := stale(env.doc2path(docname), app.srcdir)):
            logger.warning(
                "the executed copy cannot be shown: %s; run `make book`",
                reason,
                location=docname,
                type="book",
            )


def swap(app: Sphinx, docname: str, source: list[str]) -> None:
    """Hand Sphinx the executed copy of a notebook (``source-read``)."""
    if not is_notebook(app.env, docname):
        return
    copy, results = copy_of(app, docname), results_of(app, docname)
    app.env.note_dependency(str(copy))
    if results.is_file():
        app.env.note_dependency(str(results))
    if copy.is_file():
        source[0] = copy.read_text("utf8")


def contents_changed(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Return all pages if the titles in their side bars have changed (``env-updated``)."""
    titles = {docname: title.astext() for docname, title in env.titles.items()}
    before = vars(env).get("book_titles", titles)
    vars(env)["book_titles"] = titles
    return sorted(env.found_docs) if titles != before else []


def begin(app: Sphinx, config: Config) -> None:
    """Start afresh after a build that did not finish cleanly (``config-inited``: no state is loaded yet)."""
    folder = Path(app.doctreedir)
    marker = folder / UNFINISHED
    if marker.exists():
        (folder / "environment.pickle").unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()


def end(app: Sphinx, error: Exception | None) -> None:
    """Take the mark of an unfinished build away if there was no error or warning (``build-finished``)."""
    if error is None and not app._warncount:
        Path(app.doctreedir, UNFINISHED).unlink(missing_ok=True)


def setup(app: Sphinx) -> dict[str, bool | int]:
    """Register the extension."""
    app.add_config_value("executed_dir", "_build/executed", "env", str)
    app.add_config_value("results_dir", "_build/results", "env", str)
    app.connect("config-inited", begin)
    app.connect("env-before-read-docs", check_copies)
    app.connect("source-read", swap)
    app.connect("env-updated", contents_changed)
    app.connect("build-finished", end, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
