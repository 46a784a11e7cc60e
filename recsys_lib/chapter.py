"""What a chapter of the book needs: a figure style, a record of what it measured, the library's own source.

A chapter makes one `Chapter`, tells it every number, word and claim that its text relies on, and finishes.
Each value is written to one small JSON file and glued into the page, so that the text, the scoreboard and the
status page all repeat what this run measured::

    chapter = Chapter("04_bpr", dataset=dataset, seed=seed, device=device)
    chapter.record("bpr", report, "ndcg@10", model="BPR", family="matrix factorization", headline=True)
    chapter.claim("bpr-wins", "BPR ranks better than popularity.", "holds", evidence=f"{gain:+.3f}")
    chapter.finish()

In a plain Python process, or where myst-nb is not installed, nothing is glued and everything else works.
"""

import ast
import importlib.util
import inspect
import json
import math
import os
import platform
import re
import sys
import textwrap
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from recsys_lib.devices import resolve_device
from recsys_lib.files import write_whole

if TYPE_CHECKING:
    from recsys_lib.evaluation import Comparison, Report

__all__ = ["PALETTE", "Chapter", "figure_style", "recorded", "results_dir", "show_source"]

PALETTE = ("#0072B4", "#EE4B00", "#00AB31", "#A35382", "#433C36", "#006D32")
"""Blue, vermilion, light green, purple, charcoal, dark green. Each stands out by a contrast of 3:1 or more
from a white page, and from the dark page, where figures are inverted; any two stay apart for people with
protanopia, deuteranopia or tritanopia."""

VERDICTS = ("holds", "fails", "depends")
_VERSIONS = ("torch", "numpy", "pandas", "transformers", "datasets", "scikit-learn")
_NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")


def results_dir() -> Path:
    """The folder of the chapters' results: ``RECSYS_RESULTS``, or ``results`` in the working folder."""
    return Path(os.environ.get("RECSYS_RESULTS") or "results")


