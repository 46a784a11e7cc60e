"""Chapter 9's model and what is left of it when a part is taken out, all with the same budget.

The split is the headline split of MovieLens-100K, the last fifth of each history; the measure is NDCG@10 over
the whole catalog, for every third person. Every model makes the same number of passes over the same targets.
What it costs in processor time stands beside it. A difference is to the full model, with the interval over
people. Six of the models are fitted with three seeds; their differences have an interval over seeds and
people. Four models of other chapters, in the settings chosen there, are asked for the same people.

With ``--long`` four of the models train longer and wider, and stand beside EASE. With ``--new`` films that
nobody has chosen yet are ranked, over eight draws.

Usage::

    OMP_NUM_THREADS=1 python benchmarks/cross_attention.py [--epochs 3] [--long | --new] [--record FILE]
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_lib.attention import CrossAttention
from recsys_lib.chapter.runs import write_run
from recsys_lib.cold_items import ColdItems, Draw
from recsys_lib.data import Interactions, MovieLens, Split, leave_last_out, load_movielens
from recsys_lib.devices import seed_generator
from recsys_lib.draws import over_draws
from recsys_lib.evaluation import Comparison, Report, compare, evaluate, mean_report
from recsys_lib.models import (
    DIN,
    EASE,
    AttentionScore,
    CrossAttentionRecommender,
    MatrixFactorization,
    Popularity,
    Recommender,
    SASRec,
)
from recsys_lib.models.core.event_words import EventWords, Tokens
from recsys_lib.text import TextEncoder, TextWords

COMMAND = "OMP_NUM_THREADS=1 python benchmarks/cross_attention.py --record book/recorded/cross_attention.json"
CODE = (
    *(
        f"benchmarks/cross_attention.py::{name}"
        for name in (
            "SHAPE",
            "SEEDED",
            "MeanOfHeads",
            "EqualWeights",
            "words_of",
            "rows",
            "bars",
            "over_both",
            "run",
        )
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
FULL, LATE, SCORE = "full model", "late fusion", "attention score"
EQUAL = "attention score, equal weights"  # two vectors, a dot product and a term of the item
CONTROL = "late fusion, dot product, no block"  # the same, but for a factor of 1 / sqrt(d)
SEEDED = (FULL, LATE, SCORE, EQUAL, CONTROL, "two heads", "two heads, averaged")
LONG = {"dim": 32, "n_negatives": 4, "learning_rate": 0.003, "epochs": 8}
LONG_COMMAND = (
    "OMP_NUM_THREADS=1 python benchmarks/cross_attention.py --long "
    "--record book/recorded/cross_attention_long.json"
)
LIBRARY = tuple(name for name in CODE if name.startswith("recsys_lib/"))
LONG_CODE = (
    *(
        f"benchmarks/cross_attention.py::{name}"
        for name in ("SHAPE", "LONG", "EqualWeights", "words_of", "rows", "long_run")
    ),
    *LIBRARY,
)
NEW = {"max_words": 12, "item": "words", "epochs": 3}
NEW_COMMAND = (
    "OMP_NUM_THREADS=1 python benchmarks/cross_attention.py --new "
    "--record book/recorded/cross_attention_new.json"
)
NEW_CODE = (
    *(
        f"benchmarks/cross_attention.py::{name}"
        for name in (
            "SHAPE",
            "NEW",
            "EqualWeights",
            "new_words",
            "mean_words",
            "ridge",
            "on_new_films",
            "new_run",
        )
    ),
    *LIBRARY,
    "recsys_lib/cold_items.py",
)


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


class EqualWeights(AttentionScore):
    """The attention score with the same weight for each pair: the dot product of two means."""

    def weights(self, events: Tokens, words: Tokens) -> Tensor:
        """One over the number of pairs, where there is one: (B, C, T, W)."""
        both = events.present[..., :, None] & words.present[..., None, :]  # (B, C, T, W)
        return both / both.sum(dim=(-2, -1), keepdim=True).clamp(min=1)


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
        LATE: partial(cross, direction="none"),
        "late fusion, dot product": partial(cross, direction="none", head="dot"),
        "events look at words": partial(cross, direction="history"),
        "words look at events": partial(cross, direction="words"),
        "no block over the events": partial(cross, n_layers=0),
        CONTROL: partial(cross, direction="none", head="dot", n_layers=0),
        "a block over the words": partial(cross, word_layers=1),
        "as drawn": partial(cross, head="linear", zero_start=False, word_layers=1, event="id", item="words"),
        "linear head": partial(cross, head="linear"),
        "random start": partial(cross, zero_start=False),
        "maximum pooling": partial(cross, pooling="max"),
        "attention pooling": partial(cross, pooling="attention"),
        "no action types": partial(cross, action_types=False),
        "no dislikes": partial(cross, actions=None),
        "no own vectors": partial(cross, item="words", event="words"),
        "no words": partial(cross, item="id", event="id"),
        "words of another film": partial(cross, text=dealt),
        "random word vectors": partial(cross, text=replace(words, vectors=noise)),
        "BPR": partial(cross, objective="bpr"),
        "squared error": partial(cross, objective="squared_error"),
        "future masked": partial(cross, causal=True),
        "two heads": partial(cross, n_heads=2),
        "two heads, averaged": partial(AveragedHeads, **given | {"n_heads": 2}),
        SCORE: partial(AttentionScore, **{k: v for k, v in given.items() if k != "n_heads"}),
        EQUAL: partial(EqualWeights, **{k: v for k, v in given.items() if k != "n_heads"}),
        "DIN": partial(DIN, **{k: v for k, v in given.items() if k != "n_heads"}),
    }


def bars(seed: int, most: int | None = None) -> dict[str, partial[Recommender]]:
    """Models of other chapters in the settings that were chosen there, by name.

    Args:
        seed: of each that starts at random.
        most: epochs that one may take; None takes what was chosen.
    """
    factors = {"loss": "softmax", "l2": 0.2, "batch_size": 512, "learning_rate": 0.003}
    return {
        "popularity": partial(Popularity),
        "MF, softmax": partial(MatrixFactorization, **factors, epochs=min(most or 16, 16), seed=seed),
        "SASRec": partial(SASRec, epochs=min(most or 35, 35), seed=seed),
        "EASE, recency": partial(EASE, l2=400.0, recency=0.7),
    }


def over_both(a: Sequence[Report], b: Sequence[Report]) -> dict[str, Any]:
    """The difference a minus b of reports, one a seed, with its interval over seeds and people.

    Its half is the root of the sum of two squares: half the interval over people of the seeds' mean, and half
    that over seeds, by Student's t.
    """
    people = compare(mean_report(a), mean_report(b), "ndcg@10")
    by_seed = [compare(x, y, "ndcg@10").mean for x, y in zip(a, b, strict=True)]
    seeds = over_draws(by_seed)
    half = math.hypot(people.high - people.low, seeds.high - seeds.low) / 2
    return {
        "mean": round(people.mean, 5),
        "low": round(people.mean - half, 5),
        "high": round(people.mean + half, 5),
        "over_people": _interval(people),
        "over_seeds": _interval(seeds),
        "by_seed": [round(value, 5) for value in by_seed],
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


def run(
    epochs: int = 3, seed: int = 0, every: int = 3, only: int | None = None, bar_epochs: int | None = None
) -> dict[str, Any]:
    """The whole measurement.

    Args:
        epochs: of each model.
        seed: of each model; those with several seeds take it and the next two.
        every: ask every n-th person.
        only: of the people and their events, the first so many; None takes all.
        bar_epochs: the most that a model of another chapter may take; None takes what was chosen there.
    """
    data = load_movielens("100k")
    ratings = data.interactions
    ratings = ratings if only is None else ratings[ratings.users < only]
    split = leave_last_out(ratings.positives(4.0), n=0.2)
    asked = split.test.users.unique()[::every]
    words, seconds = words_of(data), {}

    def measured(name: str, make: partial[Any]) -> Report:
        started = time.process_time()
        model = make().fit(split.history, device="cpu", progress=False)
        took = time.process_time() - started
        seconds.setdefault(name, took)
        report = evaluate(
            model, split.test, seen=split.history, users=asked, metrics=["ndcg"], progress=False
        )
        print(f"{name:36}{took:6.1f} s  {report.metrics['ndcg@10']:.4f}", flush=True)
        return report

    makes = {name: partial(make, epochs=epochs) for name, make in rows(words, ratings, seed).items()}
    reports = {name: measured(name, make) for name, make in makes.items()}
    of_seeds = {name: [reports[name]] for name in SEEDED}
    for other in (seed + 1, seed + 2):
        again = rows(words, ratings, other)
        for name, found in of_seeds.items():
            found.append(measured(name, partial(again[name], epochs=epochs)))
    beside = {name: measured(name, make) for name, make in bars(seed, bar_epochs).items()}
    new = {name: strangers(split, makes[name], asked) for name in (FULL, LATE)}
    differences = {name: compare(report, reports[FULL], "ndcg@10") for name, report in reports.items()}
    pairs = ((FULL, LATE), (SCORE, EQUAL), (SCORE, CONTROL), (SCORE, FULL), (SCORE, LATE), (EQUAL, LATE))
    pairs += (("two heads, averaged", "two heads"), ("two heads", FULL))
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
            "score_minus_equal": _interval(compare(reports[SCORE], reports[EQUAL], "ndcg@10")),
            "score_minus_control": _interval(compare(reports[SCORE], reports[CONTROL], "ndcg@10")),
            "ndcg@10_by_seed": {
                name: [round(report.metrics["ndcg@10"], 5) for report in found]
                for name, found in of_seeds.items()
            },
            "over_seeds": {f"{a} - {b}": over_both(of_seeds[a], of_seeds[b]) for a, b in pairs},
            "bars": {name: round(report.metrics["ndcg@10"], 5) for name, report in beside.items()},
            "full_minus_bars": {
                name: _interval(compare(reports[FULL], report, "ndcg@10")) for name, report in beside.items()
            },
            "drawn_minus_popularity": _interval(
                compare(reports["as drawn"], beside["popularity"], "ndcg@10")
            ),
            "strangers": {name: round(report.metrics["ndcg@10"], 5) for name, report in new.items()},
            "strangers_minus_known": {
                name: _interval(compare(report, reports[name], "ndcg@10")) for name, report in new.items()
            },
            "strangers_full_minus_late": _interval(compare(new[FULL], new[LATE], "ndcg@10")),
        },
    }


def long_run(seed: int = 0, every: int = 3, only: int | None = None, **changes: Any) -> dict[str, Any]:
    """Four of the models with more of everything, and EASE.

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
    for name in (LATE, EQUAL, SCORE, FULL):
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
            "full_minus_late": against(FULL, LATE),
            "score_minus_late": against(SCORE, LATE),
            "score_minus_equal": against(SCORE, EQUAL),
            "full_minus_ease": against(FULL, "EASE, recency"),
            "late_minus_ease": against(LATE, "EASE, recency"),
        },
    }


