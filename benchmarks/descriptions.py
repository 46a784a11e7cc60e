"""What is known of films that nobody has chosen yet: titles, genres, years, and what an encyclopedia says.

Of MovieLens-100K, 10 % of the films with likes are taken out with all their likes, eight times. The others
teach a ridge regression from what is known of a film to who likes it (``ItemFeatureRidge``), which ranks
the films taken out for everybody who likes one. The measure is NDCG@10 among these films; intervals are
over the draws, by Student's t. Each row's penalty, and the weight of genre and year where they are added,
are chosen on the validation films of the first draw. Where all kinds of knowledge are added up, the richest
weigh 1 and the others 0.1. That was set by hand when results of the draws had been seen, so it flatters;
the weights called searched were found without them, on the films that no draw takes out, each left out in
turn (``find_weights``).

Then, is it meaning or fame? The films are ranked by their predicted number of likes alone; by what of a
model's score a straight line from that number leaves over; among films of about as many hidden likes; and
with titles, names of people or whole descriptions taken away.

Names are found by rule: the cast as the files list it, and who stands after "directed by" and other
credits. A name goes as a whole, and its last word wherever it stands alone.

Usage::

    OMP_NUM_THREADS=1 python benchmarks/descriptions.py [--draws 8] [--record FILE]
"""

import argparse
import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from recsys_lib.chapter.runs import write_run
from recsys_lib.cold_items import ColdItems, Draw
from recsys_lib.data import Interactions, leave_last_out, load_descriptions, load_movielens
from recsys_lib.data import descriptions as files
from recsys_lib.draws import Draws, over_draws
from recsys_lib.evaluation import Comparison, Report, compare, evaluate
from recsys_lib.feature_weights import find_weights
from recsys_lib.kernels import Features
from recsys_lib.metrics import auc
from recsys_lib.models import EASE, Blend, ItemFeatureRidge
from recsys_lib.models.item_feature_ridge import Shared
from recsys_lib.text import StaticEncoder, TextEncoder, TextVectors, TfidfEncoder
from recsys_lib.text.pretrained import content_hash

COMMAND = "OMP_NUM_THREADS=1 python benchmarks/descriptions.py --record book/recorded/descriptions.json"
CODE = (
    *(
        f"benchmarks/descriptions.py::{name}"
        for name in (
            "Films",
            "Ridge",
            "best_of",
            "without_title",
            "without_people",
            "contenders",
            "cold_rows",
            "fame",
            "warm",
            "run",
        )
    ),
    *(f"recsys_lib/models/{name}.py" for name in ("item_feature_ridge", "ease")),
    *(
        f"recsys_lib/{name}.py"
        for name in ("kernels", "feature_weights", "cold_items", "draws", "evaluation")
    ),
    *(f"recsys_lib/data/{name}.py" for name in ("descriptions", "film_matching", "splits")),
)
SHARE = 0.1
BASE = "title, genres"
LIVE, ALL = "all but descriptions", "all with descriptions"
SEARCHED = ", weights searched"
CHANCE, LIKES = "random order", "hidden likes"
PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
PENALTIES_OF_LIKES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
BESIDE = (0.1, 0.3, 1.0, 3.0)  # weights of genre and year beside another kind
STRATA = 8  # groups of films of about as many hidden likes

Kinds = dict[str, Features]

# ---------------------------------------------------------------------- what is known of a film

_WORD = r"(?:(?:[A-Z]\.)+|[A-Z][\w'\u2019-]*)"
_NAME = rf"{_WORD}(?: (?:{_WORD}|de|van|von|der|la|le))*"
_NAMES = rf"(?P<names>{_NAME}(?:(?:, and |, | and | & ){_NAME})*)"
_MORE = r"(?:,? (?:and|co-written|written|directed|produced|scored|edited))*"
_DIRECTOR = re.compile(rf"\bdirected{_MORE} by {_NAMES}")
_CREDIT = re.compile(rf"\b(?:(?:directed|written|produced|scored|edited){_MORE} by|starring|stars) {_NAMES}")
_BETWEEN = re.compile(r", and |, | and | & ")


def directors(text: str) -> list[str]:
    """Who directed a film, by its description."""
    match = _DIRECTOR.search(text)
    return [] if match is None else _BETWEEN.split(match["names"])


