"""How a chapter looks: the style of its figures, and the library's own source on the page."""

import ast
import importlib.util
import inspect
import re
import sys
import textwrap
from typing import Any

__all__ = ["PALETTE", "figure_style", "shell", "show_source"]

PALETTE = ("#0072B4", "#EE4B00", "#00AB31", "#A35382", "#433C36", "#006D32")
"""Blue, vermilion, light green, purple, charcoal, dark green. Each stands out by a contrast of 3:1 or more
from a white page, and from the dark page, where figures are inverted; any two stay apart for people with
protanopia, deuteranopia or tritanopia."""


def figure_style() -> None:
    """Sets the book's figure style, and in a notebook SVG whose bytes depend on the figure alone."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcdefaults()  # a reader's own settings do not change the book's figures
    mpl.rcParams.update(
        {
            "axes.axisbelow": True,
            "axes.grid": True,
            "axes.prop_cycle": cycler(color=PALETTE),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "figure.figsize": (6.4, 3.8),  # small, so that the letters stay legible on a phone
            "font.size": 11,
            "grid.color": "#DDDDDD",
            "legend.frameon": False,
            "savefig.facecolor": "white",
            "svg.hashsalt": "attention-to-taste",
        }
    )
    running = shell()
    if running is not None and importlib.util.find_spec("matplotlib_inline"):
        from matplotlib_inline.config import InlineBackend

        inline = InlineBackend.instance(parent=running)
        inline.figure_formats = {"svg"}
        options: dict[str, Any] = {"bbox_inches": "tight", "metadata": {"Date": None}}
        inline.print_figure_kwargs = options


def show_source(*objects: Any, docstring: bool = True) -> None:
    """Shows where functions, classes or modules of the library are defined, and their source.

    The source is handed to the page as a fenced block of code, so that the page highlights it and nothing in
    it is taken for markup. In a plain Python process it is printed.

    Args:
        objects: functions, classes, methods or modules.
        docstring: False leaves the docstrings out, where the text around has said the same.

    Raises:
        TypeError: an object has no Python source, such as a built-in.
    """
    for thing in objects:
        module = inspect.getmodule(thing)
        if module is None:
            raise TypeError(f"{thing!r} has no Python source; pass a function, a class or a module")
        lines, first = inspect.getsourcelines(thing)
        first = max(first, 1)  # a module starts at line 0
        # named from the package, since the machine's own path means nothing to a reader
        path = module.__name__.replace(".", "/") + ("/__init__.py" if hasattr(module, "__path__") else ".py")
        where = f"{path}, lines {first} to {first + len(lines) - 1}"
        source = textwrap.dedent("".join(lines)).rstrip()
        if not docstring:
            source = _without_docstrings(source)
        if shell() is None:
            print(f"# {where}\n{source}")
            continue
        from IPython.display import display

        fence = "`" * (1 + max([2, *(len(run) for run in re.findall("`+", source))]))
        markdown = f"`{where}`\n\n{fence}python\n{source}\n{fence}\n"
        display({"text/markdown": markdown, "text/plain": f"# {where}\n{source}"}, raw=True)


def _without_docstrings(source: str) -> str:
    """The source with the lines of its docstrings taken out; comments and layout stay."""
    lines = source.splitlines()
    dropped: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node) is None or len(node.body) == 1:
            continue  # a body of a docstring alone has to keep it
        first, last = node.body[0].lineno, node.body[0].end_lineno or node.body[0].lineno
        while last < len(lines) and not lines[last].strip():
            last += 1  # the blank lines after it
        dropped.update(range(first - 1, last))
    return "\n".join(line for number, line in enumerate(lines) if number not in dropped)


def shell() -> Any:
    """The interactive shell that this code runs in, or None in plain Python."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None
