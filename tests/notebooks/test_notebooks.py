"""Every committed notebook has the shape of a chapter; and the checks that say so can fail."""

import ast
import copy
import json
import re
import sys
import tomllib

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from book import notebooks
from book._ext.header_card import colab_url
from book.notebooks import (
    ROOT,
    check,
    colab_address,
    draws,
    notebook_files,
    problems,
    repository,
    says,
    setup_source,
    tidy,
    title,
)
from book.plain import without_colab_link

FILES = notebook_files()
IPYTHON = re.compile(r"^[%!].*$", re.M)
FIGURE = {
    "mystnb": {"figure": {"caption": "A line.", "name": "fig-line"}, "image": {"alt": "A line that falls."}}
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_notebook(path):
    assert not check(path), "\n" + "\n".join(check(path))


def test_there_are_notebooks_and_their_titles_differ():
    titles = [title(nbformat.read(path, as_version=4)) for path in FILES]
    assert len(titles) >= 1
    assert all(titles)
    assert len(set(titles)) == len(titles)


def test_figures_and_exercises_have_names_of_their_own_in_the_whole_book():
    names = []
    for path in FILES:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            figure = cell.metadata.get("mystnb", {}).get("figure")
            names += [figure["name"]] if figure else []
        names += notebooks.exercises(notebook)
    assert sorted(names) == sorted(set(names))


def chapter():
    """A notebook that has everything a chapter needs."""
    return new_notebook(
        cells=[
            new_markdown_cell("# A chapter\n\nAbout this."),
            new_markdown_cell("## What you will be able to do\n\n- Rank."),
            new_code_cell(setup_source(), metadata={"tags": ["setup", "remove-cell"]}),
            new_code_cell(
                'dataset = "100k"  # one\nseed = 0  # two\ndevice = "auto"  # three\nbudget = 3  # four',
                metadata={"tags": ["parameters"]},
            ),
            new_code_cell("plt.plot([1, 0])", metadata=copy.deepcopy(FIGURE)),
            new_code_cell('chapter.say(f"It reaches {x:.2f}.")'),
            new_markdown_cell("By hand: 0.5 and 0.25.", metadata={"tags": ["toy"]}),
            new_code_cell("chapter.finish()"),
            new_markdown_cell("### Exercise: Title\n\n*Easy.* Do it.", metadata={"tags": ["exercise"]}),
            new_markdown_cell("### Solution\n\nSo.", metadata={"tags": ["solution"]}),
            new_code_cell("1 + 1", metadata={"tags": ["solution"]}),
            new_markdown_cell("## Sources"),
        ]
    )


def test_the_example_is_in_order():
    assert problems(chapter()) == []


def spoil(number, **changes):
    def change(notebook):
        for key, value in changes.items():
            notebook.cells[number][key] = value

    return change


def drop(number):
    return lambda notebook: notebook.cells.pop(number)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(0), "starts with the title"),
        (drop(1), "What you will be able to do"),
        (drop(2), "first code cell is the set-up cell"),
        (drop(3), "second code cell is tagged parameters"),
        (spoil(3, source="dataset = 1  # a\nseed = 0  # b\ndevice = 1  # c"), "does not set budget"),
        (
            spoil(3, source="dataset = 1  # a\nseed = 0  # b\ndevice = 1\nbudget = 1  # d"),
            "device has no comment",
        ),
        (spoil(4, metadata={}), "cell 5 draws a figure"),
        (lambda n: n.cells[4].metadata.mystnb.pop("image"), "cell 5 draws a figure"),
        (lambda n: n.cells[4].metadata.mystnb.figure.pop("caption"), "cell 5 draws a figure"),
        (lambda n: n.cells[4].metadata.mystnb.figure.update(name="line"), "does not start with fig-"),
        (lambda n: n.cells[4].metadata.mystnb.image.update(alt="A line."), "repeats the caption"),
        (
            lambda n: n.cells[4].metadata.mystnb.figure.update(caption="It ends at 0.5."),
            "number '0.5' is typed",
        ),
        (lambda n: n.cells[4].metadata.mystnb.image.update(alt="It ends at 0.5."), "number '0.5' is typed"),
        (lambda n: n.cells.insert(5, copy.deepcopy(n.cells[4])), "'fig-line' is used 2 times"),
        (spoil(4, source="a = 1\n" * 50), "median code cell has"),
        (
            spoil(1, source="## What you will be able to do\n\nIt reaches 0.07."),
            "cell 2: the number '0.07' is typed",
        ),
        (spoil(6, metadata={}), "cell 7: the number '0.5' is typed"),
        (
            spoil(1, source="## What you will be able to do\n\nIt is fitted in less than a second."),
            "cell 2: 'less than a second' is a measured",
        ),
        (
            lambda n: n.cells[4].metadata.mystnb.figure.update(caption="Half the cost."),
            "'Half the cost' is a",
        ),
        (spoil(4, source='chapter.claim("a", "A.", "holds", evidence="0.5 more")'), "number '0.5' is typed"),
        (spoil(7, source="pass"), "chapter.finish() is called 0 times"),
        (spoil(4, source="chapter.finish()"), "chapter.finish() is called 2 times"),
        (spoil(7, metadata={"tags": ["raises-exception"]}), "must not end in one"),
        (spoil(4, source='chapter.say(f"about {x:.2f} or 0.5")'), "number '0.5' is typed"),
        (spoil(4, source='gap.says(above="0.5 more", below="b", otherwise="c")'), "number '0.5' is typed"),
        (spoil(5, source='chapter.say("x")\nplt.show()'), "cell 6 calls chapter.say and draws"),
        (spoil(5, metadata={"tags": ["say"]}, source="x"), "cell 6 is tagged say and does not call"),
        (spoil(6, source="As {cite}`x` says."), "cell 7: a role: {cite}"),
        (spoil(6, source="[x](https://doi.org/10.1/x)"), "cell 7: https://doi.org/10.1/x leads to a paper"),
        (spoil(8, metadata={}), "a chapter has an exercise"),
        (spoil(8, source="Do it."), "cell 9: an exercise starts with the heading"),
        (
            spoil(8, source="### Exercise: T\n\n*Easy.* Do.\n\n### Hint"),
            "cell 9: a heading in the middle of a box",
        ),
        (drop(9), "cell 10: a solution starts with a Markdown cell"),
        (spoil(9, source="So."), "cell 10: a solution starts with a Markdown cell"),
        (lambda n: n.cells.insert(9, copy.deepcopy(n.cells[8])), "exercise of cell 9 has no solution"),
        (lambda n: n.cells.insert(12, copy.deepcopy(n.cells[9])), "cell 13: this solution has no exercise"),
        (lambda n: n.cells.insert(10, new_markdown_cell("Aside.")), "cell 12: a solution starts with"),
        (lambda n: n.cells.__delitem__(slice(9, 11)), "exercise of cell 9 has no solution"),
    ],
)
def test_what_is_missing_is_named(change, message):
    notebook = chapter()
    change(notebook)
    if "median" in message:  # one long cell among few is no rule broken
        notebook.cells = [
            *notebook.cells[:5],
            *[copy.deepcopy(notebook.cells[4]) for _ in range(9)],
            *notebook.cells[5:],
        ]
    found = problems(notebook)
    assert any(message in problem for problem in found), found