def without_title(text: str, titles: Sequence[str]) -> str:
    """A description in which the film has no name."""
    for title in sorted({title for title in titles if len(title) > 1}, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(title)}(?!\w)", "the film", text, flags=re.IGNORECASE)
    return text


def without_people(text: str, cast: Sequence[str]) -> str:
    """A description in which nobody of the cast and nobody with a credit has a name."""
    people = {name for name in cast if name[:1].isupper()} | set(directors(text))
    for match in _CREDIT.finditer(text):
        people |= {name for name in _BETWEEN.split(match["names"]) if " " in name}
    words = people | {name.split()[-1] for name in people if len(name.split()[-1]) > 2}
    for name in sorted(words, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "", text)
    return " ".join(text.split())


@dataclass(frozen=True)
class Films:
    """All that is known of the films, as kinds of features.

    Attributes:
        items: as ``load_movielens`` gives them.
        described: as ``load_descriptions`` gives them.
        encoder: of sentences.
        static: token vectors.
    """

    items: pd.DataFrame
    described: pd.DataFrame
    encoder: TextVectors
    static: TextVectors

    def vectors(self, texts: Sequence[str], width: float | None = 0.7) -> Features:
        """What the encoder makes of a text a film."""
        return Features(self.encoder.encode(list(texts), progress=False).cpu(), width=width)

    @property
    def titles(self) -> list[str]:
        """The titles."""
        return [str(title) for title in self.items["title"]]

    @property
    def short(self) -> list[str]:
        """Title and genres."""
        pairs = zip(self.titles, self.items["genres"], strict=True)
        return [f"{title}. Genres: {', '.join(genres)}." for title, genres in pairs]

    @property
    def descriptions(self) -> list[str]:
        """The descriptions, empty where there is none."""
        return [str(text) for text in self.described["text"].fillna("")]

    @property
    def anonymous(self) -> list[str]:
        """The descriptions without the film's name."""
        articles = [re.sub(r" \([^()]*\)$", "", str(a)) for a in self.described["article"].fillna("")]
        given = zip(self.descriptions, self.titles, articles, strict=True)
        return [without_title(text, (title, article)) for text, title, article in given]

    def words(self, texts: Sequence[str]) -> Features:
        """TF-IDF of texts."""
        least = 2 if len(texts) > 500 else 1
        return Features(TfidfEncoder(texts, least, sublinear=True, device="cpu").encode(texts), unit=False)

    @property
    def years(self) -> Tensor:
        """(I,) the years; the middle one where there is none."""
        years = pd.to_numeric(self.items["year"]).astype(float)
        return torch.tensor(years.fillna(years.median()).to_numpy(), dtype=torch.float32)

    @property
    def genres(self) -> Tensor:
        """(I, G) which genres a film has."""
        names = sorted({genre for genres in self.items["genres"] for genre in genres})
        rows = [[float(name in genres) for name in names] for genres in self.items["genres"]]
        return torch.tensor(rows, dtype=torch.float32)

    @property
    def genre_and_year(self) -> Features:
        """Both, side by side: a film's genres, and years near its own."""
        centers = torch.arange(1920, 2001, 2.0)  # (Y,)
        near = (-((self.years[:, None] - centers) ** 2) / (2 * 3.0**2)).exp()  # (I, Y)
        near = torch.nn.functional.normalize(near, dim=1)
        return Features(torch.cat([self.genres, near], dim=1), unit=False)

    def live(self) -> Kinds:
        """All kinds that need no description: the richest text counts most, the others a little."""
        dates = pd.to_datetime(self.items.get("release_date", pd.Series(pd.NaT, self.items.index)))
        days = dates.dt.year + (dates.dt.day_of_year - 1) / 365.25
        day = torch.tensor(days.fillna(pd.Series(self.years.numpy(), self.items.index)).to_numpy())
        sentence = [f"{title} ({year:.0f})" for title, year in zip(self.titles, self.years, strict=True)]
        kinds = {
            "title, year, genres": self.vectors(list(self.items["text"])),
            "genre and year": self.genre_and_year,
            "title": self.vectors(self.titles, None),
            "title and year": self.vectors(sentence),
            "title, genres": self.vectors(self.short),
            "tokens of the title": Features(self.static.encode(self.titles, progress=False).cpu()),
            "words of the title": self.words(self.titles),
            "combination of genres": Features(self.genres, unit=False, width=0.7),
            "year": Features(self.years, unit=False, width=3.0),
            "era": Features(self.years, unit=False, width=15.0),
            "day of release": Features(day.float(), unit=False, width=0.3),
        }
        return weighed(kinds)

    def credits(self) -> list[str]:
        """Cast and directors, each name a word."""
        pairs = zip(self.described["cast"], self.descriptions, strict=True)
        people = [[*cast, *directors(text)] for cast, text in pairs]
        return [" ".join(re.sub(r"\W", "", name) for name in names) for names in people]

    def about(self) -> Features:
        """How much is written, and whether of prizes and money: what a famous film has more of."""
        texts = self.descriptions
        prizes = [
            len(re.findall(r"Academy Award|Golden Globe|Oscar|nominat|grossing|box office|critic", text))
            for text in texts
        ]
        counts = [
            [len(text), len(cast), prize]
            for text, cast, prize in zip(texts, self.described["cast"], prizes, strict=True)
        ]
        rows = torch.tensor(counts, dtype=torch.float32).log1p()  # (I, 3)
        return Features((rows - rows.mean(dim=0)) / rows.std(dim=0).clamp(min=1e-6), unit=False)

    def all(self) -> Kinds:
        """All kinds."""
        described = [text or title for text, title in zip(self.descriptions, self.titles, strict=True)]
        long = [f"{a} {b}" for a, b in zip(self.short, self.descriptions, strict=True)]
        new = {
            "words of the description": self.words(self.descriptions),
            "description": self.vectors(described, None),
            "title, genres, description": self.vectors(long, None),
            "names of cast and directors": self.words(self.credits()),
            "about the article": self.about(),
            "about the article, near": replace(self.about(), width=1.5),
        }
        return weighed(self.live() | new)