def new_words(data: MovieLens) -> TextWords:
    """The words of genres, year and title, so that what a long text loses is the end of its title."""
    items = data.items
    years = items["year"].astype("string").fillna("")
    texts = [
        f"{' '.join(genres)} {year} {title}"
        for title, year, genres in zip(items["title"], years, items["genres"], strict=True)
    ]
    return TextWords.of(texts, max_words=NEW["max_words"]).reduced(64)


def mean_words(words: TextWords) -> Tensor:
    """The mean vector of each text's words, (N, D): all that late fusion reads of a new film."""
    vectors = words.vectors - words.vectors.mean(dim=0)  # (V, D)
    there = (words.rows >= 0)[..., None]  # (N, W, 1)
    total = (vectors[words.rows.clamp(min=0)] * there).sum(dim=1)  # (N, D)
    return total / there.sum(dim=1).clamp(min=1)


def ridge(draw: Draw, vectors: Tensor, l2: float) -> Tensor:
    """Scores (n_users, n_items): for each person a line from a film's vector (N, D) to choices."""
    x = functional.normalize(vectors - vectors.mean(dim=0), dim=1)  # (N, D)
    x = functional.pad(x, (0, 1), value=1.0)  # (N, D + 1)
    known = x[draw.events.item_counts() > 0]  # (M, D + 1)
    gram = known.mT @ known + l2 * torch.eye(x.shape[1], device=x.device)  # (D + 1, D + 1)
    return torch.linalg.solve(gram, (draw.events.matrix() @ x).mT).mT @ x.mT


