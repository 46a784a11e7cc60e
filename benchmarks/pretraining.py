"""What pre-training on behaviour is worth to clicks, rankings and ratings, with few labels and with many.

All ratings of MovieLens-100K are split by time: the last fifth of each person's is the test, the fifth before
it the validation. Who rated what before that, in order and without the stars, is behaviour; a pre-training
reads all of it. Labels are the stars of a share of the same events, drawn at random, for training and for
validation alike. A click is four stars or more against less, among rated films; a ranking is of films with
four stars or more over the whole catalog; a rating is the stars themselves.

Each fine-tuning stops by its own validation labels. They choose its learning rates as well, of the same four
pairs for every row and task, with the first seed and 1, 10 and 100 % of the labels; with 5 % the rates are
those of 10 %, with 50 % those of 100 %. Intervals are over people
and seeds.

With ``--transfer`` the catalog is cut into two halves at random. What is pre-trained on one is fine-tuned on
the other, where nothing but the items' texts is the same.

Usage::

    OMP_NUM_THREADS=1 python benchmarks/pretraining.py [--transfer] [--record FILE]
"""

import argparse
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recsys_lib.chapter.runs import write_run
from recsys_lib.data import Interactions, MovieLens, Split, leave_last_out, load_movielens
from recsys_lib.devices import isolated_rng
from recsys_lib.evaluation import Comparison
from recsys_lib.geometry import Whitening
from recsys_lib.models import EASE, BiasedMF, HistoryHead, Popularity
from recsys_lib.models.core.sequence_encoder import SequenceEncoder
from recsys_lib.models.history_head import BagEncoder
from recsys_lib.pretraining import (
    PRETRAININGS,
    TASKS,
    FewLabels,
    PerPerson,
    few_labels,
    fine_tune,
    measure,
    over_people_and_seeds,
    pretrain,
)
from recsys_lib.representations import item_vectors
from recsys_lib.text import TextEncoder

COMMAND = "OMP_NUM_THREADS=1 python benchmarks/pretraining.py --record book/recorded/pretraining.json"
TRANSFER_COMMAND = (
    "OMP_NUM_THREADS=1 python benchmarks/pretraining.py --transfer "
    "--record book/recorded/pretraining_transfer.json"
)
_LIBRARY = (
    "recsys_lib/pretraining.py",
    "recsys_lib/models/history_head.py",
    "recsys_lib/training.py::train",
)
CODE = (
    *(
        f"benchmarks/pretraining.py::{name}"
        for name in (
            "SHAPE",
            "RATES",
            "SHARES",
            "CONTROL_SHARES",
            "CHOSEN_AT",
            "L2",
            "Arm",
            "arms",
            "Runs",
            "tuned",
            "_random",
            "_as_long",
            "run",
            "bars",
        )
    ),
    *_LIBRARY,
    *(f"recsys_lib/models/{name}.py" for name in ("autoencoder", "bert4rec", "contrastive", "denoising")),
    *(f"recsys_lib/models/core/{name}.py" for name in ("next_item", "views", "corruptions")),
)
TRANSFER_CODE = (
    *(
        f"benchmarks/pretraining.py::{name}"
        for name in (
            "SHAPE",
            "TRANSFER_SHARES",
            "TRANSFER_RATES",
            "AXES",
            "L2",
            "_CROSSES",
            "half",
            "Runs",
            "tuned",
            "transfer",
        )
    ),
    *_LIBRARY,
)

SHAPE = {"dim": 32, "max_length": 20, "batch_size": 64, "epochs": 25, "patience": 3}
L2 = {"click": 1e-4, "ranking": 0.0, "rating": 1e-4}
# Rates of the head, and of the body as a share of it.
RATES = ((0.003, 1.0), (0.01, 1.0), (0.03, 1.0), (0.01, 0.1))
SHARES = (0.01, 0.05, 0.1, 0.5, 1.0)
CHOSEN_AT = {0.05: 0.1, 0.5: 1.0}  # shares whose rates were chosen at another one
CONTROL_SHARES = (0.1,)
TRANSFER_SHARES = (0.01, 0.1, 1.0)
TRANSFER_RATES = ((0.0003, 1.0), (0.001, 1.0), (0.003, 1.0), (0.01, 1.0), (0.003, 0.1))
AXES = 64
Rate = tuple[float, float]
LESS_IS_BETTER = ("log-loss", "rmse")
METRIC = {"click": "log-loss", "ranking": "ndcg@10", "rating": "rmse"}
NONE = {"bag": "none, bag", "transformer": "none, transformer"}