MOST = ("title, year, genres", "words of the description")  # the kinds that weigh 1
LITTLE = 0.1  # what any other kind weighs


def weighed(kinds: Mapping[str, Features]) -> Kinds:
    """The kinds with their weights, set by hand when results of the draws had been seen."""
    return {name: replace(kind, weight=1.0 if name in MOST else LITTLE) for name, kind in kinds.items()}


# ---------------------------------------------------------------------- films that are new


class Ridge:
    """``ItemFeatureRidge`` on the draws of an experiment; what all models of a draw need is computed once."""

    def __init__(self, cold: ColdItems) -> None:
        self.cold = cold
        self.of_draws: dict[tuple[int, bool], tuple[Shared, Tensor, Tensor]] = {}
        self.kernels: dict[tuple[Any, ...], tuple[Features, Tensor]] = {}

    def kernel(self, kinds: Mapping[str, Features]) -> Tensor:
        """(I, I) float32."""
        parts = []
        for kind in kinds.values():
            # The rows are kept beside, so that no others get their place in memory.
            key = id(kind.rows), kind.unit, kind.width
            if key not in self.kernels:
                self.kernels[key] = kind, kind.kernel("cpu").float()
            parts.append(kind.weight * self.kernels[key][1])
        return torch.stack(parts).sum(dim=0)

    def of(self, draw: Draw) -> tuple[Shared, Tensor, Tensor]:
        """What users share, which films are known (I,) bool, and who chose which of them (U, M)."""
        key = draw.number, draw.on_validation
        if key not in self.of_draws:
            matrix = likes(draw.events)  # (U, I)
            known = matrix.any(dim=0)  # (I,)
            chosen = matrix[:, known]  # (U, M)
            shared = Shared.of((chosen.mT @ chosen).double(), int(chosen.any(dim=1).sum()))
            # Choosing and ranking need no more digits than float32 has.
            self.of_draws[key] = Shared(shared.strength.float(), shared.Q.float()), known, chosen
        return self.of_draws[key]

    def scores(self, draw: Draw, kinds: Mapping[str, Features], l2: float, power: float = 1.0) -> Tensor:
        """(U, N) of the draw's new films."""
        shared, known, chosen = self.of(draw)
        B = shared.item_weights(self.kernel(kinds), known, l2, power, items=draw.items)  # (M, N)
        return chosen @ B  # (U, N)

    def build(
        self, draw: Draw, *, kinds: Kinds, l2: float, power: float = 1.0, beside: float = 0.0
    ) -> Tensor:
        """(U, I), as ``ColdItems.add`` takes it; ``beside`` weighs the kind "genre and year"."""
        if beside:
            kinds = kinds | {"genre and year": replace(kinds["genre and year"], weight=beside)}
        return everywhere(self.scores(draw, kinds, l2, power), draw)