def recorded(directory: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """What the chapters recorded, by chapter, in the order of their names; empty if none has run.

    Args:
        directory: where the files are; `results_dir` by default.

    Raises:
        ValueError: a file there is not what `Chapter.finish` writes.
    """
    found = {}
    for path in sorted(Path(directory or results_dir()).glob("*.json")):
        try:
            result = json.loads(path.read_text("utf8"))
        except ValueError as error:
            raise ValueError(f"{path.name} is not valid JSON ({error}); run its chapter again") from error
        if not isinstance(result, dict) or result.get("chapter") != path.stem:
            raise ValueError(f"{path.name} does not hold the results of {path.stem}; run that chapter again")
        found[path.stem] = result
    return found


class Chapter:
    """The record of one chapter's run.

    Args:
        name: the notebook's name without its suffix, such as ``"04_bpr"``.
        dataset: the data set's name, as the reader would pass it to `load_movielens`.
        seed: the seed of the run.
        device: ``"auto"``, or what torch understands; `device` holds the one that was found.
        results: where `finish` writes; `results_dir` by default.
    """

    def __init__(
        self,
        name: str,
        *,
        dataset: str,
        seed: int,
        device: str | torch.device = "auto",
        results: str | Path | None = None,
    ) -> None:
        self.name = name
        self.dataset = dataset
        self.seed = seed
        self.device = resolve_device(device)
        self._directory = Path(results) if results else results_dir()
        self._start = time.perf_counter()
        self._results: list[dict[str, Any]] = []
        self._numbers: dict[str, float] = {}
        self._texts: dict[str, str] = {}
        self._claims: list[dict[str, str]] = []
        self._headline_numbers: dict[str, bool] = {}
        self._taken: set[str] = set()
        self._finished = False
        figure_style()

    def __repr__(self) -> str:
        made = f"{_hardware(self.device)}, torch {version('torch')}"
        return f"{self.name}: {self.dataset}, seed {self.seed}, {made}"

    def record(
        self,
        name: str,
        report: "Report",
        metric: str = "ndcg@10",
        *,
        model: str,
        family: str,
        fit_seconds: float | None = None,
        headline: bool = False,
        scoreboard: bool = False,
        deterministic: bool = False,
        seed: int | Sequence[int] | None = None,
    ) -> None:
        """Records one metric of a report, with its 95 % interval where users can be resampled.

        Glues ``name``, ``name_low`` and ``name_high`` (hyphens become underscores).

        Args:
            name: of the value, unique in the chapter.
            report: what `recsys_lib.evaluation.evaluate` returned.
            metric: a name in ``report.metrics``.
            model: the model's name on the scoreboard.
            family: what kind of model it is, such as ``"matrix factorization"``.
            fit_seconds: what fitting took.
            headline: held against an accepted band by the tests.
            scoreboard: a row of the scoreboard.
            deterministic: no random number is drawn, so that the accepted band is narrow.
            seed: the seed or seeds behind the report, if not the chapter's.

        Raises:
            ValueError: a value is not finite, or the name is malformed or already taken.
            KeyError: the report has no such metric.
        """
        if metric not in report.metrics:
            raise KeyError(
                f"{name!r}: the report has no metric {metric!r}; it has {', '.join(report.metrics)}"
            )
        value = _finite(name, report.metrics[metric])
        low, high = report.interval(metric) if metric in report.per_user else (None, None)
        glued = {name: value}
        if low is not None and high is not None:
            low, high = _finite(f"{name}-low", low), _finite(f"{name}-high", high)
            glued |= {f"{name}-low": low, f"{name}-high": high}
        if fit_seconds is not None:
            fit_seconds = _finite(f"{name}: fit_seconds", fit_seconds)
        self._claim_names(*glued)
        self._results.append(
            {
                "name": name,
                "value": value,
                "low": low,
                "high": high,
                "n": int(report.n),
                "metric": metric,
                "model": model,
                "family": family,
                "seed": self.seed if seed is None else seed if isinstance(seed, int) else list(seed),
                "fit_seconds": fit_seconds,
                "headline": headline,
                "scoreboard": scoreboard,
                "deterministic": deterministic,
            }
        )
        for key, number in glued.items():
            _glue(key, number)

    def number(self, name: str, value: Any, *, headline: bool = False, deterministic: bool = False) -> None:
        """Records and glues a plain number: an ``int``, a ``float``, or a scalar of torch or numpy.

        Raises:
            ValueError: it is not finite, or the name is malformed or already taken.
            TypeError: it is not a number.
        """
        number = _finite(name, value)
        self._claim_names(name)
        self._numbers[name] = number
        if headline:
            self._headline_numbers[name] = deterministic
        _glue(name, number)

    def difference(self, name: str, comparison: "Comparison") -> None:
        """Records a paired difference and its interval.

        Glues ``name``, ``name_low`` and ``name_high`` (hyphens become underscores).

        Args:
            name: of the value, unique in the chapter.
            comparison: what `recsys_lib.evaluation.compare` returned.

        Raises:
            ValueError: a value is not finite, or the name is malformed or already taken.
        """
        values = {name: comparison.mean, f"{name}_low": comparison.low, f"{name}_high": comparison.high}
        numbers = {key: _finite(key, value) for key, value in values.items()}
        self._claim_names(*numbers)
        for key, number in numbers.items():
            self._numbers[key] = number
            _glue(key, number)

    def text(self, name: str, value: str) -> None:
        """Records and glues a word or a phrase that depends on the run, such as the name of the best model.

        Raises:
            ValueError: it is empty, or the name is malformed or already taken.
        """
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{name!r}: expected a text that is not empty, got {value!r}")
        self._claim_names(name)
        self._texts[name] = value
        _glue(name, value)

    def claim(self, id: str, statement: str, verdict: str, evidence: str, condition: str = "") -> None:
        """Records what the chapter found of a claim.

        Args:
            id: short and unique in the chapter, such as ``"cosine-measures-angle"``.
            statement: the claim, as one hears it.
            verdict: ``"holds"``, ``"fails"`` or ``"depends"``.
            evidence: what was measured, made from this run's values.
            condition: when it holds; needed where the verdict is ``"depends"``.

        Raises:
            ValueError: the verdict is not known, a part is missing, or the id is malformed or already taken.
        """
        if verdict not in VERDICTS:
            raise ValueError(f"claim {id!r}: verdict {verdict!r} is not one of {', '.join(VERDICTS)}")
        needed = {"statement": statement, "evidence": evidence}
        if verdict == "depends":
            needed["condition"] = condition
        missing = [part for part, text in needed.items() if not text.strip()]
        if missing:
            raise ValueError(f"claim {id!r}: {' and '.join(missing)} must not be empty")
        self._claim_names(f"claim-{id}")
        self._claims.append(
            {
                "id": id,
                "statement": statement,
                "verdict": verdict,
                "evidence": evidence,
                "condition": condition,
                "chapter": self.name,
            }
        )

    def finish(self) -> None:
        """Writes everything recorded to ``<results>/<name>.json``, whole or not at all.

        Raises:
            RuntimeError: the chapter has finished before.
        """
        self._open()
        result = {
            "chapter": self.name,
            "title": "",  # the runner fills in the notebook's title
            "dataset": self.dataset,
            "seed": self.seed,
            "device": str(self.device),
            "hardware": _hardware(self.device),
            "seconds": round(time.perf_counter() - self._start, 2),
            "peak_memory_mb": _peak_memory_mb(),
            "versions": _versions(),
            "results": self._results,
            "numbers": self._numbers,
            "headline_numbers": self._headline_numbers,
            "texts": self._texts,
            "claims": self._claims,
        }
        text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"{self.name}.json"
        with write_whole(path) as part:
            part.write_text(text, encoding="utf8")
        self._finished = True
        counts = f"{len(self._results)} results, {len(self._numbers)} numbers and {len(self._claims)} claims"
        print(f"{path.name}: {counts}")

    def _open(self) -> None:
        if self._finished:
            raise RuntimeError(f"{self.name} has finished; make a new Chapter to record more")

    def _claim_names(self, *names: str) -> None:
        """Takes the names as a glued text will spell them, all or none."""
        self._open()
        for name in names:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name: use lower-case letters, digits and single hyphens")
        keys = {name.replace("-", "_") for name in names}
        taken = sorted(keys & self._taken)
        if taken:
            raise ValueError(f"{taken[0]!r} has been recorded before; every name stands for one value")
        self._taken |= keys


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
    shell = _shell()
    if shell is not None and importlib.util.find_spec("matplotlib_inline"):
        from matplotlib_inline.config import InlineBackend

        inline = InlineBackend.instance(parent=shell)
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
        if _shell() is None:
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


def _finite(name: str, value: Any) -> int | float:
    """The value as a plain number.

    Raises:
        TypeError: it is not a number.
        ValueError: it is NaN or infinite.
    """
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"{name!r}: expected a number, got {value!r}")
    if not math.isfinite(number):
        raise ValueError(f"{name!r} is {number}; a result that is not finite cannot be recorded")
    return number


def _shell() -> Any:
    """The interactive shell that this code runs in, or None in plain Python."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


def _glue(name: str, value: float | str) -> None:
    """Hands a value to the page under its name, where there is a page."""
    if _shell() is not None and importlib.util.find_spec("myst_nb"):
        from myst_nb import glue

        glue(name.replace("-", "_"), value, display=False)


def _hardware(device: torch.device) -> str:
    """The device in words: its name, and for a CPU the threads that torch uses."""
    if device.type == "cuda":
        return f"{device.type}: {torch.cuda.get_device_name(device)}"
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text("utf8"), re.MULTILINE)
        name = found[1] if found else name
    threads = torch.get_num_threads()
    return f"{device.type}: {name}, {threads} thread{'s' if threads > 1 else ''}"


def _peak_memory_mb() -> float | None:
    """The most memory that this process has held, in MB of 10^6 bytes; None where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text("utf8"), re.MULTILINE)
        return round(int(found[1]) * 1024 / 1e6, 1) if found else None
    if importlib.util.find_spec("resource") is None:
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)


def _versions() -> dict[str, str]:
    """Versions of the packages that results depend on, of those that are installed."""
    found = {}
    for package in _VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
