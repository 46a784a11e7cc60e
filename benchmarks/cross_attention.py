"""Chapter 9's model and what is left of it when a part is taken out, all with the same budget.

The split is the headline split of MovieLens-100K, the last fifth of each history; the measure is NDCG@10 over
the whole catalog, for every third person. Every model makes the same number of passes over the same targets.
What it costs in processor time stands beside it. A difference is to the full model, with the interval over
people.

With ``--long`` three of the models train longer and wider, and stand beside EASE.

Usage::

    OMP_NUM_THREADS=1 python benchmarks/cross_attention.py [--epochs 3] [--long] [--record FILE]
"""

import argparse
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_lib.attention import CrossAttention
from recsys_lib.chapter.runs import write_run
from recsys_lib.data import Interactions, MovieLens, Split, leave_last_out, load_movielens
from recsys_lib.devices import seed_generator
from recsys_lib.evaluation import Comparison, Report, compare, evaluate
from recsys_lib.models import DIN, EASE, AttentionScore, CrossAttentionRecommender
from recsys_lib.models.core.event_words import EventWords
from recsys_lib.text import TextWords

COMMAND = "OMP_NUM_THREADS=1 python benchmarks/cross_attention.py --record book/recorded/cross_attention.json"
CODE = (
    *(
        f"benchmarks/cross_attention.py::{name}"
        for name in ("SHAPE", "MeanOfHeads", "words_of", "rows", "run")
    ),
    *(f"recsys_lib/models/{name}.py" for name in ("cross_attention", "attention_score", "din")),
    "recsys_lib/models/core/event_words.py",
    "recsys_lib/attention.py::CrossAttention",
    "recsys_lib/training.py::train",
    "recsys_lib/evaluation.py",
)
SHAPE = {
    "dim": 16,
    "n_heads": 1,
    "max_history": 10,
    "max_words": 8,
    "n_negatives": 2,
    "batch_size": 128,
    "learning_rate": 0.005,
}
FULL = "full model"
LONG = {"dim": 32, "n_negatives": 4, "learning_rate": 0.003, "epochs": 8}
LONG_COMMAND = (
    "OMP_NUM_THREADS=1 python benchmarks/cross_attention.py --long "
    "--record book/recorded/cross_attention_long.json"
)
LONG_CODE = ("benchmarks/cross_attention.py::LONG", "benchmarks/cross_attention.py::long_run", *CODE[2:])