def likes(events: Interactions) -> Tensor:
    """(U, I) float32, 1 where there is a like."""
    matrix = events.matrix()
    return (matrix if matrix.layout == torch.strided else matrix.to_dense()).clamp(max=1.0).float()


def everywhere(scores: Tensor, draw: Draw) -> Tensor:
    """Scores (U, N) or (N,) of the new films among zeros for all films: (U, I) or (I,)."""
    out = torch.zeros(*scores.shape[:-1], draw.events.n_items)  # (U, I)
    out[..., draw.items] = scores
    return out


def tested(cold: ColdItems) -> Tensor:
    """(N,) films that some draw takes out."""
    return torch.cat([draw.items for draw in cold]).unique()


def best_of(kinds: Kinds, cold: ColdItems, rounds: int) -> tuple[Kinds, dict[str, Any]]:
    """Weights of kinds, found without the films that are reported on; and how."""
    events = cold.positives
    others = ~torch.isin(events.items, tested(cold))  # (E,)
    found = find_weights(kinds, events[others], rounds=rounds)
    said = {
        "start": {name: kind.weight for name, kind in kinds.items()},
        "weights": {name: round(weight, 4) for name, weight in found.weights.items()},
        "films": int((events[others].item_counts() > 0).sum()),
        "trials": len(found.trials),
        "value": round(found.value, 5),
    }
    return found.features, said


def contenders(
    films: Films, best: Mapping[str, Kinds], seed: int
) -> dict[str, tuple[str, Kinds, dict[str, Any]]]:
    """All rows by name: the group, the kinds, and what is fixed or tried beside the penalty."""
    gy = films.genre_and_year
    noise = torch.randn(len(films.items), 384, generator=torch.Generator().manual_seed(seed))
    short, texts, anonymous = films.short, films.descriptions, films.anonymous
    casts = list(films.described["cast"])
    nobody = [without_people(text, cast) for text, cast in zip(texts, casts, strict=True)]
    neither = [without_people(text, cast) for text, cast in zip(anonymous, casts, strict=True)]
    genres = [f"A film. Genres: {', '.join(names)}." for names in films.items["genres"]]
    with_text = torch.tensor([bool(text) for text in texts]).nonzero()[:, 0].tolist()
    order = torch.randperm(len(with_text), generator=torch.Generator().manual_seed(seed)).tolist()
    others = list(texts)
    for place, other in zip(with_text, order, strict=True):
        others[place] = texts[with_text[other]]

    def told(first: Sequence[str], then: Sequence[str]) -> Kinds:
        both = [f"{a} {b}" for a, b in zip(first, then, strict=True)]
        return {"vectors": films.vectors(both), "words": films.words(then)}

    alone: dict[str, Kinds] = {
        "title": {"vectors": films.vectors(films.titles)},
        BASE: {"vectors": films.vectors(short)},
        "title, year, genres": {"vectors": films.vectors(list(films.items["text"]))},
        "title, genres, description": {
            "vectors": films.vectors([f"{a} {b}" for a, b in zip(short, texts, strict=True)])
        },
        "words of the description": {"words": films.words(texts)},
        "tokens of title and genres": {"vectors": Features(films.static.encode(short, progress=False).cpu())},
        "random vectors": {"vectors": Features(noise)},
    }
    found: dict[str, tuple[str, Kinds, dict[str, Any]]] = {}
    for name, kinds in alone.items():
        found[name] = ("alone", kinds, {})
        found[f"{name} + genre and year"] = ("beside", kinds | {"genre and year": gy}, {"beside": BESIDE})
    found["genre and year"] = ("alone", {"genre and year": gy}, {})
    full = told(short, texts)
    found["title, genres, description, its words"] = ("told", full, {})
    found["... and genre and year"] = ("told", full | {"genre and year": gy}, {"beside": BESIDE})
    found["without the title"] = ("told", told(genres, anonymous), {})
    found["without names of people"] = ("told", told(short, nobody), {})
    found["without both"] = ("told", told(genres, neither), {})
    found["another film's description"] = ("told", told(short, others), {})
    for name, kinds in best.items():
        found[name] = ("best", kinds, {})
    for name, kinds in {BASE: alone[BASE], LIVE: best[LIVE], ALL: best[ALL]}.items():
        found[f"{name}: each user alone"] = ("each user alone", kinds, {"power": 0.0})
    return found