def on_new_films(draw: Draw, make: partial[EventWords], ratings: Interactions) -> Tensor:
    """Scores (n_users, n_items) of a model that has seen no event of a new film, -inf where none is asked."""
    old = ratings[~torch.isin(ratings.items, draw.items)]
    model = make(actions=old, seed=draw.seed).fit(draw.events, device="cpu", progress=False)
    scores = torch.full((ratings.n_users, ratings.n_items), -torch.inf, device="cpu")
    who, what = torch.meshgrid(draw.users, draw.items, indexing="ij")  # (U, M) each
    scores[draw.users[:, None], draw.items] = model.predict(who.flatten(), what.flatten()).view(who.shape)
    return scores


def new_run(
    n_draws: int = 8, seed: int = 0, every: int = 4, only: int | None = None, **changes: Any
) -> dict[str, Any]:
    """Films that nobody has chosen yet.

    Args:
        n_draws: of new films.
        seed: of the first draw, and of its models; the next ones take the next.
        every: ask every n-th person.
        only: of the people and their events, the first so many; None takes all.
        **changes: options in place of those of ``NEW``.
    """
    data = load_movielens("100k")
    ratings = data.interactions
    ratings = ratings if only is None else ratings[ratings.users < only]
    started = time.process_time()
    words = new_words(data)
    noise = torch.randn(words.vectors.shape, generator=seed_generator(seed), device="cpu")
    random = replace(words, vectors=noise)
    given: dict[str, Any] = {**SHAPE, **NEW, **changes}
    without_heads = {name: value for name, value in given.items() if name != "n_heads"}
    full = partial(CrossAttentionRecommender, **given, text=words)
    makes: dict[str, partial[EventWords]] = {
        FULL: full,
        LATE: partial(full, direction="none"),
        f"{FULL}, random words": partial(full, text=random),
        SCORE: partial(AttentionScore, **without_heads, text=words),
        EQUAL: partial(EqualWeights, **without_heads, text=words),
    }
    cold = ColdItems(ratings.positives(4.0), n_draws, seed=seed, every=every, device="cpu")
    read = {
        "ridge, whole text": TextEncoder().encode(list(data.items["text"]), progress=False).cpu(),
        "ridge, same words": mean_words(words),
        "ridge, random words": mean_words(random),
    }
    for name, vectors in read.items():
        cold.add(
            name,
            partial(ridge, vectors=vectors),
            {"l2": [0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0]},
        )
    for name, make in makes.items():
        cold.add(name, partial(on_new_films, make=make, ratings=ratings))
    cold.add_controls().run()
    print(cold.table()[["ndcg@10", "low", "high", "seconds", "chosen"]].to_string(), flush=True)
    frame = cold.draws.frame
    return {
        "inputs": {"ratings": data.sha256},
        "settings": {
            "draws": n_draws,
            "seed": seed,
            "every": every,
            "threads": torch.get_num_threads(),
            **given,
        },
        "values": {
            "cpu_seconds": round(time.process_time() - started),
            "full_texts": int((words.rows[:, -1] >= 0).sum()),
            "ndcg@10": {name: _interval(cold.mean(name)) for name in frame},
            "draws": {name: [round(value, 5) for value in frame[name]] for name in frame},
            "l2": {name: cold[name].best["l2"] for name in read if cold[name].best},
            "at_an_end": sorted(cold.edges()),
        },
    }


