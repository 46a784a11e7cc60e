"""What a chapter measured, collected while it runs.

What is recorded shows nothing by itself, so that a cell may record and say something. torch is imported by
what asks it something, so that the package can be imported without it.
"""

import hashlib
import importlib.util
import math
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys_lib.chapter.results import ChapterResults, Claim, Result, results_dir
from recsys_lib.chapter.runs import show_run
from recsys_lib.chapter.say import say
from recsys_lib.chapter.show import figure_style

if TYPE_CHECKING:
    import torch

    from recsys_lib.evaluation import Comparison, Report

__all__ = ["Chapter"]

_VERSIONS = ("torch", "numpy", "pandas", "transformers", "datasets", "scikit-learn")
_NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")


class Chapter:
    """The record of one chapter's run.

    Args:
        name: the notebook's name without its suffix, such as ``"04_bpr"``.
        dataset: the data set's name, as the reader would pass it to `load_movielens`.
        seed: the seed of the run.
        device: ``"auto"``, or what torch understands; `device` holds the one that was found.
        results: where `finish` writes; `results_dir` by default.

    Raises:
        ValueError: the device is not here, or the name, the data set or the seed could not be written.
    """

    def __init__(
        self,
        name: str,
        *,
        dataset: str,
        seed: int,
        device: "str | torch.device" = "auto",
        results: str | Path | None = None,
    ) -> None:
        from recsys_lib.devices import resolve_device

        self.name = name
        self.dataset = dataset
        self.seed = seed
        self.device = resolve_device(device)
        self._directory = Path(results) if results else results_dir()
        self._start = time.perf_counter()
        self._results: list[Result] = []
        self._numbers: dict[str, float] = {}
        self._claims: list[Claim] = []
        self._headline_numbers: dict[str, bool] = {}
        self._taken: set[str] = set()
        self._finished = False
        self._so_far()  # what could not be written at the end is refused before anything is measured
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

        Args:
            name: of the value, unique in the chapter.
            report: what `recsys_lib.evaluation.evaluate` returned.
            metric: a name in ``report.metrics``.
            model: the model's name on the scoreboard.
            family: what kind of model it is, such as ``"matrix factorization"``.
            fit_seconds: what fitting took.
            headline: held against an accepted band by the tests.
            scoreboard: a row of the scoreboard; its values per user are written, for paired comparisons.
            deterministic: no random number is drawn, so that the accepted band is narrow.
            seed: the seed or seeds behind the report, if not the chapter's.

        Raises:
            ValueError: a value is not finite, the model or its family has no name, or the name is malformed
                or already taken.
            KeyError: the report has no such metric.
        """
        if metric not in report.metrics:
            raise KeyError(
                f"{name!r}: the report has no metric {metric!r}; it has {', '.join(report.metrics)}"
            )
        value = _finite(name, report.metrics[metric])
        low, high = report.interval(metric) if metric in report.per_user else (None, None)
        if low is not None and high is not None:
            low, high = _finite(f"{name}-low", low), _finite(f"{name}-high", high)
        if fit_seconds is not None:
            fit_seconds = _finite(f"{name}: fit_seconds", fit_seconds)
        result = Result(
            name=name,
            value=value,
            low=low,
            high=high,
            n=int(report.n),
            metric=metric,
            model=model,
            family=family,
            seed=self.seed if seed is None else seed if isinstance(seed, int) else list(seed),
            fit_seconds=fit_seconds,
            headline=headline,
            scoreboard=scoreboard,
            deterministic=deterministic,
            **(_per_user(report, metric) if scoreboard else {}),
        )
        self._take(name)
        self._results.append(result)

    def number(self, name: str, value: Any, *, headline: bool = False, deterministic: bool = False) -> None:
        """Records a number that is of no report: an ``int``, a ``float``, or a scalar of torch or numpy.

        Raises:
            ValueError: it is not finite, or the name is malformed or already taken.
            TypeError: it is not a number.
        """
        number = _finite(name, value)
        self._take(name)
        self._numbers[name] = number
        if headline:
            self._headline_numbers[name] = deterministic

    def say(self, text: str) -> None:
        """Shows a sentence that this run writes, as Markdown: ``chapter.say(f"BPR gains {gap:.3f}.")``.

        ``make tidy`` hides the code of a cell that calls this, on every host; what is seen is the text.
        Nothing is recorded.

        Args:
            text: CommonMark, tables and dollar math, with the run's values in it.

        Raises:
            TypeError: it is no text.
            ValueError: it is empty, a value in it is not finite or not formatted, or the ``f`` is missing.
        """
        say(text)

    def recorded_run(
        self,
        name: str,
        live: Callable[[], dict[str, Any]] | None = None,
        *,
        when: bool | Callable[[], bool] = False,
        inputs: Mapping[str, str] | None = None,
        folder: str | Path | None = None,
    ) -> dict[str, Any] | None:
        """The values of a run that a page shows and does not repeat, from ``book/recorded/<name>.json``.

        Shown is what they are: the day, the device and the versions of the run, and the command that makes
        it again; that it is older than the code, or from other inputs, where it is; or that it is not here.
        Where the means are there, the run is made live, and that is said::

            run = chapter.recorded_run("retrieval", partial(measure, split), when=Path("faiss").exists())
            if run:
                table(run["sets"])

        Args:
            name: of the run. The runner executes the chapter again when this file changes, so it is
                best a plain text.
            live: makes the values here, in the form in which they were recorded.
            when: whether ``live`` is run: a condition, or what finds it out.
            inputs: hashes of the inputs as they are here, by their names in the record.
            folder: where the files are; that of the repository by default.

        Returns:
            The values, or None where the file is not here, as beside a notebook without a checkout.

        Raises:
            RecordedRunError: the file is not a recorded run, or what was run live is no set of values.
            ValueError: ``when`` holds and there is nothing to run.
        """
        here = f"{_hardware(self.device)}, {', '.join(' '.join(made) for made in _versions().items())}"
        values, text = show_run(name, live, when=when, inputs=inputs, here=here, folder=folder)
        self.say(text)
        return values

    def claim(
        self,
        id: str,
        statement: str,
        verdict: str | None = None,
        evidence: str = "",
        condition: str = "",
        *,
        difference: "Comparison | None" = None,
        holds: str | None = None,
    ) -> None:
        """Records what the chapter found of a claim.

        The verdict is found from a difference, or stated where no single difference decides it::

            chapter.claim(
                "bpr-wins", "BPR ranks better than popularity.", difference=gap, holds="above",
                evidence=f"NDCG@10 {gap:.3f}", condition="only with more users could one tell",
            )

        Args:
            id: short and unique in the chapter, such as ``"cosine-measures-angle"``.
            statement: the claim, as one hears it.
            verdict: ``"holds"``, ``"fails"`` or ``"depends"``, where there is no difference.
            evidence: what was measured, made from this run's values.
            condition: when it holds. Always needed with a difference, since another data set may leave it
                open. A claim that holds or fails keeps none: a page would show it beside the verdict.
            difference: decides the verdict: clear and on the stated side, the claim holds; clear and on the
                other side, it fails; not clear, it depends.
            holds: ``"above"`` or ``"below"``, the side of zero where the claim holds.

        Raises:
            ValueError: the verdict is not known, both or neither of verdict and difference are given, a part
                is missing, or the id is malformed or already taken.
        """
        if (verdict is None) == (difference is None):
            raise ValueError(f"claim {id!r}: give a verdict, or a difference that decides it")
        if difference is not None:
            verdict = _verdict(id, difference, holds, condition)
        elif holds is not None:
            raise ValueError(f"claim {id!r}: 'holds' is for a difference; the verdict is already stated")
        claim = Claim(
            id=id,
            statement=statement,
            verdict=verdict or "",
            evidence=evidence,
            condition=condition if verdict == "depends" else "",
            chapter=self.name,
        )
        self._take(f"claim-{id}")
        self._claims.append(claim)

    def finish(self) -> None:
        """Writes everything recorded to ``<results>/<name>.json``, whole or not at all.

        Raises:
            RuntimeError: the chapter has finished before.
        """
        self._open()
        self._so_far().write(self._directory)
        self._finished = True

    def _so_far(self) -> ChapterResults:
        return ChapterResults(
            chapter=self.name,
            title="",  # the runner fills in the notebook's title
            dataset=self.dataset,
            seed=self.seed,
            device=str(self.device),
            hardware=_hardware(self.device),
            seconds=round(time.perf_counter() - self._start, 2),
            peak_memory_mb=_peak_memory_mb(),
            versions=_versions(),
            results=self._results,
            numbers=self._numbers,
            headline_numbers=self._headline_numbers,
            claims=self._claims,
        )

    def _open(self) -> None:
        if self._finished:
            raise RuntimeError(f"{self.name} has finished; make a new Chapter to record more")

    def _take(self, name: str) -> None:
        """Takes a name for one value or claim."""
        self._open()
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name: use lower-case letters, digits and single hyphens")
        if name in self._taken:
            raise ValueError(f"{name!r} has been recorded before; every name stands for one value")
        self._taken.add(name)


def _per_user(report: "Report", metric: str) -> dict[str, Any]:
    """A metric's values for each user, and a text that others have where they are of the same evaluation."""
    over = getattr(report, "over", None)
    if over is None or metric not in report.per_user:
        return {}
    same = "\0".join([metric, report.protocol, *over])
    values = [round(value, 6) for value in report.per_user[metric].tolist()]
    return {"per_user": values, "over": hashlib.sha256(same.encode()).hexdigest()[:24]}


def _verdict(id: str, difference: "Comparison", holds: str | None, condition: str) -> str:
    """What a difference says of a claim that holds on one side of zero."""
    if holds not in ("above", "below"):
        raise ValueError(f"claim {id!r}: say where it holds, holds='above' or holds='below', not {holds!r}")
    if not condition.strip():
        raise ValueError(
            f"claim {id!r}: give a condition; where the data of a run do not tell the two apart, it depends"
        )
    for part in (difference.mean, difference.low, difference.high):
        _finite(f"claim-{id}", part)
    other = "below" if holds == "above" else "above"
    words = {holds: "holds", other: "fails"}
    return difference.says(above=words["above"], below=words["below"], otherwise="depends")


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


def _hardware(device: "torch.device") -> str:
    """The device in words: its name, and for a CPU the threads that torch uses."""
    import torch

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