class MeanOfHeads(nn.Module):
    """A map of the mean of the heads, in the place of one of all heads side by side."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads, self.one = n_heads, nn.Linear(dim // n_heads, dim)

    @property
    def weight(self) -> Tensor:
        """The same map as one of all heads: (d, d)."""
        return self.one.weight.repeat(1, self.n_heads) / self.n_heads

    @property
    def bias(self) -> Tensor:
        """(d,)"""
        return self.one.bias

    def forward(self, heads: Tensor) -> Tensor:
        """(..., d) to (..., d)."""
        return functional.linear(heads, self.weight, self.bias)


class AveragedHeads(CrossAttentionRecommender):
    """The model with the heads of its cross-attention averaged."""

    def build(self) -> None:
        """Puts the mean in the place of the map of all heads."""
        super().build()
        for cross in (self.to_words, self.to_events):
            assert isinstance(cross, CrossAttention)
            mean = MeanOfHeads(self.dim, self.n_heads)
            nn.init.zeros_(mean.one.weight)
            nn.init.zeros_(mean.one.bias)
            cross.attention.output = mean  # type: ignore[assignment]


def words_of(data: MovieLens) -> TextWords:
    """The words of titles and genres, 64 features each."""
    texts = [
        f"{title} {' '.join(genres)}"
        for title, genres in zip(data.items["title"], data.items["genres"], strict=True)
    ]
    return TextWords.of(texts, max_words=SHAPE["max_words"]).reduced(64)


def rows(words: TextWords, ratings: Interactions, seed: int) -> dict[str, partial[EventWords]]:
    """What is compared, by name; each makes a model."""
    generator = seed_generator(seed)
    dealt = replace(words, rows=words.rows[torch.randperm(len(words), generator=generator, device="cpu")])
    noise = torch.randn(words.vectors.shape, generator=generator, device="cpu")
    given: dict[str, Any] = {**SHAPE, "text": words, "actions": ratings, "seed": seed}
    cross = partial(CrossAttentionRecommender, **given)
    return {
        FULL: cross,
        "late fusion": partial(cross, direction="none"),
        "late fusion, dot product": partial(cross, direction="none", head="dot"),
        "events look at words": partial(cross, direction="history"),
        "words look at events": partial(cross, direction="words"),
        "linear head": partial(cross, head="linear"),
        "random start": partial(cross, zero_start=False),
        "maximum pooling": partial(cross, pooling="max"),
        "attention pooling": partial(cross, pooling="attention"),
        "no action types": partial(cross, action_types=False),
        "no dislikes": partial(cross, actions=None),
        "no numbers of films": partial(cross, item="words", event="words"),
        "no words": partial(cross, item="id", event="id"),
        "words of another film": partial(cross, text=dealt),
        "random word vectors": partial(cross, text=replace(words, vectors=noise)),
        "BPR": partial(cross, objective="bpr"),
        "squared error": partial(cross, objective="squared_error"),
        "future masked": partial(cross, causal=True),
        "two heads": partial(cross, n_heads=2),
        "two heads, averaged": partial(AveragedHeads, **given | {"n_heads": 2}),
        "attention score": partial(AttentionScore, **{k: v for k, v in given.items() if k != "n_heads"}),
        "DIN": partial(DIN, **{k: v for k, v in given.items() if k != "n_heads"}),
    }


def strangers(split: Split, make: partial[EventWords], asked: Tensor) -> Report:
    """A model that was fitted without these people, on their test events: it reads their histories."""
    of_asked = torch.isin(split.history.users, asked)
    model = make()
    model.fit(split.history[~of_asked], device="cpu", progress=False)
    last = torch.zeros(split.history.n_users, dtype=torch.int64, device="cpu")  # (n_users,)
    last = last.scatter_reduce(0, split.history.users, split.history.timestamps, "amax")
    everything = model.actions
    model.update_histories(everything[everything.timestamps <= last[everything.users]])
    return evaluate(model, split.test, seen=split.history, users=asked, metrics=["ndcg"], progress=False)


def run(epochs: int = 3, seed: int = 0, every: int = 3, only: int | None = None) -> dict[str, Any]:
    """The whole measurement.

    Args:
        epochs: of each model.
        seed: of each model.
        every: ask every n-th person.
        only: of the people and their events, the first so many; None takes all.
    """
    data = load_movielens("100k")
    ratings = data.interactions
    ratings = ratings if only is None else ratings[ratings.users < only]
    split = leave_last_out(ratings.positives(4.0), n=0.2)
    asked = split.test.users.unique()[::every]
    reports, seconds = {}, {}
    makes = {name: partial(make, epochs=epochs) for name, make in rows(words_of(data), ratings, seed).items()}
    for name, make in makes.items():
        started = time.process_time()
        model = make().fit(split.history, device="cpu", progress=False)
        seconds[name] = time.process_time() - started
        reports[name] = evaluate(
            model, split.test, seen=split.history, users=asked, metrics=["ndcg"], progress=False
        )
        print(f"{name:26}{seconds[name]:6.1f} s  {reports[name].metrics['ndcg@10']:.4f}", flush=True)
    new = {name: strangers(split, makes[name], asked) for name in (FULL, "late fusion")}
    differences = {name: compare(report, reports[FULL], "ndcg@10") for name, report in reports.items()}
    return {
        "inputs": {"ratings": data.sha256},
        "settings": {
            "epochs": epochs,
            "seed": seed,
            "every": every,
            "threads": torch.get_num_threads(),
            **SHAPE,
        },
        "values": {
            "people": len(asked),
            "ndcg@10": {name: round(report.metrics["ndcg@10"], 5) for name, report in reports.items()},
            "cpu_seconds": {name: round(value, 1) for name, value in seconds.items()},
            "minus_full": {name: _interval(gap) for name, gap in differences.items() if name != FULL},
            "two_heads_averaged_minus_concatenated": _interval(
                compare(reports["two heads, averaged"], reports["two heads"], "ndcg@10")
            ),
            "strangers": {name: round(report.metrics["ndcg@10"], 5) for name, report in new.items()},
            "strangers_minus_known": {
                name: _interval(compare(report, reports[name], "ndcg@10")) for name, report in new.items()
            },
            "strangers_full_minus_late": _interval(compare(new[FULL], new["late fusion"], "ndcg@10")),
        },
    }


def long_run(seed: int = 0, every: int = 3, only: int | None = None, **changes: Any) -> dict[str, Any]:
    """Three of the models with more of everything, and EASE.

    Args:
        seed: of each model.
        every: ask every n-th person.
        only: of the people and their events, the first so many; None takes all.
        **changes: options in place of those of ``LONG``.
    """
    data = load_movielens("100k")
    ratings = data.interactions
    ratings = ratings if only is None else ratings[ratings.users < only]
    split = leave_last_out(ratings.positives(4.0), n=0.2)
    asked = split.test.users.unique()[::every]
    makes: dict[str, Any] = {"EASE, recency": partial(EASE, l2=400.0, recency=0.7)}
    for name in ("late fusion", "attention score", FULL):
        makes[name] = partial(rows(words_of(data), ratings, seed)[name], **LONG | changes)
    reports, seconds = {}, {}
    for name, make in makes.items():
        started = time.process_time()
        model = make().fit(split.history, device="cpu", progress=False)
        seconds[name] = round(time.process_time() - started, 1)
        reports[name] = evaluate(
            model, split.test, seen=split.history, users=asked, metrics=["ndcg"], progress=False
        )
        print(f"{name:26}{seconds[name]:6.1f} s  {reports[name].metrics['ndcg@10']:.4f}", flush=True)

    def against(a: str, b: str) -> dict[str, float]:
        return _interval(compare(reports[a], reports[b], "ndcg@10"))

    return {
        "inputs": {"ratings": data.sha256},
        "settings": {"seed": seed, "every": every, "threads": torch.get_num_threads(), **SHAPE, **LONG},
        "values": {
            "people": len(asked),
            "ndcg@10": {name: round(report.metrics["ndcg@10"], 5) for name, report in reports.items()},
            "cpu_seconds": seconds,
            "full_minus_late": against(FULL, "late fusion"),
            "score_minus_late": against("attention score", "late fusion"),
            "full_minus_ease": against(FULL, "EASE, recency"),
            "late_minus_ease": against("late fusion", "EASE, recency"),
        },
    }


def _interval(gap: Comparison) -> dict[str, float]:
    return {"mean": round(gap.mean, 5), "low": round(gap.low, 5), "high": round(gap.high, 5)}


def table(found: dict[str, Any]) -> str:
    """The run as text."""
    values = found["values"]
    lines = [f"{'':26}{'NDCG@10':>8}{'minus full':>12}{'interval':>20}{'CPU':>8}"]
    for name, value in values["ndcg@10"].items():
        gap = values["minus_full"].get(name)
        between = "" if gap is None else f"{gap['mean']:+12.4f}  [{gap['low']:+.4f}, {gap['high']:+.4f}]"
        lines.append(f"{name:26}{value:8.4f}{between:34}{values['cpu_seconds'][name]:6.1f} s")
    for name, gap in values["strangers_minus_known"].items():
        lines.append(f"{name}, people never trained on: {values['strangers'][name]:.4f}, {gap['mean']:+.4f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--long", action="store_true", help="three of the models, for longer")
    parser.add_argument("--record", type=Path, help="a file for the results, as JSON")
    arguments = parser.parse_args()
    found = long_run() if arguments.long else run(arguments.epochs)
    print(found["values"] if arguments.long else table(found))
    if arguments.record:
        write_run(
            arguments.record,
            about=__doc__ or "",
            command=LONG_COMMAND if arguments.long else COMMAND,
            versions=("torch", "numpy"),
            code=LONG_CODE if arguments.long else CODE,
            **found,
        )


if __name__ == "__main__":
    main()