def test_a_cell_that_says_something_is_hidden_everywhere():
    notebook = chapter()
    notebook.cells[5].metadata = {"tags": ["solution"]}
    cell = json.loads(tidy(notebook))["cells"][5]
    assert cell["metadata"] == {
        "tags": ["solution", "say", "remove-input"],  # the book
        "jupyter": {"source_hidden": True},  # JupyterLab
        "cellView": "form",  # Colab
    }
    assert "".join(cell["source"]) == '# @title Text that this run wrote\nchapter.say(f"It reaches {x:.2f}.")'
    notebook.cells[5].source = '#@title What it reaches\nif x:\n    chapter.say(f"{x:.2f}")'
    assert json.loads(tidy(notebook))["cells"][5]["source"][0] == "#@title What it reaches\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('chapter.say("a")', True),
        ('if x:\n    chapter.say("a")', True),
        ('def f():\n    chapter.say("a")', True),
        ('print("chapter.say()")', False),
        ("other.say()", False),
        ("%time x", False),
    ],
)
def test_which_cells_say_something(source, expected):
    assert says(source) is expected


def test_the_first_cell_leads_to_colab():
    notebook = chapter()
    tidied = nbformat.reads(tidy(notebook, name="05_new"), as_version=4)
    first = tidied.cells[0].source
    assert first.startswith("# A chapter\n\nAbout this.\n\n[Open this chapter on Colab](https://colab.")
    assert first.endswith("/notebooks/05_new.ipynb)")
    assert without_colab_link(first) == "# A chapter\n\nAbout this."
    assert tidy(tidied, name="05_new") == nbformat.writes(tidied) + "\n"
    assert colab_address("05_new") == colab_url(repository(), "notebooks/05_new")  # the page's own button


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("fig, ax = plt.subplots()", True),
        ("if x:\n    plt.show()", True),
        ("def draw():\n    plt.subplots()", False),
        ("draw = lambda: plt.show()", False),
        ("frame.plot()", False),
        ("%matplotlib inline", False),
    ],
)
def test_which_cells_draw(source, expected):
    assert draws(source) is expected


