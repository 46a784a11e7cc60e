"""Keep the committed notebooks tidy, and hold them to the shape of a chapter.

``python -m book.notebooks`` rewrites every notebook in its tidy form: no outputs, no metadata that a program
left behind, stable cell ids, and the shared set-up cell with the repository's address, which is decided in
``pyproject.toml``. With ``--check`` it changes nothing and names what is not as it should be, in the
notebooks and in the contents that list them; what that is, ``CONTRIBUTING.md`` says.
"""

import argparse
import ast
import hashlib
import re
import statistics
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from book import contents
from book.plain import (
    EXERCISE,
    SOLUTION,
    SOLUTION_HEADING,
    heading_problems,
    plain_problems,
    with_colab_link,
)
from book.prose import typed_claims, typed_numbers

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = ("dataset", "seed", "device", "budget")
MEDIAN_LINES = 6
GOAL = "what you will be able to do"

SETUP = """\
# Set-up: install the book's library where it is missing, as on Colab.
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("recsys_lib") is None:
    library = "recsys-lib[images,search] @ git+{repository}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.check_call([*pip, os.environ.get("RECSYS_LIB", library)])
    importlib.invalidate_caches()"""

# How the code of a cell that calls `chapter.say` is hidden: in the book, in JupyterLab, on Colab.
SAY_TAGS = ("say", "remove-input")
SAY_METADATA = {"jupyter": {"source_hidden": True}, "cellView": "form"}
SAY_TITLE = "# @title Text that this run wrote"  # Colab shows it in place of the code

# Functions of pyplot that draw, or show what was drawn.
_DRAWING = {
    "bar", "barh", "boxplot", "figure", "hist", "imshow", "matshow", "plot", "scatter", "show", "step",
    "stackplot", "subplot_mosaic", "subplots", "violinplot",
}  # fmt: skip


def repository(root: Path = ROOT) -> str:
    """The repository's address, decided in ``pyproject.toml``."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf8"))["project"]
    return str(project["urls"]["Repository"])


def setup_source(root: Path = ROOT) -> str:
    """The source of the set-up cell, the same in every notebook."""
    return SETUP.format(repository=repository(root))


def notebook_files(root: Path = ROOT) -> list[Path]:
    """The committed notebooks, in the order of their names."""
    return sorted(path for path in (root / "notebooks").glob("*.ipynb") if not path.name.startswith("."))


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells of code, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: NotebookNode) -> list[str]:
    """A cell's tags."""
    return list(cell.metadata.get("tags", []))


def title(notebook: NotebookNode) -> str:
    """The text of the first heading, or nothing."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (match := re.match(r"#\s+(.+)", cell.source)):
            return match[1].strip()
    return ""


def tidy(notebook: NotebookNode, root: Path = ROOT, name: str = "") -> str:
    """The text of a notebook's tidy form; the notebook is changed in place.

    Kept of the metadata are a cell's ``tags`` and ``mystnb``, and the notebook's ``recsys_book``. A cell that
    calls ``chapter.say`` gets what hides its code on each host. The first cell gets its link to Colab.

    Args:
        notebook: what to bring into its tidy form.
        root: the repository, whose address the notebook repeats.
        name: the notebook's name without its suffix.
    """
    own = notebook.metadata.get("recsys_book")
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            **({"recsys_book": own} if own else {}),
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    if name and notebook.cells:
        notebook.cells[0].source = with_colab_link(notebook.cells[0].source, colab_address(name, root))
    taken: set[str] = set()
    for cell in notebook.cells:
        kept = {key: cell.metadata[key] for key in ("mystnb", "tags") if cell.metadata.get(key)}
        cell.metadata = nbformat.from_dict(kept)
        cell.source = cell.source.strip("\n")
        cell.pop("attachments", None)
        if cell.cell_type == "code":
            cell.outputs = []
            cell.execution_count = None
            if "setup" in tags(cell):
                cell.source = setup_source(root)
            if says(cell.source):
                _hide(cell)
        wanted = next((tag for tag in ("setup", "parameters") if tag in tags(cell)), cell.get("id", ""))
        cell.id = _free_id(wanted, cell.source, taken)
        taken.add(cell.id)
    return nbformat.writes(notebook) + "\n"


def _free_id(name: str, source: str, taken: set[str]) -> str:
    """The id itself where it is valid and free, otherwise one made from the cell's source."""
    salt = ""
    while not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) or name in taken:
        name = hashlib.sha256(f"{salt}{source}".encode()).hexdigest()[:8]
        salt += "+"
    return name


def colab_address(name: str, root: Path = ROOT) -> str:
    """The address that opens a notebook of the repository on Colab."""
    path = repository(root).removeprefix("https://github.com/")
    return f"https://colab.research.google.com/github/{path}/blob/main/notebooks/{name}.ipynb"


