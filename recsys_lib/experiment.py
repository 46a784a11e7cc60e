"""The experiment that every chapter repeats: tune, refit, evaluate over seeds, compare, show, record.

::

    trial = Experiment(split, budget=budget, seed=seed, device=device)
    trial.add("EASE", EASE, {"l2": [100.0, 200.0, 400.0]}, family="linear")
    trial.add("BPR", BPR, {"l2": [0.003, 0.01, 0.03]}, family="matrix factorization", seeds=3)
    trial.run()
    trial.table()
    trial.gap("EASE", "BPR")  # a Comparison

Every contender gets the same number of trials on the validation part. The chosen setting is refit on train
and validation, once for each seed, and ranked on the test part by one evaluator.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from recsys_lib.data.splits import Split
from recsys_lib.evaluation import Comparison, Report, compare, evaluate, mean_report
from recsys_lib.models.core.contract import Recommender
from recsys_lib.progress import progress_bar
from recsys_lib.tuning import Tuning, tune

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Contender", "Experiment"]


@dataclass(eq=False)
class Contender:
    """One model in an experiment.

    Attributes:
        name: what it is called in tables and figures.
        make: its class, or a function that returns a new model.
        space: the grid that is searched, for each option the values to try; empty for none.
        family: what kind of model it is, for the scoreboard.
        n_seeds: fits that the report is the mean of; one for a model without randomness.
        fixed: options that every trial and fit gets.
        tuning: what the search found; None before, and where there is nothing to search.
        models: the fitted models, one a seed; empty before ``run``.
        report: its report on the test part, the mean over the seeds.
    """

    name: str
    make: Callable[..., Recommender]
    space: Mapping[str, Sequence[Any]]
    family: str
    n_seeds: int
    fixed: dict[str, Any]
    tuning: Tuning | None = None
    models: list[Recommender] = field(default_factory=list)
    report: Report | None = None

    @property
    def best(self) -> dict[str, Any]:
        """The options it was refit with."""
        return dict(self.fixed) if self.tuning is None else dict(self.tuning.best)

    @property
    def fit_seconds(self) -> float:
        """What one fit took, the mean over the seeds."""
        return sum(model.fit_seconds for model in self.models) / max(len(self.models), 1)


class Experiment:
    """Models compared on one split, with one budget for each.

    Args:
        split: train and validation to choose on, history to refit on, test to report on.
        budget: trials for each contender that has something to search, its defaults included.
        seed: of the search and of ties; contenders with several seeds take it and the next ones.
        metric: what is chosen by and reported first.
        metrics: what else is reported; see ``evaluate``.
        device: where models are fitted, see ``Recommender.fit``.
        progress: show bars.
    """

    def __init__(
        self,
        split: Split,
        *,
        budget: int,
        seed: int = 0,
        metric: str = "ndcg@10",
        metrics: Sequence[str] | None = None,
        device: str | torch.device = "auto",
        progress: bool = True,
    ) -> None:
        self.split, self.budget, self.seed, self.metric = split, budget, seed, metric
        self.metrics, self.device, self.progress = metrics, device, progress
        self.contenders: dict[str, Contender] = {}

    def __repr__(self) -> str:
        done = sum(contender.report is not None for contender in self.contenders.values())
        return f"Experiment: {done} of {len(self.contenders)} contenders measured, {self.budget} trials each"

    def __getitem__(self, name: str) -> Contender:
        """A contender by its name."""
        if name not in self.contenders:
            raise KeyError(f"no contender {name!r}; there are {', '.join(self.contenders)}")
        return self.contenders[name]

    def add(
        self,
        name: str,
        make: Callable[..., Recommender],
        space: Mapping[str, Sequence[Any]] | None = None,
        *,
        family: str,
        seeds: int | None = None,
        tuned: Tuning | None = None,
        **fixed: Any,
    ) -> "Experiment":
        """Adds a contender; returns the experiment.

        Args:
            name: of it, unique.
            make: its class, or a function that returns a new model.
            space: the grid to search; nothing is searched without one.
            family: what kind of model it is.
            seeds: fits to average. With it the model gets an option ``seed``; None is for models that have
                no randomness.
            tuned: a search that was done before, in place of a new one: one tuning for a model in a book.
            **fixed: options that every trial and fit gets.

        Raises:
            ValueError: the name is taken, or ``seeds`` is below 1.
        """
        if name in self.contenders:
            raise ValueError(f"there is a contender {name!r} already")
        if seeds is not None and seeds < 1:
            raise ValueError(f"seeds must be 1 or more, or None for a model without randomness; got {seeds}")
        if seeds is not None:
            fixed = {"seed": self.seed, **fixed}
        self.contenders[name] = Contender(name, make, space or {}, family, seeds or 1, fixed, tuned)
        return self

    def run(self, names: Iterable[str] | None = None) -> "Experiment":
        """Tunes, refits and evaluates; what has been measured before is kept.

        Args:
            names: contenders to run; all by default.
        """
        wanted = [self[name] for name in (self.contenders if names is None else names)]
        todo = [contender for contender in wanted if contender.report is None]
        for contender in progress_bar(todo, "experiment", enabled=self.progress):
            self._choose(contender)
            contender.models = [self.fit(contender.name, seed=i) for i in range(contender.n_seeds)]
            contender.report = mean_report([self.measure(model) for model in contender.models])
        return self

    def _choose(self, contender: Contender) -> None:
        if contender.tuning is None and contender.space:
            contender.tuning = tune(
                contender.make,
                contender.space,
                self.split,
                budget=self.budget,
                metric=self.metric,
                seed=self.seed,
                fixed=contender.fixed,
                device=self.device,
                progress=False,
            )

    def fit(self, name: str, split: Split | None = None, *, seed: int = 0, **changes: Any) -> Recommender:
        """A new model of a contender with its chosen options, refit.

        Args:
            name: the contender's.
            split: whose history it is fitted on; the experiment's by default.
            seed: which of the contender's seeds, from 0.
            **changes: options in place of the chosen ones.
        """
        contender = self[name]
        options = contender.best | changes
        if "seed" in contender.fixed and "seed" not in changes:
            options["seed"] = contender.fixed["seed"] + seed
        history = (split or self.split).history
        return contender.make(**options).fit(history, device=self.device, progress=False)

    def measure(self, model: Recommender, split: Split | None = None) -> Report:
        """The report of a fitted model on the test part, without the items of the history."""
        split = split or self.split
        name, _, k = self.metric.partition("@")
        names = None if self.metrics is None else list(dict.fromkeys([name, *self.metrics]))
        return evaluate(
            model,
            split.test,
            seen=split.history,
            k=int(k or 10),
            metrics=names,
            seed=self.seed,
            progress=False,
        )

    # What was found.

    def report(self, name: str) -> Report:
        """A contender's report.

        Raises:
            RuntimeError: it has not been measured yet.
        """
        found = self[name].report
        if found is None:
            raise RuntimeError(f"{name!r} has not been measured yet; call run()")
        return found

    def ranked(self) -> list[str]:
        """The names of the measured contenders, best first."""
        measured = [name for name, contender in self.contenders.items() if contender.report is not None]
        return sorted(measured, key=lambda name: -self.report(name).metrics[self.metric])

    def gap(self, a: str, b: str) -> Comparison:
        """The paired difference of two contenders, a minus b."""
        return compare(self.report(a), self.report(b), self.metric)

    def gaps(self, *pairs: tuple[str, str]) -> pd.DataFrame:
        """Paired differences, a row each: mean, low, high, p. By default each contender with the best one.

        Args:
            *pairs: names a and b, for a minus b.
        """
        best, *others = self.ranked()
        chosen = pairs or tuple((name, best) for name in others)
        found = {f"{a} \N{MINUS SIGN} {b}": self.gap(a, b) for a, b in chosen}
        rows = {name: [gap.mean, gap.low, gap.high, gap.p_value] for name, gap in found.items()}
        table = pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high", "p"])
        return table.rename_axis(columns="difference")

    def table(self) -> pd.DataFrame:
        """A row a contender, best first: the metric and its interval, validation, seconds, the choice.

        What the rows are stands over them: it is the name of the columns, since pandas writes the name of an
        index into a line of its own. A long choice is better read in ``choices``.
        """
        rows = {}
        for name in self.ranked():
            contender, report = self[name], self.report(name)
            low, high = report.interval(self.metric)
            tuning = contender.tuning
            rows[name] = {
                self.metric: report.metrics[self.metric],
                "low": low,
                "high": high,
                "on validation": None if tuning is None else tuning.trials[tuning.metric].max(),
                "fit seconds": contender.fit_seconds,
                "chosen": ", ".join(f"{key} {value}" for key, value in _chosen(contender).items()),
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(columns="model")

    def choices(self) -> pd.DataFrame:
        """The chosen options, a row a contender with something to search and a column an option, as texts."""
        rows = {name: _chosen(self[name]) for name in self.ranked()}
        searched = {name: chosen for name, chosen in rows.items() if chosen}
        return pd.DataFrame.from_dict(searched, orient="index").fillna("").rename_axis(columns="model")

    def edges(self) -> dict[str, list[str]]:
        """Options whose best value lies at an end of their grid: there the grid may be too narrow.

        Only options with an order count, numbers with three values or more.
        """
        found = {}
        for name, contender in self.contenders.items():
            at_edge = []
            for option, values in contender.space.items():
                numbers = sorted(v for v in values if isinstance(v, int | float) and not isinstance(v, bool))
                best = contender.best.get(option)
                if len(numbers) >= 3 and best in (numbers[0], numbers[-1]):
                    at_edge.append(f"{option}={best}")
            if at_edge:
                found[name] = at_edge
        return found

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """The metric of each contender with its interval, best on top."""
        import matplotlib.pyplot as plt

        names = self.ranked()
        if ax is None:
            _, ax = plt.subplots(figsize=(6.4, 0.7 + 0.38 * len(names)))
        for place, name in enumerate(names):
            low, high = self.report(name).interval(self.metric)
            ax.plot([low, high], [place, place], color="C0", lw=3, solid_capstyle="butt")
            ax.plot(self.report(name).metrics[self.metric], place, "o", color="#222222", ms=5)
        label, _, k = self.metric.partition("@")
        ax.set(
            yticks=range(len(names)), yticklabels=names, xlabel=f"{label.upper()}@{k}" if k else label.upper()
        )
        ax.invert_yaxis()
        return ax

    def record(self, chapter: Any, name: str, slug: str, *, suffix: str = "", **options: Any) -> None:
        """Records a contender's result in a chapter.

        Args:
            chapter: a ``recsys_lib.chapter.Chapter``.
            name: the contender's.
            slug: the result's name there.
            suffix: added to the slug, for a second split.
            **options: of ``Chapter.record``, such as ``scoreboard`` and ``headline``.
        """
        contender = self[name]
        first = contender.fixed.get("seed")
        seeds = None if first is None else [first + i for i in range(contender.n_seeds)]
        defaults = {
            "model": name,
            "family": contender.family,
            "fit_seconds": contender.fit_seconds,
            "deterministic": first is None,
            "seed": seeds[0] if seeds and len(seeds) == 1 else seeds,
        }
        chapter.record(slug + suffix, self.report(name), self.metric, **(defaults | options))


def _chosen(contender: Contender) -> dict[str, str]:
    """What the search chose, in as few letters as say it: 0.3, not 0.30000000000000004."""
    best = contender.best
    return {
        key: f"{best[key]:g}" if isinstance(best[key], float) else str(best[key])
        for key in contender.space
        if key in best
    }