def _interval(gap: Comparison) -> dict[str, float]:
    return {"mean": round(gap.mean, 5), "low": round(gap.low, 5), "high": round(gap.high, 5)}


def table(found: dict[str, Any]) -> str:
    """The run as text."""
    values = found["values"]
    lines = [f"{'':36}{'NDCG@10':>8}{'minus full':>12}{'interval':>20}{'CPU':>8}"]
    for name, value in values["ndcg@10"].items():
        gap = values["minus_full"].get(name)
        between = "" if gap is None else f"{gap['mean']:+12.4f}  [{gap['low']:+.4f}, {gap['high']:+.4f}]"
        lines.append(f"{name:36}{value:8.4f}{between:34}{values['cpu_seconds'][name]:6.1f} s")
    for name, gap in values["over_seeds"].items():
        between = f"{gap['mean']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]"
        lines.append(f"{name}, over seeds and people: {between}, by seed {gap['by_seed']}")
    lines += [f"{name:36}{value:8.4f}" for name, value in values["bars"].items()]
    for name, gap in values["strangers_minus_known"].items():
        lines.append(f"{name}, people never trained on: {values['strangers'][name]:.4f}, {gap['mean']:+.4f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=3)
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--long", action="store_true", help="four of the models, for longer")
    chosen.add_argument("--new", action="store_true", help="films that nobody has chosen yet")
    parser.add_argument("--record", type=Path, help="a file for the results, as JSON")
    arguments = parser.parse_args()
    command, code = COMMAND, CODE
    if arguments.long:
        found, command, code = long_run(), LONG_COMMAND, LONG_CODE
    elif arguments.new:
        found, command, code = new_run(), NEW_COMMAND, NEW_CODE
    else:
        found = run(arguments.epochs)
    print(found["values"] if arguments.long or arguments.new else table(found))
    if arguments.record:
        write_run(
            arguments.record,
            about=__doc__ or "",
            command=command,
            versions=("torch", "numpy"),
            code=code,
            **found,
        )


if __name__ == "__main__":
    main()