def says(source: str) -> bool:
    """Whether a cell calls ``chapter.say``, so that what is seen of it is the text."""
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "say"
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "chapter"
        for node in _nodes(source)
    )


def _nodes(source: str) -> list[ast.AST]:
    """Every node of a cell's code; none where it has a line of IPython's own."""
    try:
        return list(ast.walk(ast.parse(source)))
    except SyntaxError:
        return []


def _hide(cell: NotebookNode) -> None:
    """Hides a cell's code by each host's own means."""
    own = [*tags(cell), *(tag for tag in SAY_TAGS if tag not in tags(cell))]
    cell.metadata = nbformat.from_dict({**cell.metadata, **SAY_METADATA, "tags": own})
    if not re.match(r"#\s?@title\b", cell.source):
        cell.source = f"{SAY_TITLE}\n{cell.source}"


def problems(notebook: NotebookNode) -> list[str]:
    """What keeps a notebook from being a chapter of the book, in words that say what to do."""
    return [
        *_opening_problems(notebook),
        *_cell_problems(notebook),
        *_number_problems(notebook),
        *_plain_problems(notebook),
        *_exercise_problems(notebook),
        *_say_problems(notebook),
        *_ending_problems(notebook),
    ]


def _plain_problems(notebook: NotebookNode) -> list[str]:
    return [
        f"cell {number}: {problem}"
        for number, cell in enumerate(notebook.cells, 1)
        if cell.cell_type == "markdown"
        for problem in [*plain_problems(cell.source), *heading_problems(cell.source, tags(cell))]
    ]


def _say_problems(notebook: NotebookNode) -> list[str]:
    found = []
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type != "code":
            continue
        if says(cell.source) and draws(cell.source):
            found.append(f"cell {number} calls chapter.say and draws; give each a cell of its own")
        if "say" in tags(cell) and not says(cell.source):
            found.append(f"cell {number} is tagged say and does not call chapter.say")
    return found


def _opening_problems(notebook: NotebookNode) -> list[str]:
    found = []
    first = notebook.cells[0] if notebook.cells else None
    if first is None or first.cell_type != "markdown" or not re.match(r"# \S", first.source):
        found.append("the first cell is Markdown and starts with the title: '# Title'")
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    if GOAL not in text.lower():
        found.append(f"a heading '## {GOAL.capitalize()}' is missing")
    code = code_cells(notebook)
    if not code or tags(code[0]) != ["setup", "remove-cell"]:
        found.append(
            "the first code cell is the set-up cell, tagged setup and remove-cell; `make tidy` fills it in"
        )
    if len(code) < 2 or "parameters" not in tags(code[1]):
        found.append("the second code cell is tagged parameters")
        return found
    given = {
        target.id: node.end_lineno or 0
        for node in ast.parse(code[1].source).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    found += [f"the parameters cell does not set {name}" for name in PARAMETERS if name not in given]
    lines = code[1].source.splitlines()
    found += [
        f"the parameter {name} has no comment that says what it means"
        for name, line in given.items()
        if "#" not in lines[line - 1]
    ]
    return found


def _cell_problems(notebook: NotebookNode) -> list[str]:
    found = []
    names: Counter[str] = Counter()
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type != "code":
            continue
        if "raises-exception" in tags(cell):
            found.append(f"cell {number}: show an error by catching it; a cell must not end in one")
        options = cell.metadata.get("mystnb", {})
        figure, alt = options.get("figure", {}), options.get("image", {}).get("alt", "")
        if not draws(cell.source) and not options.get("figure"):
            continue
        if not (figure.get("caption") and figure.get("name") and alt):
            found.append(
                f"cell {number} draws a figure; its metadata needs "
                '"mystnb": {"figure": {"caption": ..., "name": "fig-..."}, "image": {"alt": ...}}'
            )
            continue
        names[figure["name"]] += 1
        if not figure["name"].startswith("fig-"):
            found.append(f"cell {number}: the figure's name {figure['name']!r} does not start with fig-")
        if alt.strip() == figure["caption"].strip():
            found.append(
                f"cell {number}: the alternative text says what the figure shows; it repeats the caption"
            )
    found += [
        f"the figure's name {name!r} is used {count} times" for name, count in names.items() if count > 1
    ]
    lengths = [
        sum(bool(line.strip()) for line in cell.source.splitlines())
        for cell in code_cells(notebook)
        if not {"setup", "parameters"} & set(tags(cell))
    ]
    if lengths and statistics.median(lengths) > MEDIAN_LINES:
        found.append(
            f"the median code cell has {statistics.median(lengths):g} lines; keep it to {MEDIAN_LINES}"
        )
    return found


def draws(source: str) -> bool:
    """Whether a cell draws a figure itself, through pyplot; a function that it defines does not count."""
    try:
        waiting: list[ast.AST] = [ast.parse(source)]
    except SyntaxError:
        return False
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _DRAWING:
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id in {"plt", "pyplot"}:
                return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)
    return False


