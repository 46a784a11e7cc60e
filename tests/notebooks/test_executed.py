"""The executed copies show what a reader should see, and nothing else."""

import json
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest

from book.execute import ROOT, Layout
from recsys_lib.chapter.results import ChapterResults

LAYOUT = Layout(ROOT)
SOURCES = LAYOUT.sources()
# Folders of the machine that a copy was made on; a reader has others.
PRIVATE = {
    str(ROOT),
    str(Path.home()),
    sys.prefix,
    os.environ.get("RECSYS_DATA", ""),
    "site-packages",
    "/tmp/",
} - {"", "/"}


def executed(path):
    copy = LAYOUT.executed / path.name
    assert copy.exists(), f"{path.stem} is not executed; run `make execute`"
    return nbformat.read(copy, as_version=4)


def shown(output):
    """Everything of an output that is text."""
    if output.output_type == "stream":
        return output.text
    return json.dumps(
        [value for name, value in output.get("data", {}).items() if not name.startswith("image/png")]
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_outputs_are_fit_to_be_read(path):
    notebook = executed(path)
    for number, cell in enumerate(notebook.cells, 1):
        for output in cell.get("outputs", []):
            assert output.output_type != "error", f"cell {number} shows an error"
            assert output.get("name") != "stderr", f"cell {number} shows a warning: {output.text[:300]}"
            for private in PRIVATE:
                assert private not in shown(output), f"cell {number} shows a path of this machine: {private}"
            if any(name.startswith("image/") for name in output.get("data", {})):
                options = cell.metadata.get("mystnb", {})
                described = options.get("figure", {}).get("caption") and options.get("image", {}).get("alt")
                assert described, f"cell {number} shows a figure without caption or alternative text"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_copy_says_how_it_was_made(path):
    made = executed(path).metadata.recsys_book
    assert made.seconds > 0
    assert made.peak_memory_mb > 0
    assert made.device
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}T.*", made.date)
    assert made.python.startswith("3.")
    assert "torch" in made.versions
    assert re.fullmatch("[0-9a-f]{64}", made.results_sha256)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_what_is_glued_was_recorded(path):
    """Every number that a chapter glues into its own text is in its results file."""
    known = ChapterResults.read(LAYOUT.results / f"{path.stem}.json").glued
    text = "\n".join(cell.source for cell in executed(path).cells if cell.cell_type == "markdown")
    glued = {key.rsplit(":", 1)[0] for key in re.findall(r"\{glue:text\}`([^`]+)`", text) if "::" not in key}
    assert glued <= known.keys()
