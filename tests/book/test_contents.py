"""The contents list every notebook and nothing that is not there."""

import shutil
import subprocess

import nbformat
import pytest
from nbformat.v4 import new_notebook

from book import notebooks
from book.contents import ROOT, problems

CONTENTS = """\
format: jb-book
root: book/index
parts:
  - caption: Chapters
    chapters:
      - file: notebooks/01_a
        sections:
          - file: notebooks/02_b.ipynb
      - url: https://example.org
        title: Elsewhere
"""


@pytest.fixture
def book(tmp_path):
    for name in ("book/index.md", "notebooks/01_a.ipynb", "notebooks/02_b.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "_toc.yml").write_text(CONTENTS)
    return tmp_path


def test_the_book_lists_its_chapters():
    assert problems() == []


def test_contents_in_order(book):
    assert problems(book) == []


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("05_x", "below `- file: notebooks/02_b`, indented like it"),
        ("01_b", "below `- file: notebooks/01_a`, indented like it"),
        ("00_x", "among the chapters of its part"),
    ],
)
def test_a_chapter_that_is_not_listed(book, name, where):
    (book / "notebooks" / f"{name}.ipynb").write_text("")
    (book / "notebooks" / ".hidden.ipynb").write_text("")
    expected = (
        f"_toc.yml does not list notebooks/{name}.ipynb; add the line `- file: notebooks/{name}` {where}"
    )
    assert problems(book) == [expected]


@pytest.mark.parametrize("name", ["book/index.md", "notebooks/01_a.ipynb", "notebooks/02_b.ipynb"])
def test_an_entry_without_a_file(book, name):
    (book / name).unlink()
    (found,) = problems(book)
    assert f"_toc.yml lists {name.partition('.')[0]}" in found
    assert "which is no file; add the file or remove the entry" in found


@pytest.mark.parametrize("text", [None, "parts: [", "parts:\n\t- a"])
def test_contents_that_cannot_be_read(book, text):
    (book / "_toc.yml").unlink()
    if text:
        (book / "_toc.yml").write_text(text)
    (found,) = problems(book)
    assert found.startswith("_toc.yml cannot be read: ")


def test_the_check_of_the_notebooks_includes_the_contents(book, capsys):
    for path in (book / "notebooks").iterdir():
        path.unlink()
    shutil.copy(ROOT / "pyproject.toml", book)
    assert notebooks.main(["--root", str(book), "--check"]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2
    assert "_toc.yml lists notebooks/01_a, which is no file" in shown[0]
    # bringing notebooks into their tidy form is no matter of the contents
    (book / "notebooks" / "03_c.ipynb").write_text(nbformat.writes(new_notebook()))
    assert notebooks.main(["--root", str(book)]) == 0


@pytest.mark.parametrize("target", ["book", "html"])
def test_the_contents_are_checked_before_anything_is_executed_or_built(target):
    """What would be missing from the book is said at once, not after all notebooks have run."""
    shown = subprocess.run(
        ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    steps = [shown.find(f"book.{step}") for step in ("contents", "execute")]
    assert -1 < steps[0] < steps[1] < shown.find("jupyter-book build")
