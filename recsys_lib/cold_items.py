"""Items that nobody has chosen yet: who ranks them best? The experiment on new items, over several draws.

::

    cold = ColdItems(positives, n_draws=8, share=0.2, seed=seed, device=device)
    cold.add("ridge", partial(TextRidge, text=vectors), {"l2": [3.0, 10.0, 30.0]})
    cold.add("mine", lambda draw: MyScorer(draw.events))
    cold.add_controls()  # random order, and the order of the hidden likes
    cold.run()
    cold.table()
    cold.compare("ridge", "mine")  # a Comparison over the draws

A draw takes items out of training with all their events, and ranks these items alone. Which items are drawn
moves every model's value, often by more than what one model has over another. So the draw is the unit
(``draws``).

The draws share events and, now and then, items. So the intervals over them are somewhat narrow.
"""

import functools
import inspect
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd
import torch
from torch import Tensor

from recsys_lib.arguments import whole_number
from recsys_lib.data import Interactions
from recsys_lib.data.splits import Split, cold_item_split
from recsys_lib.draws import DrawComparison, Draws
from recsys_lib.evaluation import Report, Scorer, evaluate
from recsys_lib.models.core.contract import Recommender
from recsys_lib.progress import progress_bar

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Among", "ColdItems", "Contender", "Draw"]


@dataclass(frozen=True, eq=False)
class Draw:
    """Which items are new, and what is known when they are ranked.

    Attributes:
        number: 0, 1, ...
        events: what a model is fitted on; the new items have none in it.
        held_out: the events of the new items.
        items: (M,) int64, ascending: the new items, among which is ranked.
        users: (U,) int64, ascending: who is asked.
        split: the whole cut. On validation items ``events`` are its train part and ``held_out`` its
            validation part, on test items its history and its test part.
        on_validation: whether settings are being chosen.
        seed: of the cut, and for what a model draws by chance.
    """

    number: int
    events: Interactions
    held_out: Interactions
    items: Tensor
    users: Tensor
    split: Split
    on_validation: bool
    seed: int


Build: TypeAlias = Callable[..., Any]
"""Makes what ranks on a draw: see ``ColdItems.add``."""


class Among:
    """A model that recommends none but these items.

    Args:
        model: with ``score`` and ``n_items``.
        items: (M,) int64, those that stay.
    """

    def __init__(self, model: Scorer, items: Tensor) -> None:
        if not (hasattr(model, "score") and hasattr(model, "n_items")):
            raise TypeError(f"a model has score(users) and n_items, which {type(model).__name__} has not")
        self.model, self.n_items = model, model.n_items
        self.declined = torch.ones(model.n_items, dtype=torch.bool, device="cpu")  # (n_items,)
        self.declined[items.cpu()] = False

    def __getattr__(self, name: str) -> Any:
        # What an evaluation looks for beside the scores: the ids, the device.
        if name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    def score(self, users: Tensor) -> Tensor:
        """(B,) to (B, n_items), -inf for all other items."""
        scores: Any = self.model.score(users)  # (B, n_items)
        scores = torch.as_tensor(scores)
        shape = (len(users), self.n_items)
        if scores.shape != shape:
            raise ValueError(f"score must return {shape} for {len(users)} users, got {tuple(scores.shape)}")
        return scores.masked_fill(self.declined.to(scores.device), -torch.inf)


class _Given:
    """Scores that are there already: (n_users, n_items), or (n_items,) for everybody."""

    def __init__(self, scores: Tensor, n_users: int, n_items: int) -> None:
        if tuple(scores.shape) not in {(n_items,), (n_users, n_items)}:
            raise ValueError(
                f"scores must be ({n_items},) or ({n_users}, {n_items}), got {tuple(scores.shape)}"
            )
        self.scores, self.n_items = scores.float(), n_items

    def score(self, users: Tensor) -> Tensor:
        """(B,) to (B, n_items)."""
        if self.scores.ndim == 1:
            return self.scores.expand(len(users), -1)  # (B, n_items)
        return self.scores[users.to(self.scores.device)]  # (B, n_items)