def cold_rows(
    ridge: Ridge, rows: Mapping[str, tuple[str, Kinds, dict[str, Any]]], penalties: Sequence[float]
) -> list[dict[str, Any]]:
    """Runs all rows on all draws."""
    cold = ridge.cold
    for name, (_, kinds, more) in rows.items():
        space = {"l2": penalties} | {option: tried for option, tried in more.items() if option == "beside"}
        fixed = {option: value for option, value in more.items() if option != "beside"}
        cold.add(name, partial(ridge.build, kinds=kinds), space, **fixed)
    cold.add_controls(CHANCE, LIKES)
    cold.run()
    draws, edges = cold.draws, cold.edges()
    return [
        {
            "name": name,
            "group": rows[name][0] if name in rows else "control",
            **interval(draws.mean(name)),
            "minus": interval(draws.compare(name, BASE)),
            "chosen": {o: v for o, v in (cold[name].best or {}).items() if o in ("l2", "beside", "power")},
            "at_end": edges.get(name, []),
        }
        for name in draws.ranked()
    ]


# ---------------------------------------------------------------------- meaning or fame


def predicted_likes(kernel: Tensor, known: Tensor, counts: Tensor, items: Tensor) -> tuple[Tensor, float]:
    """The logarithm of a film's likes, by ridge regression on its features.

    The penalty is the one with the least squared error of known films left out in turn.

    Args:
        kernel: (I, I).
        known: (I,) bool, M of them.
        counts: (I,) likes.
        items: (N,) int64.

    Returns:
        (N,), and the share of the variance explained for known films left out.
    """
    y = counts[known].double().log1p()  # (M,)
    size, U = torch.linalg.eigh(kernel[known][:, known].double())  # (M,), (M, M)
    size, turned = size.clamp(min=0), U.mT @ (y - y.mean())  # (M,), (M,)
    found = []
    for l2 in PENALTIES_OF_LIKES:
        kept = size / (size + l2)  # (M,)
        leverage = U.square() @ kept  # (M,)
        error = (y - y.mean() - U @ (kept * turned)) / (1 - leverage)  # (M,)
        explained = 1 - float(error.square().sum() / (y - y.mean()).square().sum())
        found.append((explained, kernel[known][:, items].double().mT @ (U @ (turned / (size + l2)))))
    explained, best = max(found, key=lambda one: one[0])
    return (best + y.mean()).float(), explained


def left_over(scores: Tensor, line: Tensor) -> Tensor:
    """What is left of each user's scores (U, N) after a straight line in ``line`` (N,)."""
    x = line - line.mean()  # (N,)
    y = scores - scores.mean(dim=1, keepdim=True)  # (U, N)
    return y - (y @ x / x.square().sum().clamp(min=1e-12))[:, None] * x  # (U, N)