@dataclass(frozen=True)
class Arm:
    """A row of the experiment: what a fine-tuning begins with.

    Attributes:
        name: of it.
        reads: its encoder.
        known: the name of a pre-training; "random" for an encoder as it was made; None for nothing.
        frozen: whether the encoder stays as it is.
        longer: whether it may train for as long as a pre-training takes besides.
        shares: of the labels, with which it is run.
    """

    name: str
    reads: str
    known: str | None = None
    frozen: bool = False
    longer: bool = False
    shares: tuple[float, ...] = SHARES


def arms() -> list[Arm]:
    """The rows: the two that begin at random come first."""
    listed = [Arm(name, reads) for reads, name in NONE.items()]
    listed += [Arm(name, how.reads, name) for name, how in PRETRAININGS.items()]
    for reads in NONE:
        listed.append(Arm(f"{NONE[reads]}, as long", reads, longer=True, shares=CONTROL_SHARES))
        listed.append(Arm(f"random {reads}, frozen", reads, "random", frozen=True, shares=CONTROL_SHARES))
    listed += [
        Arm(f"{name}, frozen", how.reads, name, frozen=True, shares=CONTROL_SHARES)
        for name, how in PRETRAININGS.items()
    ]
    return listed


@dataclass
class Runs:
    """What the seeds found.

    Attributes:
        found: one measure a seed, by task, row, share and metric.
        rates: the learning rate chosen, by task, row and share.
        epochs: the epochs that it took, likewise, one a seed.
        seconds: of processor time for a fit, likewise.
    """

    found: dict[tuple[str, str, float, str], list[PerPerson]] = field(default_factory=dict)
    rates: dict[tuple[str, str, float], Rate] = field(default_factory=dict)
    epochs: dict[tuple[str, str, float], list[int]] = field(default_factory=dict)
    seconds: dict[tuple[str, str, float], list[float]] = field(default_factory=dict)

    def add(
        self,
        task: str,
        row: str,
        share: float,
        fit: Callable[[Rate], HistoryHead],
        split: Split,
        rates: Iterable[Rate] = RATES,
    ) -> HistoryHead:
        """Fits a row with the rate that the first seed chose, or chooses it; measures, and keeps all."""
        key = (task, row, share)
        chosen = self.rates.get(key, self.rates.get((task, row, CHOSEN_AT.get(share, share))))
        tried = []
        for rate in rates if chosen is None else (chosen,):
            started = time.process_time()
            model = fit(rate)
            seconds = time.process_time() - started
            tried.append((_best(model), -len(tried), rate, model, seconds))
        _, _, self.rates[key], model, seconds = max(tried, key=lambda one: one[:2])
        self.epochs.setdefault(key, []).append(model.best_epoch)
        self.seconds.setdefault(key, []).append(seconds)
        self.keep(task, row, share, measure(model, task, split))
        return model

    def keep(self, task: str, row: str, share: float, found: dict[str, PerPerson]) -> None:
        """Adds the measures of a seed."""
        for metric, values in found.items():
            self.found.setdefault((task, row, share, metric), []).append(values)

    def gain(self, metric: str, key: tuple[str, str, float], *against: tuple[str, str, float]) -> Comparison:
        """How much better a row is than another: what is less, where less is better."""
        better = [(*key, metric), *((*other, metric) for other in against)]
        if metric in LESS_IS_BETTER:
            better.reverse()
        one, two = (self.found[name] for name in better)
        return over_people_and_seeds(one, two)

    def mean_gain(self, metric: str, task: str, rows: list[tuple[str, str]], *shares: float) -> Comparison:
        """The mean gain of rows over others; with a second share, what it is more at the first than there."""
        sign = -1.0 if metric in LESS_IS_BETTER else 1.0
        terms: list[tuple[float, list[PerPerson]]] = []
        for share, side in zip(shares, (1.0, -1.0), strict=False):
            for row, other in rows:
                terms.append((side * sign / len(rows), self.found[task, row, share, metric]))
                terms.append((-side * sign / len(rows), self.found[task, other, share, metric]))
        nothing = [PerPerson(torch.zeros_like(m.sums), m.counts) for m in terms[0][1]]
        return over_people_and_seeds(nothing, None, *terms)


