"""The executed copies show what a reader should see, and nothing else."""

import json
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest

from book.execute import ROOT, Layout
from book.notebooks import tags
from book.plain import plain_problems

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


# ---- what the run wrote ----

# A value's interval, as `f"{gap:.3f}"` and `f"{report:.3f}"` set it.
INTERVAL = re.compile(r"\[[+−]?[\d.,]+%?,\s[+−]?[\d.,]+%?\]")


def paragraphs_with_too_many_intervals(text):
    return [part for part in re.split(r"\n\s*\n|^[-|]", text, flags=re.M) if len(INTERVAL.findall(part)) > 2]


def silent_cells(notebook):
    """Cells whose code is hidden and which show nothing, the set-up cell apart."""
    return [
        number
        for number, cell in enumerate(notebook.cells, 1)
        if cell.cell_type == "code"
        and {"remove-cell", "remove-input"} & set(tags(cell))
        and "setup" not in tags(cell)
        and ("remove-cell" in tags(cell) or not any(map(is_seen, cell.outputs)))
    ]


def is_seen(output):
    return output.output_type == "stream" or any(not kind.startswith("application/") for kind in output.data)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_what_the_run_wrote_is_plain_and_short(path):
    for number, cell in enumerate(executed(path).cells, 1):
        for output in cell.get("outputs", []) if "say" in tags(cell) else []:
            said = output.get("data", {}).get("text/markdown")
            assert said, f"cell {number} calls chapter.say and shows something else as well"
            assert not plain_problems(said), f"cell {number}: {plain_problems(said)}"
            crowded = paragraphs_with_too_many_intervals(said)
            assert not crowded, (
                f"cell {number}: more than two intervals in a paragraph; make a table: {crowded}"
            )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_hidden_cells_say_something(path):
    notebook = executed(path)
    silent = silent_cells(notebook)
    count = sum(cell.cell_type == "code" for cell in notebook.cells)
    assert len(silent) <= count / 20, f"{len(silent)} of {count} code cells are hidden and silent: {silent}"


def test_the_checks_of_what_was_written_can_fail():
    gap = "+0.012\u00a0[+0.006,\u00a0+0.018]"
    assert not paragraphs_with_too_many_intervals(f"A {gap}, B {gap}.\n\nC {gap}.")
    assert not paragraphs_with_too_many_intervals(f"- A {gap}\n- B {gap}\n- C {gap}")
    assert paragraphs_with_too_many_intervals(f"A {gap}, B {gap},\nC 0.1\u00a0[0.0,\u00a0−0.2].")
    shown = nbformat.v4.new_output("stream", text="x")
    unseen = nbformat.v4.new_output("display_data", {"application/vnd.example+json": "1"})
    cells = [
        nbformat.v4.new_code_cell("x", metadata={"tags": labels}, outputs=outputs)
        for labels, outputs in [
            ([], []),
            (["setup", "remove-cell"], []),
            (["remove-input"], [shown]),
            (["remove-input"], [unseen]),
            (["remove-cell"], [shown]),
            (["remove-input"], []),
        ]
    ]
    assert silent_cells(nbformat.v4.new_notebook(cells=cells)) == [4, 5, 6]