def among_alike(scores: Tensor, liked: Tensor) -> float:
    """How often a liked film outranks another one that has about as many likes: AUC, .5 by chance.

    Args:
        scores: (U, N).
        liked: (U, N) bool.
    """
    by_likes = liked.sum(dim=0).argsort(stable=True)  # (N,)
    right, pairs = torch.zeros(len(liked)), torch.zeros(len(liked))  # (U,), (U,)
    for part in by_likes.tensor_split(min(STRATA, max(1, len(by_likes) // 3))):
        hit = liked[:, part]  # (U, n)
        n_pairs = hit.sum(dim=1) * (~hit).sum(dim=1)  # (U,)
        right += (auc(scores[:, part], hit).nan_to_num() * n_pairs).float()
        pairs += n_pairs
    return float((right / pairs)[pairs > 0].mean())


def fame(
    ridge: Ridge, rows: Mapping[str, tuple[str, Kinds, dict[str, Any]]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Of some rows: how much of what they reach is a guess of fame."""
    cold, found = ridge.cold, []
    for name in names:
        options = cold[name].best or {}
        kinds = rows[name][1]
        if "beside" in options:
            kinds = kinds | {"genre and year": replace(kinds["genre and year"], weight=options["beside"])}
        values: dict[str, list[float]] = {
            key: [] for key in ("fame", "rest", "alike", "fame_alike", "explained")
        }
        for draw in cold:
            _, known, _ = ridge.of(draw)
            counts = draw.events.item_counts()
            guess, explained = predicted_likes(ridge.kernel(kinds), known, counts, draw.items)  # (N,)
            scores = ridge.scores(draw, kinds, options["l2"], options.get("power", 1.0))  # (U, N)
            liked = likes(draw.held_out)[:, draw.items] > 0  # (U, N)
            for key, given in (("fame", guess), ("rest", left_over(scores, guess))):
                report = cold.evaluate(everywhere(given, draw), draw)
                values[key].append(report.metrics[cold.metric])
            values["alike"].append(among_alike(scores, liked))
            values["fame_alike"].append(among_alike(guess.expand(len(liked), -1), liked))
            values["explained"].append(explained)
        draws = Draws(
            {"model": cold.draws.frame[name].tolist(), CHANCE: cold.draws.frame[CHANCE].tolist(), **values}
        )
        above = [(f - c) / (m - c) for m, c, f in draws.frame[["model", CHANCE, "fame"]].to_numpy().tolist()]
        found.append(
            {
                "name": name,
                **{key: interval(draws.mean(key)) for key in ("model", *values)},
                "model_minus_fame": interval(draws.compare("model", "fame")),
                "share_of_fame": interval(over_draws(above)),
            }
        )
    return found


# ---------------------------------------------------------------------- films that are known


def warm(positives: Interactions, kinds: Mapping[str, Kinds], penalties: Sequence[float]) -> dict[str, Any]:
    """What richer text is worth where films have likes: the last fifth of each history, all films ranked."""
    split = leave_last_out(positives, n=0.2)

    def report(model: Any, on: Interactions, seen: Interactions) -> Report:
        return evaluate(model, on, seen=seen, metrics=["ndcg"], progress=False)

    reports: dict[str, Report] = {}
    chosen: dict[str, float] = {}
    weights: dict[str, float] = {}
    ease = EASE(l2=400.0, recency=0.7)
    reports["EASE"] = report(ease.fit(split.history, progress=False), split.test, split.history)
    for name, mine in kinds.items():
        tried = {}
        for l2 in penalties:
            model = ItemFeatureRidge(mine, l2=l2).fit(split.train, device="cpu", progress=False)
            tried[l2] = report(model, split.validation, split.train).metrics["ndcg@10"]
        chosen[name] = max(tried, key=lambda l2: tried[l2])
        model = ItemFeatureRidge(mine, l2=chosen[name]).fit(split.history, device="cpu", progress=False)
        reports[name] = report(model, split.test, split.history)
        both = Blend([EASE(l2=400.0, recency=0.7), ItemFeatureRidge(mine, l2=chosen[name])])
        both.fit(split.train, split.validation, device="cpu", progress=False)
        weights[name] = round(float(both.weights[1] / both.weights.abs().sum()), 4)
        reports[f"EASE + {name}"] = report(both, split.test, split.history)
    first, last = list(kinds)
    gaps = ((last, first), (f"EASE + {last}", f"EASE + {first}"), (f"EASE + {last}", "EASE"), (last, "EASE"))
    return {
        "rows": [{"name": name, **low_high(r)} for name, r in reports.items()],
        "differences": [
            {"a": a, "b": b, **interval(compare(reports[a], reports[b], "ndcg@10"))} for a, b in gaps
        ],
        "l2": chosen,
        "weight_beside_ease": weights,
    }


def low_high(report: Report) -> dict[str, float]:
    low, high = report.interval("ndcg@10")
    return {"mean": round(report.metrics["ndcg@10"], 5), "low": round(low, 5), "high": round(high, 5)}


def interval(gap: Comparison) -> dict[str, float]:
    return {"mean": round(gap.mean, 5), "low": round(gap.low, 5), "high": round(gap.high, 5)}


# ---------------------------------------------------------------------- the whole


def run(
    films: Films,
    positives: Interactions,
    *,
    n_draws: int = 8,
    share: float = SHARE,
    rounds: int = 1,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
    say: Callable[[str], None] = lambda words: None,
) -> dict[str, Any]:
    """Settings and values of the whole measurement."""
    started = time.process_time()
    cold = ColdItems(positives, n_draws, share, seed, device="cpu")
    ridge = Ridge(cold)
    given = {LIVE: films.live(), ALL: films.all()}
    found = {name: best_of(kinds, cold, rounds) for name, kinds in given.items()}
    say(f"weights found: {time.process_time() - started:.0f} s")
    best = given | {f"{name}{SEARCHED}": kinds for name, (kinds, _) in found.items()}
    rows = contenders(films, best, seed)
    table = cold_rows(ridge, rows, penalties)
    say(f"new films ranked: {time.process_time() - started:.0f} s")
    pairs = [
        ("title, genres, description", BASE),
        ("title, genres, description + genre and year", f"{BASE} + genre and year"),
        ("words of the description + genre and year", f"{BASE} + genre and year"),
        (ALL, LIVE),
        (LIVE, BASE),
        *((f"{name}{SEARCHED}", name) for name in (LIVE, ALL)),
        (LIKES, ALL),
        (BASE, "random vectors"),
        ("random vectors", CHANCE),
        (f"{BASE} + genre and year", "random vectors + genre and year"),
        ("without the title", "title, genres, description, its words"),
        ("without names of people", "title, genres, description, its words"),
        ("without both", "title, genres, description, its words"),
        ("another film's description", "title, genres, description, its words"),
        ("another film's description", BASE),
        *((name, f"{name}: each user alone") for name in (BASE, LIVE, ALL)),
    ]
    draws = cold.draws
    famous = fame(ridge, rows, [BASE, "genre and year", "words of the description", LIVE, ALL])
    say(f"fame looked at: {time.process_time() - started:.0f} s")
    known = warm(positives, {BASE: rows[BASE][1], ALL: best[ALL]}, penalties[2:6])
    return {
        "settings": {
            "draws": n_draws,
            "share": share,
            "seed": seed,
            "penalties": list(penalties),
            "beside": list(BESIDE),
            "rounds": rounds,
            "threads": torch.get_num_threads(),
        },
        "values": {
            "cpu_seconds": round(time.process_time() - started),
            "films": len(films.items),
            "described": int(films.described["text"].notna().sum()),
            "with_director": sum(bool(directors(text)) for text in films.descriptions),
            "new_films": [len(draw.items) for draw in cold],
            "metric": cold.metric,
            "base": BASE,
            "draws": {name: [round(x, 5) for x in draws.frame[name]] for name in draws.ranked()},
            "rows": table,
            "differences": [{"a": a, "b": b, **interval(draws.compare(a, b))} for a, b in pairs],
            "weights": {name: said for name, (_, said) in found.items()},
            "fame": famous,
            "warm": known,
        },
    }


def table(found: dict[str, Any]) -> str:
    """The run as text."""
    values = found["values"]

    def of(one: Mapping[str, float]) -> str:
        return f"{one['mean']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]"

    lines = [f"{row['name']:50}{of(row)}  {of(row['minus'])}  {row['chosen']}" for row in values["rows"]]
    lines += [f"{gap['a']} - {gap['b']}: {of(gap)}" for gap in values["differences"]]
    for row in values["fame"]:
        lines.append(f"{row['name']}: " + ", ".join(f"{key} {of(row[key])}" for key in row if key != "name"))
    lines += [f"known films, {row['name']}: {of(row)}" for row in values["warm"]["rows"]]
    lines += [f"known films, {gap['a']} - {gap['b']}: {of(gap)}" for gap in values["warm"]["differences"]]
    lines += [f"{name}: {said['weights']}" for name, said in values["weights"].items()]
    return "\n".join([*lines, f"{values['cpu_seconds']} s of processor time"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--record", type=Path, help="a file for the results, as JSON")
    arguments = parser.parse_args()
    data, encoder = load_movielens("100k"), TextEncoder(device="cpu")
    films = Films(data.items, load_descriptions("100k"), encoder, StaticEncoder(device="cpu"))
    found = run(
        films, data.interactions.positives(4.0), n_draws=arguments.draws, say=partial(print, flush=True)
    )
    print(table(found))
    if arguments.record:
        digests = "".join(sorted(files._FILES.values()))
        write_run(
            arguments.record,
            about=__doc__ or "",
            command=COMMAND,
            versions=("torch", "numpy"),
            code=CODE,
            inputs={
                "ratings": data.sha256,
                "descriptions": hashlib.sha256(digests.encode()).hexdigest(),
                "encoder": content_hash(encoder.folder),
            },
            **found,
        )


if __name__ == "__main__":
    main()