@dataclass(eq=False)
class Contender:
    """One model of the experiment.

    Attributes:
        name: in tables and figures.
        build: see ``ColdItems.add``.
        space: the grid that is searched; empty for none.
        fixed: options that every fit gets.
        trials: a row a trial on the validation items of the first draw; None before, and without a grid.
        best: the options chosen, the fixed ones included.
        reports: draw to its report.
        seconds: draw to what making the model took.
    """

    name: str
    build: Build
    space: dict[str, list[Any]]
    fixed: dict[str, Any]
    trials: pd.DataFrame | None = None
    best: dict[str, Any] | None = None
    reports: dict[int, Report] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)


class ColdItems:
    """Models compared on items that have no events in training.

    Draw d is ``cold_item_split(positives, share, seed + d)``. A model is fitted on the events of all other
    items, and ranks the test items alone, for everybody who chose one of them. Settings are chosen on the
    validation items of the first draw, with models fitted on its train part.

    Args:
        positives: all events that count as a choice.
        n_draws: how many draws.
        share: of the items with events that is new in each draw, and again on validation.
        seed: of the first draw; the others take the next ones.
        metric: what is chosen by and reported, ``"ndcg@10"``.
        every: ask every n-th of the people who chose a new item, where asking is slow.
        device: where models are fitted, see ``Recommender.fit``.

    Raises:
        TypeError: numbers that are not whole.
        ValueError: no draw, or a share that leaves nothing.
    """

    def __init__(
        self,
        positives: Interactions,
        n_draws: int = 8,
        share: float = 0.2,
        seed: int = 0,
        *,
        metric: str = "ndcg@10",
        every: int = 1,
        device: str | torch.device = "auto",
    ) -> None:
        self.positives, self.share, self.metric, self.device = positives, share, metric, device
        self.n_draws = whole_number(n_draws, "n_draws", at_least=1)
        self.seed = whole_number(seed, "seed", at_least=0)
        self.every = whole_number(every, "every", at_least=1)
        self.contenders: dict[str, Contender] = {}
        self._cut(0)  # what is wrong with the share is said at once

    def __repr__(self) -> str:
        done = sum(len(x.reports) == self.n_draws for x in self.contenders.values())
        return (
            f"ColdItems: {done} of {len(self.contenders)} contenders measured, {self.n_draws} draws of "
            f"{100 * self.share:g}% of the items"
        )

    def __getitem__(self, name: str) -> Contender:
        """A contender by its name."""
        if name not in self.contenders:
            raise KeyError(f"no contender {name!r}; there are {', '.join(self.contenders)}")
        return self.contenders[name]

    # The draws.

    def __len__(self) -> int:
        """How many draws there are."""
        return self.n_draws

    def __iter__(self) -> Iterator[Draw]:
        """The draws, each with its test items."""
        return map(self.draw, range(self.n_draws))

    def _cut(self, number: int) -> Split:
        return cold_item_split(self.positives, self.share, self.seed + number)

    def draw(self, number: int, *, on_validation: bool = False) -> Draw:
        """One draw.

        Args:
            number: from 0.
            on_validation: with the validation items as the new ones.

        Raises:
            IndexError: there is no such draw.
        """
        if not 0 <= number < self.n_draws:
            raise IndexError(f"there are draws 0 to {self.n_draws - 1}, asked for {number}")
        split = self._cut(number)
        events, held_out = (split.train, split.validation) if on_validation else (split.history, split.test)
        items, users = held_out.items.unique(), held_out.users.unique()[:: self.every]  # (M,), (U,)
        seed = self.seed + number
        return Draw(number, events, held_out, items, users, split, on_validation, seed)

    def evaluate(self, model: Scorer | Tensor, draw: Draw | int = 0) -> Report:
        """Ranks the new items of a draw.

        Args:
            model: anything with ``score(users)`` and ``n_items``; or the scores themselves,
                (n_users, n_items), or (n_items,) for everybody.
            draw: it, or its number.

        Raises:
            TypeError, ValueError: as ``evaluation.evaluate``.
        """
        draw = self.draw(draw) if isinstance(draw, int) else draw
        if isinstance(model, Tensor):
            model = _Given(model, self.positives.n_users, self.positives.n_items)
        name, _, k = self.metric.partition("@")
        return evaluate(
            Among(model, draw.items),
            draw.held_out,
            k=int(k or 10),
            metrics=[name],
            users=draw.users,
            progress=False,
        )

    # The contenders.

    def add(
        self, name: str, build: Build, space: Mapping[str, Sequence[Any]] | None = None, **fixed: Any
    ) -> "ColdItems":
        """Adds a contender; returns the experiment.

        Args:
            name: of it, unique.
            build: a model's class, or ``functools.partial`` of one: it is made with the options and fitted
                on the draw's events. Or a function of a ``Draw`` and the options that returns a model, fitted
                or not, anything with ``score(users)`` and ``n_items``, or scores (n_users, n_items) or
                (n_items,).
            space: for each option the values to try. All combinations are tried, in this order, the first of
                equals wins.
            **fixed: options that every trial and fit gets.

        Raises:
            TypeError: something that cannot be called.
            ValueError: the name is taken, an option has no value to try, or is both fixed and in the space.
        """
        if name in self.contenders:
            raise ValueError(f"there is a contender {name!r} already")
        if not callable(build):
            raise TypeError(
                f"{name!r}: build must be a model's class or a function of a draw, got {type(build).__name__}"
            )
        grid = {option: list(values) for option, values in (space or {}).items()}
        if empty := [option for option, values in grid.items() if not values]:
            raise ValueError(f"{name!r}: no value to try for {', '.join(empty)}")
        if both := sorted(grid.keys() & fixed.keys()):
            raise ValueError(f"{name!r}: {', '.join(both)} cannot be both fixed and in the space")
        self.contenders[name] = Contender(name, build, grid, fixed)
        return self

    def add_controls(self, chance: str = "random order", fame: str = "hidden likes") -> "ColdItems":
        """Adds what shows the scale: a random order for each person, and the order of held-out events.

        The second knows what nobody can know, yet tells everybody the same.

        Args:
            chance: the name of the first.
            fame: the name of the second.
        """
        # Equal scores are in a random order, another one for each person; see ``ranking.rank_topk``.
        self.add(chance, lambda draw: torch.zeros(self.positives.n_items, device="cpu"))
        return self.add(fame, lambda draw: draw.held_out.item_counts().float())

    def build(self, name: str, draw: Draw | int = 0, **changes: Any) -> Any:
        """Makes a contender's model for a draw, with its options chosen where there is something to choose.

        Args:
            name: the contender's.
            draw: it, or its number.
            **changes: options in place of the chosen ones.

        Returns:
            A fitted model, or scores.
        """
        draw = self.draw(draw) if isinstance(draw, int) else draw
        return self._make(self[name], draw, self.choose(name) | changes)

    def _make(self, contender: Contender, draw: Draw, options: Mapping[str, Any]) -> Any:
        model = contender.build(**options) if _is_model(contender.build) else contender.build(draw, **options)
        if inspect.isclass(model):
            raise TypeError(f"the model must be an object, got the class {model.__name__} itself")
        if isinstance(model, Recommender) and not model.fitted:
            model.fit(draw.events, device=self.device, progress=False)
        return model

    def _measure(self, contender: Contender, draw: Draw, options: Mapping[str, Any]) -> tuple[Report, float]:
        try:
            start = time.perf_counter()
            model = self._make(contender, draw, options)
            seconds = time.perf_counter() - start
            return self.evaluate(model, draw), seconds
        except Exception as error:
            where = "the validation items" if draw.on_validation else f"draw {draw.number}"
            raise RuntimeError(
                f"{contender.name!r} failed on {where} with {dict(options) or 'no options'}: {error!r}"
            ) from error

    def choose(self, name: str) -> dict[str, Any]:
        """Chooses a contender's options on the validation items of the first draw, once.

        Args:
            name: the contender's.

        Returns:
            Its options, the fixed ones included.

        Raises:
            RuntimeError: a trial fails; the message names its options, and the cause is attached.
        """
        contender = self[name]
        if contender.best is None:
            contender.best = dict(contender.fixed)
            rows = []
            draw = self.draw(0, on_validation=True) if contender.space else None
            points = itertools.product(*contender.space.values()) if draw else ()
            for values in points:
                point = dict(zip(contender.space, values, strict=True))
                report, seconds = self._measure(contender, draw, contender.fixed | point)  # type: ignore[arg-type]
                rows.append({**point, self.metric: report.metrics[self.metric], "seconds": seconds})
            if rows:
                contender.trials = pd.DataFrame(rows)
                best = max(rows, key=lambda row: row[self.metric])  # the first of equals
                contender.best |= {option: best[option] for option in contender.space}
        return dict(contender.best)

    def run(
        self, contenders: Mapping[str, Build] | Iterable[str] | None = None, *, progress: bool = False
    ) -> "ColdItems":
        """Chooses options, then fits and measures on every draw; what has been measured before is kept.

        Args:
            contenders: names of those to run, all by default; or names with what builds them, which are added
                first.
            progress: show a bar.

        Raises:
            RuntimeError: a model cannot be made or ranked; the message names it, the draw and the options,
                and the cause is attached.
        """
        if isinstance(contenders, Mapping):
            for name, build in contenders.items():
                self.add(name, build)
        if isinstance(contenders, str):
            contenders = [contenders]
        wanted = [self[name] for name in (self.contenders if contenders is None else contenders)]
        for contender in progress_bar(wanted, "choosing", enabled=progress):
            self.choose(contender.name)
        for number in progress_bar(range(self.n_draws), "draws", enabled=progress):
            todo = [contender for contender in wanted if number not in contender.reports]
            draw = self.draw(number) if todo else None
            for contender in todo:
                report, seconds = self._measure(contender, draw, contender.best or {})  # type: ignore[arg-type]
                contender.reports[number], contender.seconds[number] = report, seconds
        return self

    # What was found.

    @property
    def draws(self) -> Draws:
        """The values of all contenders that were measured on every draw.

        Raises:
            RuntimeError: there is none yet.
        """
        values = {
            name: [x.reports[number].metrics[self.metric] for number in range(self.n_draws)]
            for name, x in self.contenders.items()
            if len(x.reports) == self.n_draws
        }
        if not values:
            raise RuntimeError("nothing has been measured yet; call run()")
        return Draws(values, self.metric)

    def mean(self, name: str) -> DrawComparison:
        """See ``Draws.mean``."""
        return self._measured(name).mean(name)

    def compare(self, a: str, b: str) -> DrawComparison:
        """See ``Draws.compare``."""
        self._measured(a)
        return self._measured(b).compare(a, b)

    def _measured(self, name: str) -> Draws:
        if len(self[name].reports) < self.n_draws:
            raise RuntimeError(f"{name!r} has not been measured yet; call run()")
        return self.draws

    def spread(self, *names: str) -> pd.Series:
        """See ``Draws.spread``."""
        return self.draws.spread(*names)

    def plot(self, ax: "Axes | None" = None, names: Sequence[str] | None = None) -> "Axes":
        """See ``Draws.plot``."""
        return self.draws.plot(ax, names)

    def table(self, against: str | None = None) -> pd.DataFrame:
        """``Draws.table``, with seconds of making one model, the choice, and what it reached on validation.

        Args:
            against: a contender whose value is subtracted, draw by draw, in three columns more.
        """
        table = self.draws.table(against)
        at_end = self.edges()
        rows = {}
        for name in table.index:
            contender = self[name]
            chosen = [
                f"{option} {contender.best[option]}"
                + (
                    " (end of grid)"
                    if any(end.startswith(f"{option}=") for end in at_end.get(name, []))
                    else ""
                )
                for option in contender.space
                if contender.best
            ]
            rows[name] = {
                "on validation": None if contender.trials is None else contender.trials[self.metric].max(),
                "seconds": sum(contender.seconds.values()) / len(contender.seconds),
                "chosen": ", ".join(chosen),
            }
        return table.join(pd.DataFrame.from_dict(rows, orient="index")).rename_axis(columns="new items")

    def edges(self) -> dict[str, list[str]]:
        """Options whose best value lies at an end of their grid, for each contender: it may be too narrow.

        Only options with an order count, numbers with two values or more.
        """
        found = {}
        for name, contender in self.contenders.items():
            at_edge = []
            for option, values in contender.space.items():
                numbers = sorted(v for v in values if isinstance(v, int | float) and not isinstance(v, bool))
                best = (contender.best or {}).get(option)
                if len(numbers) >= 2 and best in (numbers[0], numbers[-1]):
                    at_edge.append(f"{option}={best}")
            if at_edge:
                found[name] = at_edge
        return found


def _is_model(build: Build) -> bool:
    """Whether it is a model's class, bare or behind ``functools.partial``."""
    while isinstance(build, functools.partial):
        build = build.func
    return inspect.isclass(build) and issubclass(build, Recommender)