def _best(model: HistoryHead) -> float:
    """The figure by which training stopped."""
    name = next(name for name in model.log[-1] if name not in ("epoch", "loss"))
    return max(entry[name] for entry in model.log if name in entry)


def tuned(
    task: str, few: FewLabels, start: dict[str, Any], options: dict[str, Any], rate: Rate
) -> HistoryHead:
    """A model fine-tuned with these rates."""
    return fine_tune(task, few, **start, **options, learning_rate=rate[0], body_rate=rate[1], device="cpu")


def _random(reads: str, n_items: int, seed: int) -> nn.Module:
    """An encoder as it is made, for a model to start from."""
    with isolated_rng(seed + 1000):
        if reads == "bag":
            encoder: nn.Module = BagEncoder(n_items, SHAPE["dim"])
        else:
            encoder = SequenceEncoder(n_items + 1, SHAPE["dim"], 1, 2, SHAPE["max_length"] + 1, causal=False)
    return nn.ModuleDict({"encoder": encoder})


def run(
    n_seeds: int = 3,
    only: int | None = None,
    shares: tuple[float, ...] = SHARES,
    after: Callable[[dict[str, Any]], None] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """The whole measurement.

    Args:
        n_seeds: of everything random.
        after: is given what there is after each seed, so that a run that is cut short leaves something.
        only: of the people, the first so many; None takes all.
        shares: of the labels.
        **changes: options in place of those of ``SHAPE``.
    """
    data = load_movielens("100k")
    split = _split(data, only)
    shape, runs, pre = SHAPE | changes, Runs(), {}
    for seed in range(n_seeds):
        known: dict[str, nn.Module] = {}
        for name, how in PRETRAININGS.items():
            started = time.process_time()
            options = {"dim": shape["dim"]}
            options |= {} if how.reads == "bag" else {"max_length": shape["max_length"]}
            options |= {"epochs": 1} if only else {}
            known[name] = pretrain(name, split.train, seed=seed, device="cpu", **options)
            pre.setdefault(name, []).append(time.process_time() - started)
            if name != "contrast":
                runs.keep("ranking", f"{name}, untuned", 0.0, measure(known[name], "ranking", split))
        for share in sorted(shares, key=lambda share: share in CHOSEN_AT):
            few = few_labels(split, share, seed)
            for task in TASKS:
                for arm in arms():
                    if share not in arm.shares:
                        continue
                    options = {**shape, "l2": L2[task], "reads": arm.reads, "seed": seed}
                    if arm.longer:
                        options |= _as_long(runs, pre, task, arm, share, shape)
                    start: dict[str, Any] = {}
                    if arm.known == "random":
                        start = {"known": _random(arm.reads, split.test.n_items, seed), "frozen": True}
                    elif arm.known is not None:
                        parts = PRETRAININGS[arm.known].parts
                        start = {"known": known[arm.known], "parts": parts, "frozen": arm.frozen}

                    # Longer training keeps the rate that the shorter one was given.
                    rates = (runs.rates[task, NONE[arm.reads], share],) if arm.longer else RATES
                    fit = partial(tuned, task, few, start, options)
                    runs.add(task, arm.name, share, fit, split, rates)
                    value = runs.found[task, arm.name, share, METRIC[task]][-1].value
                    chosen = runs.rates[task, arm.name, share]
                    print(f"seed {seed} {share:.0%} {task} {arm.name}: {value:.4f} {chosen}", flush=True)
        found = {
            "inputs": {"ratings": data.sha256},
            "settings": {
                "seeds": seed + 1,
                "shares": list(shares),
                "rates": [list(rate) for rate in RATES],
                "threads": torch.get_num_threads(),
                **shape,
            },
            "values": _values(split, runs, pre, shares, bars(split, shares, seed + 1)),
        }
        if after is not None:
            after(found)
    return found


def _split(data: MovieLens, only: int | None) -> Split:
    ratings = data.interactions
    ratings = ratings if only is None else ratings[ratings.users < only]
    return leave_last_out(ratings, n=0.2)


def _as_long(
    runs: Runs, pre: dict[str, list[float]], task: str, arm: Arm, share: float, shape: dict[str, Any]
) -> dict[str, int]:
    """Epochs that take as long as a pre-training and what is tuned after it, without stopping early."""
    spent = [sum(times) / len(times) for name, times in pre.items() if PRETRAININGS[name].reads == arm.reads]
    key = (task, NONE[arm.reads], share)
    each = runs.seconds[key][-1] / (runs.epochs[key][-1] + shape["patience"])
    epochs = shape["epochs"] + math.ceil(sum(spent) / len(spent) / max(each, 1e-3))
    every = max(1, epochs // 60)
    return {"epochs": min(epochs, 20 * shape["epochs"]), "patience": epochs, "check_every": every}


def bars(split: Split, shares: tuple[float, ...], n_seeds: int) -> dict[str, dict[str, dict[str, Any]]]:
    """What simple models do: with behaviour alone, or with the same labels."""
    found: dict[str, dict[str, dict[str, Any]]] = {task: {} for task in TASKS}
    for name, model in {"popularity": Popularity(), "EASE": EASE(l2=200.0)}.items():
        model.fit(split.history, device="cpu", progress=False)
        value = measure(model, "ranking", split)["ndcg@10"]
        found["ranking"][f"{name}, all behaviour"] = {
            "0": {"ndcg@10": _interval(over_people_and_seeds([value]))}
        }
    for share in shares:
        measured: dict[tuple[str, str, str], list[PerPerson]] = {}
        for seed in range(n_seeds):
            few = few_labels(split, share, seed)
            liked = few.labels.positives(4.0)
            ease = EASE(l2=200.0).fit(liked, device="cpu", progress=False)
            values = measure(_Fixed(ease), "ranking", split)
            measured.setdefault(("ranking", "EASE, likes", "ndcg@10"), []).append(values["ndcg@10"])
            factors = BiasedMF(seed=seed).fit(few.labels, device="cpu", progress=False)
            measured.setdefault(("rating", "BiasedMF", "rmse"), []).append(
                measure(factors, "rating", split)["rmse"]
            )
            measured.setdefault(("click", "BiasedMF", "auc"), []).append(
                measure(factors, "click", split)["auc"]
            )
        for (task, name, metric), listed in measured.items():
            cell = {metric: _interval(over_people_and_seeds(listed))}
            found[task].setdefault(name, {})[f"{share:g}"] = cell
    return found


class _Fixed:
    """A model that is asked as it is, its histories unchanged."""

    def __init__(self, model: EASE) -> None:
        self.model, self.n_items = model, model.n_items

    def score(self, users: Tensor) -> Tensor:
        return self.model.score(users)


def _values(
    split: Split,
    runs: Runs,
    pre: dict[str, list[float]],
    shares: tuple[float, ...],
    simple: dict[str, dict[str, dict[str, Any]]],
) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    none = {arm.name: NONE[arm.reads] for arm in arms()}
    for (task, row, share, metric), listed in runs.found.items():
        if not share:
            continue
        cell = cells.setdefault(task, {}).setdefault(row, {}).setdefault(f"{share:g}", {})
        cell[metric] = _interval(over_people_and_seeds(listed))
        if row != none[row]:
            cell[f"{metric} gain"] = _interval(
                runs.gain(metric, (task, row, share), (task, none[row], share))
            )
        cell["rate"] = list(runs.rates[task, row, share])
        cell["epochs"] = runs.epochs[task, row, share]
        cell["cpu_seconds"] = round(sum(runs.seconds[task, row, share]) / len(listed), 2)
    tuned = [(name, NONE[how.reads]) for name, how in PRETRAININGS.items()]
    longer = [(name, f"{NONE[how.reads]}, as long") for name, how in PRETRAININGS.items()]
    frozen = [(f"{name}, frozen", f"random {how.reads}, frozen") for name, how in PRETRAININGS.items()]
    means: dict[str, Any] = {}
    for task, metric in METRIC.items():
        mean = means[task] = {"gain": {}, "gain over as long": {}, "frozen gain over random frozen": {}}
        for share in shares:
            mean["gain"][f"{share:g}"] = _interval(runs.mean_gain(metric, task, tuned, share))
            if share in CONTROL_SHARES:
                mean["gain over as long"][f"{share:g}"] = _interval(
                    runs.mean_gain(metric, task, longer, share)
                )
                mean["frozen gain over random frozen"][f"{share:g}"] = _interval(
                    runs.mean_gain(metric, task, frozen, share)
                )
        mean["gain at the first share minus at the last"] = _interval(
            runs.mean_gain(metric, task, tuned, shares[0], shares[-1])
        )
    return {
        "people": int((split.test.user_counts() > 0).sum()),
        "behaviour": len(split.train),
        "labels": {f"{share:g}": len(few_labels(split, share).labels) for share in shares},
        "validation_labels": {f"{share:g}": len(few_labels(split, share).validation) for share in shares},
        "cells": cells,
        "means": means,
        "untuned": {
            row.removesuffix(", untuned"): _interval(over_people_and_seeds(listed))
            for (_, row, share, _), listed in runs.found.items()
            if not share
        },
        "bars": simple,
        "pretraining_cpu_seconds": {name: round(sum(t) / len(t), 1) for name, t in pre.items()},
    }


def half(ratings: Interactions, wanted: Tensor) -> Split:
    """The ratings of some items (n_items,) bool, as a data set of its own, split by time."""
    frame = ratings.to_frame()
    ids = ratings.item_ids[wanted.numpy()]
    frame = frame[frame["item_id"].isin(ids)]
    return leave_last_out(Interactions.from_frame(frame, user_ids=ratings.user_ids, item_ids=ids), n=0.2)


def transfer(
    n_seeds: int = 3,
    only: int | None = None,
    vectors: Tensor | None = None,
    shares: tuple[float, ...] = TRANSFER_SHARES,
    **changes: Any,
) -> dict[str, Any]:
    """Pre-trained on one half of the catalog, tuned on the other.

    Args:
        n_seeds: each cuts the catalog anew.
        only: of the people, the first so many; None takes all.
        vectors: (n_items, D) of the items' texts; by default MiniLM's of titles and genres, their 64 main
            axes, half whitened.
        shares: of the labels.
        **changes: options in place of those of ``SHAPE``.
    """
    data = load_movielens("100k")
    ratings = data.interactions
    ratings = ratings if only is None else ratings[ratings.users < only]
    if vectors is None:
        texts = [
            f"{title} {' '.join(genres)}"
            for title, genres in zip(data.items["title"], data.items["genres"], strict=True)
        ]
        read = item_vectors(texts, TextEncoder())  # (n_items, 384)
        vectors = Whitening.fit(read, 0.5, AXES)(read)  # (n_items, 64)
    shape = {key: value for key, value in (SHAPE | changes).items() if key != "max_length"}
    runs = Runs()
    for seed in range(n_seeds):
        generator = torch.Generator("cpu").manual_seed(seed)
        first = torch.rand(ratings.n_items, generator=generator, device="cpu") < 0.5  # (n_items,)
        noise = torch.randn(vectors.shape, generator=generator, device="cpu")  # (n_items, D)
        one, two = half(ratings, first), half(ratings, ~first)
        starts = {}
        for name, given in (("text", vectors), ("random vectors", noise)):
            known = HistoryHead(
                task="ranking",
                text=given[first],
                behaviour=one.train,
                seed=seed,
                learning_rate=0.003,
                **shape | {"patience": 5},
            )
            # All that was rated is behaviour, and all of it is asked: a denoising autoencoder of texts.
            starts[name] = known.fit(one.train, one.validation, device="cpu", progress=False)
        for share in shares:
            few = few_labels(two, share, seed)
            for task in TASKS:
                options: dict[str, Any] = {**shape, "l2": L2[task], "seed": seed}
                rows: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {"numbers of films": ({}, options)}
                for name, given in (("text", vectors), ("random vectors", noise)):
                    with_text = options | {"text": given[~first]}
                    rows[name] = ({}, with_text)
                    rows[f"{name}, pre-trained"] = ({"known": starts[name], "parts": _CROSSES}, with_text)
                for row, (start, chosen) in rows.items():
                    runs.add(task, row, share, partial(tuned, task, few, start, chosen), two, TRANSFER_RATES)
            print(f"seed {seed}, {share:.0%} of the labels", flush=True)
    cells: dict[str, Any] = {}
    for (task, row, share, metric), listed in runs.found.items():
        cell = cells.setdefault(task, {}).setdefault(row, {}).setdefault(f"{share:g}", {})
        cell[metric] = _interval(over_people_and_seeds(listed))
        if row.endswith("pre-trained"):
            plain = row.removesuffix(", pre-trained")
            cell[f"{metric} gain"] = _interval(runs.gain(metric, (task, row, share), (task, plain, share)))
        cell["rate"] = list(runs.rates[task, row, share])
    beyond = {
        task: {
            f"{share:g}": _interval(
                runs.gain(
                    metric, (task, "text, pre-trained", share), (task, "random vectors, pre-trained", share)
                )
            )
            for share in shares
        }
        for task, metric in METRIC.items()
    }
    return {
        "inputs": {"ratings": data.sha256},
        "settings": {
            "seeds": n_seeds,
            "shares": list(shares),
            "rates": [list(rate) for rate in TRANSFER_RATES],
            **shape,
        },
        "values": {"cells": cells, "text_minus_random_pre_trained": beyond},
    }


_CROSSES = ("encoder", "items", "head.map")


def _interval(gap: Comparison) -> dict[str, float]:
    return {"mean": round(gap.mean, 5), "low": round(gap.low, 5), "high": round(gap.high, 5)}


def table(found: dict[str, Any]) -> str:
    """The run as text: a line a task and a row, a column a share."""
    lines = []
    for task, rows in found["values"]["cells"].items():
        shares = list(next(iter(rows.values())))
        metric = METRIC[task]
        lines.append(f"{task}, {metric}" + "".join(f"{share:>16}" for share in shares))
        for row, cells in rows.items():
            shown = []
            for share in shares:
                cell = cells.get(share)
                gain = "" if cell is None else cell.get(f"{metric} gain", {}).get("mean", "")
                shown.append("" if cell is None else f"{cell[metric]['mean']:.4f} {gain}")
            lines.append(f"  {row:32}" + "".join(f"{text:>16}" for text in shown))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("--transfer", action="store_true", help="from one half of the catalog to the other")
    parser.add_argument("--record", type=Path, help="a file for the results, as JSON")
    arguments = parser.parse_args()
    seeds = {} if arguments.seeds is None else {"n_seeds": arguments.seeds}

    def record(found: dict[str, Any]) -> None:
        if arguments.record:
            write_run(
                arguments.record,
                about=__doc__ or "",
                command=TRANSFER_COMMAND if arguments.transfer else COMMAND,
                versions=("torch", "numpy"),
                code=TRANSFER_CODE if arguments.transfer else CODE,
                **found,
            )

    found = transfer(**seeds) if arguments.transfer else run(after=record, **seeds)
    record(found)
    print(table(found))


if __name__ == "__main__":
    main()