def _number_problems(notebook: NotebookNode) -> list[str]:
    found = []
    for number, cell in enumerate(notebook.cells, 1):
        if "toy" in tags(cell):
            continue
        options = cell.metadata.get("mystnb", {})
        spoken = [options.get("figure", {}).get("caption", ""), options.get("image", {}).get("alt", "")]
        if cell.cell_type == "markdown":
            spoken.append(cell.source)
        for claim in [claim for text in spoken for claim in typed_claims(text)]:
            found.append(
                f"cell {number}: {claim!r} is a measured claim in words; let the run say it (chapter.say), "
                "cite its source, or tag the cell toy"
            )
        if cell.cell_type == "code":  # its words may be chosen by the run, its numbers not typed
            spoken += _recorded_words(cell.source)
        for typed in [typed for text in spoken for typed in typed_numbers(text)]:
            found.append(
                f"cell {number}: the number {typed!r} is typed; let the run say it (chapter.say), link its "
                "source, put it in code, or tag the cell toy if it was worked out by hand"
            )
    return found


def _recorded_words(source: str) -> list[str]:
    """The fixed words in what a cell says, or records as a claim."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []  # a cell with a magic command records nothing
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"claim", "say", "says"}
    ]
    return [
        inner.value
        for call in calls
        for argument in [*call.args, *(keyword.value for keyword in call.keywords)]
        for inner in _constants(argument)
        if isinstance(inner.value, str)
    ]


def _constants(node: ast.AST) -> list[ast.Constant]:
    """The constants in an expression, less the format specifications of f-strings."""
    if isinstance(node, ast.Constant):
        return [node]
    children = [node.value] if isinstance(node, ast.FormattedValue) else list(ast.iter_child_nodes(node))
    return [constant for child in children for constant in _constants(child)]


def exercises(notebook: NotebookNode) -> list[str]:
    """The first line of each exercise."""
    return [
        cell.source.partition("\n")[0]
        for cell in notebook.cells
        if cell.cell_type == "markdown" and EXERCISE in tags(cell)
    ]


def _exercise_problems(notebook: NotebookNode) -> list[str]:
    found = []
    waiting = ""  # the exercise that has no solution yet
    solving = False
    for number, cell in enumerate(notebook.cells, 1):
        own = tags(cell)
        if EXERCISE in own and cell.cell_type == "markdown":
            found += [f"the exercise of {waiting} has no solution below it"] if waiting else []
            waiting, solving = f"cell {number}", False
        elif SOLUTION not in own:
            solving = False
        elif cell.cell_type == "markdown" and SOLUTION_HEADING.match(cell.source):
            if not waiting:
                found.append(f"cell {number}: this solution has no exercise of its own above it")
            waiting, solving = "", True
        elif not solving:
            found.append(
                f"cell {number}: a solution starts with a Markdown cell, tagged solution, with the heading "
                "'### Solution'"
            )
            waiting, solving = "", True
    found += [f"the exercise of {waiting} has no solution below it"] if waiting else []
    return found if exercises(notebook) else [*found, "a chapter has an exercise"]


def _ending_problems(notebook: NotebookNode) -> list[str]:
    finishes = sum(
        len(re.findall(r"^chapter\.finish\(\)", cell.source, re.MULTILINE)) for cell in code_cells(notebook)
    )
    return (
        []
        if finishes == 1
        else [f"chapter.finish() is called {finishes} times; call it once, after the verdict"]
    )


def check(path: Path, root: Path = ROOT) -> list[str]:
    """Everything wrong with one committed notebook; an empty list if it is fine."""
    text = path.read_text("utf8")
    try:
        notebook: Any = nbformat.reads(text, as_version=4)
        nbformat.validate(notebook)
    except (ValueError, nbformat.ValidationError) as error:
        return [f"not a valid notebook: {str(error).splitlines()[0]}"]
    found = []
    if any(cell.outputs or cell.execution_count for cell in code_cells(notebook)):
        found.append("it holds outputs; run `make tidy`")
    found += problems(notebook)
    if tidy(notebook, root, path.stem) != text and not found:
        found.append("it is not in its tidy form; run `make tidy`")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m book.notebooks", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 and name what is wrong")
    parser.add_argument("files", nargs="*", type=Path, help="notebooks (default: all)")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    wrong = 0
    for path in options.files or notebook_files(options.root):
        if options.check:
            found = check(path, options.root)
            wrong += len(found)
            for problem in found:
                print(f"{path.name}: {problem}")
            continue
        before = path.read_text("utf8")
        after = tidy(nbformat.reads(before, as_version=4), options.root, path.stem)
        if after != before:
            path.write_text(after, "utf8")
            print(f"{path.name}: tidied")
    if options.check:
        found = contents.problems(options.root)
        wrong += len(found)
        print("".join(f"{problem}\n" for problem in found), end="")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