def test_tidying_keeps_what_is_meant_and_nothing_else(tmp_path):
    notebook = chapter()
    wanted = tidy(copy.deepcopy(notebook))
    notebook.metadata = {"kernelspec": {"name": "mine", "display_name": "Mine"}, "widgets": {"a": 1}}
    for cell in notebook.cells:
        cell.metadata["collapsed"] = True
        cell.source += "\n\n"
        if cell.cell_type == "code":
            cell.execution_count = 7
            cell.outputs = [new_output("stream", text="out")]
    notebook.cells[2].source = "anything"
    assert tidy(notebook) == wanted
    assert tidy(nbformat.reads(wanted, as_version=4)) == wanted
    file = tmp_path / "05_a.ipynb"
    file.write_text(tidy(notebook, name="05_a"))
    assert check(file) == []


def test_ids_are_kept_and_mended():
    notebook = chapter()
    kept = notebook.cells[5].id
    notebook.cells[6].id = kept
    notebook.cells[7].pop("id")
    cells = json.loads(tidy(notebook))["cells"]
    ids = [cell["id"] for cell in cells]
    assert ids[2:4] == ["setup", "parameters"]
    assert ids[5] == kept
    assert len(set(ids)) == len(ids)


def test_what_is_not_tidy_or_not_a_notebook_is_named(tmp_path):
    file = tmp_path / "01_a.ipynb"
    file.write_text("{")
    assert "not a valid notebook" in check(file)[0]
    file.write_text(nbformat.writes(chapter()).replace("A chapter", "Another"))
    assert check(file) == ["it is not in its tidy form; run `make tidy`"]
    notebook = chapter()
    notebook.cells[4].outputs = [new_output("stream", text="out")]
    file.write_text(nbformat.writes(notebook))
    assert "it holds outputs" in check(file)[0]


def test_the_address_comes_from_pyproject_toml(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nRepository = "https://example.org/fork"\n')
    notebook = chapter()
    source = "".join(json.loads(tidy(notebook, tmp_path))["cells"][2]["source"])
    assert ' @ git+https://example.org/fork"' in source
    assert "example.org" not in setup_source(ROOT)


# What a hosted notebook has before its first cell, and what chapter 2 looks for before it is imported.
HOSTED = {"IPython", "scipy", "sklearn"} | {"sentence_transformers"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_lone_file_installs_what_it_imports(path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
    extras = re.search(r"recsys-lib\[([\w,]+)\] @", setup_source(ROOT))[1].split(",")
    given = [
        *project["dependencies"],
        *(name for x in extras for name in project["optional-dependencies"][x]),
    ]
    given = {re.match(r"[\w-]+", name)[0].lower().replace("-", "_") for name in given}
    modules = {"faiss": "faiss_cpu"}
    cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    nodes = [node for source in cells for node in ast.walk(ast.parse(IPYTHON.sub("", source)))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    names = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - HOSTED - {"recsys_lib"}
    assert not {modules.get(name, name) for name in names} - given
