"""A small language model as an encoder of films, asked directly what a person likes, and what it remembers.

**Embeddings.** Gemma's vectors of each film's text, of the last token and of the mean over tokens, with and
without an instruction before the text, beside MiniLM, WordLlama, TF-IDF and random vectors of as many
dimensions as Gemma's. The profile is the mean of a person's vectors, compared by cosine, as they are and half
whitened, over the full catalog. Among new films the vectors enter a ridge regression for each person, over
eight draws of a fifth of the films.

**Asked directly.** People drawn from the headline data's leave-last-out split, twenty films each: one of
the films liked last, and nineteen that the person has not rated, drawn with chances in proportion to their
likes in training, so that fame alone does not find the one. Everybody ranks the same twenty; chance has
NDCG@10 of 0.227. The model reads the ten films liked last before. Pointwise: how likely it finds each title
next. Listwise: which letter, of a list from A to T, in two orders of the films.

**The trap.** Many forms of the likelihood are tried on some people, and the best of them on the others.

**Memory.** What the model knows by heart: years of films, titles by MovieLens's own numbers.

**Cost.** Seconds of one processor for a thousand people.

Parts that are done are kept in a folder, so that a run that was stopped goes on where it was.

Usage::

    OMP_NUM_THREADS=1 python benchmarks/language_model.py [--model NAME] [--device D] [--record FILE]
"""

import argparse
import hashlib
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from recsys_lib import metrics
from recsys_lib.chapter.runs import code_hash, write_run
from recsys_lib.cold_items import ColdItems, Draw
from recsys_lib.data import MovieLens, Split, leave_last_out, load_movielens
from recsys_lib.draws import Draws
from recsys_lib.evaluation import Comparison, Report, compare, evaluate, paired
from recsys_lib.files import write_whole
from recsys_lib.geometry import mean_cosine
from recsys_lib.models import EASE, Popularity, Recommender, TextProfile
from recsys_lib.ranking import rank_candidates
from recsys_lib.text import CausalLM, StaticEncoder, TextEncoder, TextVectors, TfidfEncoder, gemma_folder
from recsys_lib.text.pretrained import content_hash

COMMAND = "OMP_NUM_THREADS=1 python benchmarks/language_model.py --record book/recorded/language_model.json"
# What the parts are made by that a run keeps: when it changes, they are made anew.
MADE_BY = (
    *(
        f"benchmarks/language_model.py::{name}"
        for name in ("LETTERS", "INSTRUCTION", "HEADER", "Asked", "draw_people", "known_likes", "film_names")
    ),
    *(
        f"benchmarks/language_model.py::{name}"
        for name in ("representations", "Ridge", "ridge", "embeddings", "prompt_of", "pointwise", "alone")
    ),
    *(
        f"benchmarks/language_model.py::{name}"
        for name in ("listwise", "memory", "said_next", "years", "titles_by_number")
    ),
    *(f"recsys_lib/text/{name}.py" for name in ("encoder", "likelihood", "pooling", "static", "terms")),
    *(f"recsys_lib/{name}.py" for name in ("cold_items", "draws", "geometry", "models/text_profile")),
)
CODE = (
    *MADE_BY,
    *(
        f"benchmarks/language_model.py::{name}"
        for name in (
            "FORMS",
            "score_forms",
            "others_on_the_same",
            "ndcg_of",
            "asked_directly",
            "trap",
            "cost",
        )
    ),
    *(f"recsys_lib/{name}.py" for name in ("evaluation", "ranking", "models/ease")),
)
PARTS = Path("_build/language_model")

LETTERS = "ABCDEFGHIJKLMNOPQRST"
INSTRUCTION = "A film, described by what it is about and by who would love it: "
HEADER = "Films that one person loved:\n"
CHANCE = float(sum(1 / np.log2(rank + 1) for rank in range(1, 11)) / 20)


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        people: who are asked pointwise.
        listed: of these, the first ones are asked listwise.
        first: of these, the first ones are those that a form of the score is chosen on.
        likes: films that the model reads of each person.
        films: in each group of films whose year is asked for, and whose number is given.
        draws: of new films.
        timed: texts that an encoder is timed on.
    """

    people: int = 150
    listed: int = 80
    first: int = 65
    likes: int = 10
    films: int = 100
    draws: int = 8
    timed: int = 100


SMALL = Sizes(people=6, listed=3, first=3, likes=3, films=3, draws=2, timed=4)


@dataclass(frozen=True)
class Asked:
    """People, and the films that everybody ranks for them.

    Attributes:
        users: (U,) int64.
        films: (U, 20) int64; the one liked is the first of each row.
        likes: (U, n) lists of what was liked before, the last one at the end.
    """

    users: Tensor
    films: Tensor
    likes: list[list[int]]


def interval(per_user: Tensor, seed: int = 0) -> dict[str, float]:
    """The mean of a value a person, with its interval."""
    low, high = metrics.bootstrap_interval(per_user, seed=seed)
    return _rounded(float(per_user.double().mean()), low, high)


def _rounded(mean: float, low: float, high: float) -> dict[str, float]:
    mean, low, high = (round(float(x), 5) for x in (mean, low, high))
    return {"mean": mean, "low": min(low, mean), "high": max(high, mean)}


def gap(found: Comparison) -> dict[str, float]:
    return _rounded(found.mean, found.low, found.high)


def of(report: Report) -> dict[str, float]:
    value = report.of("ndcg@10")
    return _rounded(value.value, value.low, value.high)


# ---------------------------------------------------------------------------------------- the model


def small_model(folder: Path, texts: Iterable[str]) -> Path:
    """A random model of two layers with a tokenizer of its own: what the test measures."""
    import tokenizers
    import transformers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<pad>", "<bos>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(LETTERS)] * 200 + list(texts), trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>"
    )
    fast.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=600,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=1024,
            initializer_range=0.5,
        )
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


# ----------------------------------------------------------------------------------------- embeddings


def representations(
    folder: str | Path, label: str, texts: list[str], device: str, small: bool
) -> dict[str, TextVectors]:
    """Every way from a film's text to a vector, random vectors apart."""
    found: dict[str, TextVectors] = {"TF-IDF": TfidfEncoder(texts, device="cpu")}
    if not small:
        found["WordLlama"] = StaticEncoder(device="cpu")
    found["MiniLM"] = TextEncoder(device="cpu")
    for pooling in ("last", "mean"):
        for instruction in ("", INSTRUCTION):
            asked = ", instructed" if instruction else ""
            found[f"{label}, {pooling}{asked}"] = TextEncoder(
                folder,
                pooling,  # type: ignore[arg-type]
                device=device,
                pool_special=False,
                instruction=instruction,
                cache=not small,
            )
    return found


class Ridge:
    """Least squares from a film's vector to each person's choices, in closed form."""

    def __init__(self, draw: Draw, vectors: Tensor, l2: float) -> None:
        films = functional.normalize(vectors - vectors.mean(0), dim=1)  # (n_items, d)
        self.films = functional.pad(films, (0, 1), value=1.0)  # (n_items, d + 1)
        self.n_items = len(films)
        x = self.films[draw.events.item_counts() > 0]  # (W, d + 1)
        penalty = l2 * torch.eye(x.shape[1], device=x.device)  # (d + 1, d + 1)
        chosen = (draw.events.matrix() @ self.films).mT  # (d + 1, n_users)
        self.people = torch.linalg.solve(x.mT @ x + penalty, chosen).mT  # (n_users, d + 1)

    def score(self, users: Tensor) -> Tensor:
        """(B,) to (B, n_items)."""
        return self.people[users] @ self.films.mT  # (B, n_items)


def ridge(draw: Draw, l2: float, *, vectors: Tensor) -> Ridge:
    return Ridge(draw, vectors, l2)


def embeddings(
    data: MovieLens, folder: str | Path, label: str, sizes: Sizes, seed: int, device: str, small: bool
) -> dict[str, Any]:
    texts = data.items["text"].tolist()
    positives = data.interactions.positives(4.0)
    splits = {"last one": leave_last_out(positives, n=1), "headline": leave_last_out(positives, n=0.2)}
    encoders = representations(folder, label, texts, device, small)
    vectors, speed = {}, {}
    for name, encoder in encoders.items():
        vectors[name] = encoder.encode(texts, progress=False).cpu()  # (n_items, d)
        speed[name] = _texts_a_second(encoder, texts, sizes.timed, seed)
    dim = vectors[f"{label}, mean"].shape[1]
    chance = torch.Generator().manual_seed(seed)
    vectors["random"] = torch.randn(len(texts), dim, generator=chance)  # (n_items, d)

    reports: dict[tuple[str, str, str], Report] = {}
    for name, x in vectors.items():
        for how, whitening in (("as they are", None), ("half whitened", 0.5)):
            if name == "TF-IDF" and whitening:
                continue  # thousands of sparse columns: nothing to whiten by
            for split_name, split in splits.items():
                model = TextProfile(x, whitening=whitening).fit(split.history, device="cpu", progress=False)
                reports[name, how, split_name] = evaluate(
                    model, split.test, seen=split.history, metrics=["ndcg"], progress=False
                )
    cold = ColdItems(positives, n_draws=sizes.draws, seed=seed, device="cpu")
    penalties = {"l2": [1.0, 10.0, 100.0] if small else [0.3, 1.0, 3.0, 10.0, 30.0, 100.0]}
    for name, x in vectors.items():
        cold.add(name, partial(ridge, vectors=x), penalties)
    cold.add_controls()
    cold.run()
    draws: Draws = cold.draws

    rows = []
    for name, x in vectors.items():
        row: dict[str, Any] = {
            "name": name,
            "dimensions": x.shape[1],
            "anisotropy": round(mean_cosine(x), 4),
            "texts_per_cpu_second": speed.get(name),
        }
        for split_name in splits:
            row[split_name] = {
                how: of(reports[name, how, split_name])
                for how in ("as they are", "half whitened")
                if (name, how, split_name) in reports
            }
        row["new films"] = gap(draws.mean(name)) | {"l2": cold[name].best["l2"]}  # type: ignore[index]
        if name != "MiniLM":
            row["minus MiniLM"] = {
                **{
                    split_name: {
                        how: gap(
                            compare(
                                reports[name, how, split_name], reports["MiniLM", how, split_name], "ndcg@10"
                            )
                        )
                        for how in row[split_name]
                    }
                    for split_name in splits
                },
                "new films": gap(draws.compare(name, "MiniLM")),
            }
        rows.append(row)
    return {
        "instruction": INSTRUCTION,
        "text": texts[0],
        "penalties": penalties["l2"],
        "rows": rows,
        "controls": {name: gap(draws.mean(name)) for name in ("random order", "hidden likes")},
        "draws": {name: [round(x, 5) for x in column] for name, column in draws.frame.items()},
    }


def _texts_a_second(encoder: TextVectors, texts: list[str], n: int, seed: int) -> float:
    """Texts a second of processor time, the model loaded and nothing remembered; then the model is let go."""
    drawn = [texts[i] for i in np.random.default_rng(seed).choice(len(texts), n, replace=False)]
    once = {"cache": False} if isinstance(encoder, TextEncoder) else {}
    encoder.encode(drawn[:2], progress=False, **once)
    repeats = 1 if isinstance(encoder, TextEncoder) else 20
    started = time.process_time()
    for _ in range(repeats):
        encoder.encode(drawn, progress=False, **once)
    seconds = time.process_time() - started
    if isinstance(encoder, TextEncoder):
        encoder._loaded = None  # of larger models one at a time is in memory
    return round(repeats * n / max(seconds, 1e-6), 2)


# -------------------------------------------------------------------------------------- asked directly


def known_likes(split: Split, user: int, n: int) -> list[int]:
    """The last n films liked before the hidden one, the latest at the end."""
    mine = (split.history.users == user).nonzero().flatten()  # (E,)
    order = mine[split.history.timestamps[mine].argsort(stable=True)]  # (E,)
    return split.history.items[order][-n:].tolist()


def draw_people(data: MovieLens, split: Split, sizes: Sizes, seed: int) -> Asked:
    """Who is asked, and the twenty films of each."""
    rng = np.random.default_rng(seed)
    rated: dict[int, set[int]] = {}
    for user, item in zip(data.interactions.users.tolist(), data.interactions.items.tolist(), strict=True):
        rated.setdefault(user, set()).add(item)
    likes = split.history.item_counts().double().numpy()  # (n_items,)
    with_history = split.history.user_counts() >= 3  # (n_users,)
    testers = split.test.users.unique()
    testers = testers[with_history[testers]].numpy()
    users = rng.permutation(testers)[: sizes.people]
    films = []
    for user in users.tolist():
        hidden = split.test.items[split.test.users == user].numpy()
        chances = likes.copy()
        chances[list(rated[user])] = 0
        others = rng.choice(len(chances), 19, replace=False, p=chances / chances.sum())
        films.append([int(rng.choice(hidden)), *others.tolist()])
    return Asked(
        torch.from_numpy(users.copy()),
        torch.tensor(films),
        [known_likes(split, user, sizes.likes) for user in users.tolist()],
    )


def film_names(data: MovieLens) -> list[str]:
    """What the model reads: the title, with the year where it is known."""
    titles, years = data.items["title"].astype(str), data.items["year"]
    known = years.notna()
    return titles.where(~known, titles + " (" + years.astype("string").fillna("") + ")").tolist()


def prompt_of(likes: Iterable[int], names: list[str]) -> str:
    """What stands before a title: the films liked, a line each, and the start of the next line."""
    return HEADER + "".join(f"- {names[item]}\n" for item in likes) + "-"


def pointwise(model: CausalLM, asked: Asked, names: list[str], rows: Iterable[int]) -> dict[str, Any]:
    """The log-likelihood of each film's title after the films liked: (rows, 20) as lists."""
    found: dict[str, Any] = {"after": [], "cpu_seconds": 0.0}
    for row in rows:
        prompt = prompt_of(asked.likes[row], names)
        titles = [f" {names[item]}\n" for item in asked.films[row].tolist()]
        started = time.process_time()
        said = model.log_likelihood([prompt] * len(titles), titles, progress=False).log_likelihood
        found["cpu_seconds"] += time.process_time() - started
        found["after"].append(said.tolist())
    return found


def alone(model: CausalLM, names: list[str], items: list[int]) -> dict[str, Any]:
    """The same of films with nobody's films before them, and how many tokens their titles have."""
    started = time.process_time()
    said = model.log_likelihood(
        [prompt_of([], names)] * len(items), [f" {names[i]}\n" for i in items], progress=False
    )
    return {
        "alone": said.log_likelihood.tolist(),
        "tokens": said.tokens.tolist(),
        "cpu_seconds": time.process_time() - started,
    }


def listwise(
    model: CausalLM, asked: Asked, names: list[str], rows: Iterable[int], seed: int
) -> dict[str, Any]:
    """The scores of the letters in two orders of the films: which film stood where, and what it got."""
    found: dict[str, Any] = {"orders": [], "letters": [], "cpu_seconds": 0.0}
    for row in rows:
        chance = np.random.default_rng([seed, row])
        first = chance.permutation(asked.films.shape[1])
        orders = [first.tolist(), np.roll(first[::-1], int(chance.integers(20))).tolist()]
        prompts = [
            prompt_of(asked.likes[row], names)[:-1]
            + "\nWhich of these films would the same person love most?\n"
            + "".join(
                f"{letter}. {names[int(asked.films[row, place])]}\n"
                for letter, place in zip(LETTERS, order, strict=True)
            )
            + "Answer:"
            for order in orders
        ]
        started = time.process_time()
        said = model.next_token_logits(prompts, [f" {letter}" for letter in LETTERS], progress=False)
        found["cpu_seconds"] += time.process_time() - started
        found["orders"].append(orders)
        found["letters"].append(said.tolist())
    return found


def ndcg_of(scores: Tensor, asked: Asked, rows: int | None = None) -> Tensor:
    """(U, 20) scores, the liked film's first, to (U,) NDCG@10; ties in an order that is fair."""
    users, films = asked.users[:rows], asked.films[:rows]
    ordered, _ = rank_candidates(scores.float(), films, users=users)  # (U, 20)
    hits = ordered[:, :10] == films[:, :1]  # (U, 10)
    return metrics.ndcg(hits, torch.ones(len(users), dtype=torch.int64))  # (U,)


def score_forms(after: Tensor, before: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Forms of the likelihood: how much of the title's own is taken away, and by what it is divided."""
    return {
        name: (after - share * before) / tokens**power for name, (share, power) in FORMS.items()
    }  # (U, 20)


FORMS = {
    f"minus {share:g} of its own, tokens to the power {power:g}": (share, power)
    for share in (0.0, 0.5, 0.75, 1.0, 1.25, 1.5)
    for power in (0.0, 0.5, 1.0)
}


def others_on_the_same(
    data: MovieLens, split: Split, asked: Asked, vectors: dict[str, Tensor], small: bool
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Scores (U, 20) of what is no language model, and what they cost."""
    models: dict[str, Recommender] = {"popularity": Popularity()}
    for name, x in vectors.items():
        models[f"{name} cosine"] = TextProfile(x, whitening=None)
    best = max(
        (30.0, 100.0, 300.0, 1000.0),
        key=lambda l2: evaluate(
            EASE(l2=l2).fit(split.train, progress=False, device="cpu"),
            split.validation,
            seen=split.train,
            metrics=["ndcg"],
            progress=False,
        ).metrics["ndcg@10"],
    )
    models["EASE"] = EASE(l2=best)
    scores, costs = {}, {}
    for name, model in models.items():
        started = time.process_time()
        model.fit(split.history, device="cpu", progress=False)
        fitted = time.process_time()
        repeats = 1 if small else 10
        for _ in range(repeats):
            every = model.score(asked.users)  # (U, n_items)
        seconds = (time.process_time() - fitted) / repeats
        scores[name] = every.gather(1, asked.films)  # (U, 20)
        costs[name] = {
            "once": round(fitted - started, 3),
            "per_thousand_people": round(1000 * seconds / len(asked.users), 4),
        }
    return scores, {"l2 of EASE": best, "costs": costs}


def asked_directly(
    asked: Asked, said: dict[str, Any], others: dict[str, Tensor], label: str, sizes: Sizes
) -> dict[str, Any]:
    """What was said, as values with intervals."""
    after, before, tokens = said["after"], said["before"], said["tokens"]
    scores = {
        "likelihood": after,
        "likelihood per token": after / tokens,
        "PMI": after - before,
        "PMI per token": (after - before) / tokens,
        "title alone": before,
        **others,
        "random": torch.zeros_like(after),
    }
    per_user = {name: ndcg_of(x, asked) for name, x in scores.items()}
    letters, orders = said["letters"], said["orders"]  # (L, 2, 20), (L, 2, 20)
    n = len(letters)
    by_film = torch.zeros_like(letters).scatter(2, orders, letters)  # (L, 2, 20): in the films' own places
    even = letters - letters.mean((0, 1))  # (L, 2, 20): without what a letter has at any film
    evened = torch.zeros_like(letters).scatter(2, orders, even)  # (L, 2, 20)
    listed = {
        "letters, one order": ndcg_of(by_film[:, 0], asked, n),
        "letters, the other order": ndcg_of(by_film[:, 1], asked, n),
        "letters, mean of both": ndcg_of(by_film.mean(1), asked, n),
        "letters, each without its mean": ndcg_of(evened.mean(1), asked, n),
    }
    chosen = letters.argmax(2)  # (L, 2)
    films = by_film.argmax(2)  # (L, 2)
    shares = Counter(LETTERS[i] for i in chosen.flatten().tolist())
    same = (films[:, 0] == films[:, 1]).float()  # (L,)
    ranks = by_film.argsort(2).argsort(2).double()  # (L, 2, 20)
    centered = ranks - ranks.mean(2, keepdim=True)
    alike = (centered[:, 0] * centered[:, 1]).sum(1) / (centered[:, 0] ** 2).sum(1)  # (L,) Spearman
    own = (letters - letters.mean(2, keepdim=True)).double()  # (L, 2, 20)
    place = own.mean((0, 1))  # (20,)
    by_place = (place**2).sum() * 2 * n / (own**2).sum()
    pairs = [("PMI", "random"), ("likelihood", "random"), ("PMI", "MiniLM cosine"), ("PMI", "EASE")]
    pairs += [("MiniLM cosine", "random"), ("MiniLM cosine", "EASE"), ("PMI per token", "random")]
    pairs += [(f"{label} cosine", "random"), (f"{label} cosine", "MiniLM cosine")]
    pairs += [(f"{label} cosine", "PMI"), ("PMI", "popularity"), ("likelihood", "title alone")]
    return {
        "people": len(asked.users),
        "likes_read": sizes.likes,
        "chance": round(CHANCE, 4),
        "prompt": said["prompt"],
        "continuation": said["continuation"],
        "contenders": [
            {"name": name, **interval(x), "minus chance": gap(paired(x - CHANCE))}
            for name, x in per_user.items()
        ],
        "differences": [{"a": a, "b": b, **gap(paired(per_user[a] - per_user[b]))} for a, b in pairs],
        "prior_share": _prior_share(after, before),
        "prior_share_per_token": _prior_share(after / tokens, before / tokens),
        "tokens_of_a_title": round(float(tokens.mean()), 2),
        "listwise": {
            "people": n,
            "prompt": said["list_prompt"],
            "contenders": [
                {"name": name, **interval(x), "minus chance": gap(paired(x - CHANCE))}
                for name, x in listed.items()
            ],
            "same_people": [
                {"name": name, **interval(per_user[name][:n])}
                for name in ("likelihood", "PMI", "MiniLM cosine", "EASE", "popularity")
            ],
            "chosen": {letter: shares.get(letter, 0) for letter in LETTERS},
            "answers": 2 * n,
            "same_film_in_both_orders": interval(same),
            "rank_correlation_of_both_orders": interval(alike),
            "share_of_place": round(float(by_place), 4),
            "mean_score_of_letter": {
                letter: round(x, 3) for letter, x in zip(LETTERS, place.tolist(), strict=True)
            },
        },
    }


def _prior_share(after: Tensor, before: Tensor) -> dict[str, float]:
    """The share of the variance within a person's films that the title's own likelihood explains."""
    x = (before - before.mean(1, keepdim=True)).double()  # (U, 20)
    y = (after - after.mean(1, keepdim=True)).double()  # (U, 20)
    sums = torch.stack([(x * y).sum(1), (x * x).sum(1), (y * y).sum(1)], dim=1).numpy()  # (U, 3)

    def share(of: Any) -> Any:
        return of[..., 0] ** 2 / (of[..., 1] * of[..., 2])

    rng = np.random.default_rng(0)
    again = np.stack([sums[rng.integers(len(sums), size=len(sums))].sum(0) for _ in range(2000)])  # (B, 3)
    low, high = np.quantile(share(again), [0.025, 0.975])
    return _rounded(float(share(sums.sum(0))), low, high)


def trap(asked: Asked, said: dict[str, Any], sizes: Sizes, seed: int) -> dict[str, Any]:
    """The best of many forms on the people it was chosen by, and on others."""
    forms = score_forms(said["after"], said["before"], said["tokens"])
    table = torch.stack([ndcg_of(x, asked) for x in forms.values()])  # (F, U)
    names = list(forms)
    n = sizes.first

    def chosen_and_fresh(order: Tensor) -> tuple[int, Tensor, Tensor]:
        mine, fresh = table[:, order[:n]], table[:, order[n:]]
        best = int(mine.mean(1).argmax())
        return best, mine[best], fresh[best]

    best, mine, fresh = chosen_and_fresh(torch.arange(table.shape[1]))
    chance = torch.Generator().manual_seed(seed)
    again = [chosen_and_fresh(torch.randperm(table.shape[1], generator=chance)) for _ in range(1000)]
    optimism = torch.stack([a.mean() - b.mean() for _, a, b in again])  # (1000,)
    # The same with scores that know nothing: what choosing alone brings.
    nothing = torch.stack(
        [ndcg_of(torch.rand(said["after"].shape, generator=chance), asked) for _ in names]
    )  # (F, U)
    best_of_nothing = int(nothing[:, :n].mean(1).argmax())
    return {
        "forms": len(names),
        "chosen_on": n,
        "fresh_people": table.shape[1] - n,
        "best": names[best],
        "on_the_first": interval(mine),
        "on_fresh_people": interval(fresh),
        "by_form": [
            {
                "name": name,
                "on_the_first": round(float(x[:n].mean()), 4),
                "on_fresh_people": round(float(x[n:].mean()), 4),
            }
            for name, x in zip(names, table, strict=True)
        ],
        "over_1000_cuts": {
            "on_the_first": round(float(np.mean([a.mean() for _, a, _ in again])), 4),
            "on_fresh_people": round(float(np.mean([b.mean() for _, _, b in again])), 4),
            "optimism": round(float(optimism.mean()), 4),
        },
        "forms_that_know_nothing": {
            "on_the_first": interval(nothing[best_of_nothing, :n]),
            "on_fresh_people": interval(nothing[best_of_nothing, n:]),
        },
    }


# ---------------------------------------------------------------------------------------------- memory


def said_next(model: CausalLM, prompt: str, tokens: int = 12) -> str:
    """The likeliest continuation, a token at a time, up to the end of the line."""
    ids = torch.tensor([model.prompt_tokens([prompt])[0]], device=model.device)  # (1, P)
    with torch.no_grad():
        out = model.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=model.tokenizer.pad_token_id or 0,
        )
    text = model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    return text.split("\n")[0] if text.strip() else text


def years(model: CausalLM, data: MovieLens, n: int, seed: int) -> dict[str, Any]:
    """The year of films that many or few have rated."""
    known = data.items["year"].notna().to_numpy()
    plain = ~data.items["title"].str.contains(r"\d{4}").to_numpy()  # no year in the title
    counts = data.interactions.item_counts().numpy()
    usable = np.flatnonzero(known & plain)
    famous = usable[np.argsort(-counts[usable], kind="stable")][:n]
    rare = np.random.default_rng(seed).permutation(usable[counts[usable] <= 5])[:n]
    found = {}
    for name, films in {"famous": famous, "rare": rare}.items():
        right, near, given = [], [], []
        real = [int(data.items["year"].iloc[i]) for i in films]
        for item, year in zip(films, real, strict=True):
            said = said_next(model, f"The film {data.items['title'].iloc[item]} was released in the year", 8)
            match = re.search(r"\b(1[89]|20)\d\d\b", said)
            given.append(match is not None)
            guess = int(match[0]) if match else 0
            right.append(float(guess == year))
            near.append(float(abs(guess - year) <= 1))
        majority, times = Counter(real).most_common(1)[0]
        found[name] = {
            "films": len(films),
            "ratings_at_least": int(counts[films].min()),
            "ratings_at_most": int(counts[films].max()),
            "right": interval(torch.tensor(right)),
            "within_one_year": interval(torch.tensor(near)),
            "gave_a_year": round(float(np.mean(given)), 4),
            "majority_year": majority,
            "majority_share": round(times / len(real), 4),
            "right_minus_majority": gap(
                paired(torch.tensor([r - float(y == majority) for r, y in zip(right, real, strict=True)]))
            ),
        }
    return found


def titles_by_number(model: CausalLM, data: MovieLens, n: int) -> dict[str, Any]:
    """The title of the most rated films, by MovieLens's number, as a sentence and as the lines of u.item."""
    names, ids = film_names(data), [str(i) for i in data.items["item_id"]]
    raw = data.items["raw_title"].tolist()
    shown = [0, 1, 2]
    counts = data.interactions.item_counts()
    asked = [i for i in counts.argsort(descending=True, stable=True).tolist() if i not in shown][:n]
    forms = {
        "a sentence": (
            "".join(f"In MovieLens 100K the film with the number {ids[i]} is {names[i]}.\n" for i in shown),
            "In MovieLens 100K the film with the number {} is",
        ),
        "lines of u.item": ("".join(f"{ids[i]}|{raw[i]}|\n" for i in shown), "{}|"),
    }
    every = {_plain(title) for title in data.items["title"]}
    found = {}
    for form, (before, line) in forms.items():
        answers = [said_next(model, before + line.format(ids[i])) for i in asked]
        plain = [_plain(re.split(r"[(|]|\.$", answer)[0]) for answer in answers]
        right = [
            float(text == _plain(data.items["title"].iloc[i])) for text, i in zip(plain, asked, strict=True)
        ]
        found[form] = {
            "films": len(asked),
            "right": int(sum(right)),
            "share": _wilson(int(sum(right)), len(asked)),
            "a_title_of_the_catalog": round(float(np.mean([text in every for text in plain])), 4),
            "distinct_answers": len(set(plain)),
            "prompt": before + line.format(ids[asked[0]]),
            "first_answers": [
                {"number": ids[i], "said": answer.strip()[:60], "is": names[i]}
                for i, answer in zip(asked[:5], answers, strict=False)
            ],
        }
    return found


def _plain(title: str) -> str:
    """A title without case, signs, and an article at either end."""
    words = re.sub(r"[^\w ]", " ", title.lower()).split()
    return " ".join(word for word in words if word not in ("the", "a", "an"))


def _wilson(hits: int, n: int) -> dict[str, float]:
    """A share with Wilson's interval, which says something where nothing was hit."""
    z, p = 1.96, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return _rounded(p, max(0.0, middle - half), middle + half)


def memory(model: CausalLM, data: MovieLens, sizes: Sizes, seed: int) -> dict[str, Any]:
    return {
        "year": years(model, data, sizes.films, seed),
        "title_by_number": titles_by_number(model, data, sizes.films),
    }


# ------------------------------------------------------------------------------------------------ all


class Kept:
    """Parts of a run that are done, each a file; a run of the same settings finds them again."""

    def __init__(self, folder: Path | None, settings: dict[str, Any]) -> None:
        name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = folder / name if folder else None
        self.seconds = 0.0

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        """What is kept under this name, or what makes it, which is then kept."""
        path = self.folder / f"{name}.json" if self.folder else None
        if path and path.exists():
            part = json.loads(path.read_text("utf8"))
        else:
            started = time.process_time()
            part = {"found": make()}
            part["seconds"] = time.process_time() - started
            print(f"{name}: {part['seconds']:.0f} s", flush=True)
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                with write_whole(path) as file:
                    file.write_text(json.dumps(part), encoding="utf8")
        self.seconds += part["seconds"]
        return part["found"]


def cost(said: dict[str, Any], others: dict[str, Any], speed: dict[str, float | None], n_items: int) -> Any:
    """Seconds of processor time for a thousand people; "once" is the catalog's, or the fit."""
    found = {
        "pointwise, twenty films": {"once": 0.0, "per_thousand_people": said["pointwise"]},
        "listwise, twenty films, one order": {"once": 0.0, "per_thousand_people": said["listwise"]},
        **others,
    }
    for name, rate in speed.items():
        if f"{name} cosine" in found and rate:
            found[f"{name} cosine"]["once"] = round(found[f"{name} cosine"]["once"] + n_items / rate, 3)
    return found


def run(
    model: str | None = None,
    *,
    sizes: Sizes | None = None,
    seed: int = 0,
    device: str = "cpu",
    small: bool = False,
    parts: Path | None = None,
) -> dict[str, Any]:
    """The whole measurement.

    Args:
        model: name on the hub, or a folder; Gemma 3 270M out of its packages by default.
        sizes: how much is measured.
        seed: of all that is drawn.
        device: of the language model.
        small: a random model of two layers, and few of everything.
        parts: folder in which what is done is kept.
    """
    data = load_movielens("100k")
    sizes = sizes or (SMALL if small else Sizes())
    names, texts = film_names(data), data.items["text"].tolist()
    label = "small" if small else "Gemma" if model is None else model.rpartition("/")[2]
    with tempfile.TemporaryDirectory() as temporary:
        folder: str | Path = small_model(Path(temporary), texts) if small else model or gemma_folder()
        language_model = CausalLM(folder, device=device)
        weights = content_hash(language_model.folder)
        settings = {"model": label, **asdict(sizes), "seed": seed, "threads": torch.get_num_threads()}
        code = [code_hash(name) for name in MADE_BY]
        kept = Kept(parts, settings | {"weights": weights, "device": device, "code": code})
        split = leave_last_out(data.interactions.positives(4.0), n=1)
        asked = draw_people(data, split, sizes, seed)
        films = asked.films.unique().tolist()
        before = kept("alone", lambda: alone(language_model, names, films))
        said = _said(kept, language_model, asked, names, films, before, sizes, seed)
        remembered = kept("memory", lambda: memory(language_model, data, sizes, seed))
        found = kept("embeddings", lambda: embeddings(data, folder, label, sizes, seed, device, small))
        vectors = {
            name: encoder.encode(texts, progress=False).cpu()
            for name, encoder in representations(folder, label, texts, device, small).items()
            if name in ("MiniLM", f"{label}, mean")
        }
        vectors[label] = vectors.pop(f"{label}, mean")
        others, extra = others_on_the_same(data, split, asked, vectors, small)
        speed = {row["name"]: row["texts_per_cpu_second"] for row in found["rows"]}
        speed[label] = speed[f"{label}, mean"]
        values = {
            "model": label,
            "embeddings": found,
            "asked": asked_directly(asked, said, others, label, sizes) | {"l2 of EASE": extra["l2 of EASE"]},
            "trap": trap(asked, said, sizes, seed),
            "memory": remembered,
            "cost": cost(said["seconds"], extra["costs"], speed, len(texts)),
            "cpu_seconds": round(kept.seconds),
        }
    return {
        "inputs": {"ratings": data.sha256, "weights": weights},
        "settings": settings,
        "values": values,
    }


def _said(
    kept: Kept,
    model: CausalLM,
    asked: Asked,
    names: list[str],
    films: list[int],
    before: dict[str, Any],
    sizes: Sizes,
    seed: int,
) -> dict[str, Any]:
    """All that the model says of the people, some of them at a time."""
    groups = [range(start, min(start + 10, sizes.people)) for start in range(0, sizes.people, 10)]
    listed = [range(start, min(start + 10, sizes.listed)) for start in range(0, sizes.listed, 10)]
    points = [kept(f"pointwise-{g.start}", partial(pointwise, model, asked, names, g)) for g in groups]
    lists = [kept(f"listwise-{g.start}", partial(listwise, model, asked, names, g, seed)) for g in listed]
    place = torch.zeros(max(films) + 1, dtype=torch.int64)
    place[films] = torch.arange(len(films))
    own, tokens = (torch.tensor(before[name]) for name in ("alone", "tokens"))  # (F,), (F,)
    example = prompt_of(asked.likes[0], names)
    return {
        "after": torch.tensor([row for part in points for row in part["after"]]),  # (U, 20)
        "before": own[place[asked.films]],  # (U, 20)
        "tokens": tokens[place[asked.films]].float(),  # (U, 20)
        "orders": torch.tensor([row for part in lists for row in part["orders"]]),  # (L, 2, 20)
        "letters": torch.tensor([row for part in lists for row in part["letters"]]),  # (L, 2, 20)
        "prompt": example,
        "continuation": f" {names[int(asked.films[0, 0])]}\n",
        "list_prompt": example[:-1]
        + "\nWhich of these films would the same person love most?\nA. ...\nAnswer:",
        "seconds": {
            "pointwise": round(1000 * sum(part["cpu_seconds"] for part in points) / sizes.people, 1),
            "listwise": round(1000 * sum(part["cpu_seconds"] for part in lists) / sizes.listed / 2, 1),
        },
    }


def table(found: dict[str, Any]) -> str:
    """The run as text."""

    def line(name: str, value: dict[str, float]) -> str:
        return f"{name:36}{value['mean']:+.4f} [{value['low']:+.4f}, {value['high']:+.4f}]"

    values = found["values"]
    asked = values["asked"]
    lines = ["", "embeddings: cosine, last one as is, half whitened; new films; texts a second"]
    for row in values["embeddings"]["rows"]:
        last = "  ".join(f"{x['mean']:.4f}" for x in row["last one"].values())
        speed = row["texts_per_cpu_second"]
        lines.append(
            f"{row['name']:24}{row['anisotropy']:7.3f}  {last:16}{row['new films']['mean']:8.4f}  {speed}"
        )
    lines += [line(name, x) for name, x in values["embeddings"]["controls"].items()]
    lines += ["", f"asked directly, {asked['people']} people, chance {asked['chance']}"]
    lines += [line(x["name"], x) for x in asked["contenders"]]
    lines += [line(f"{x['a']} - {x['b']}", x) for x in asked["differences"]]
    lines += [line("share of the title's own", asked["prior_share"])]
    lines += [line(x["name"], x) for x in asked["listwise"]["contenders"]]
    lines += [f"letters {asked['listwise']['chosen']}"]
    lines += [line("same film in both orders", asked["listwise"]["same_film_in_both_orders"])]
    trapped = values["trap"]
    lines += ["", f"{trapped['best']}, best of {trapped['forms']}"]
    lines += [line(where, trapped[where]) for where in ("on_the_first", "on_fresh_people")]
    for name, group in values["memory"]["year"].items():
        lines.append(line(f"year, {name}, majority {group['majority_share']}", group["right"]))
    for name, form in values["memory"]["title_by_number"].items():
        lines.append(f"number to title, {name}: {form['right']} of {form['films']}")
    lines += ["", "seconds once, and for a thousand people"]
    lines += [f"{name:36}{x['once']:10}  {x['per_thousand_people']}" for name, x in values["cost"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="name on the hub, or a folder; Gemma 3 270M by default")
    parser.add_argument("--device", default="cpu", help="of the language model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="a random model, and few of everything")
    parser.add_argument("--parts", type=Path, default=PARTS, help="a folder for what is done")
    parser.add_argument("--record", type=Path, help="a file for the results, as JSON")
    arguments = parser.parse_args()
    if arguments.record and arguments.small:
        parser.error("a small run is not recorded")
    found = run(
        arguments.model,
        seed=arguments.seed,
        device=arguments.device,
        small=arguments.small,
        parts=arguments.parts,
    )
    print(table(found))
    if arguments.record:
        cuda = arguments.device.startswith("cuda")
        where = f"cuda: {torch.cuda.get_device_name(arguments.device)}" if cuda else None
        write_run(
            arguments.record,
            about=__doc__ or "",
            command=COMMAND if arguments.model is None else f"{COMMAND} --model {arguments.model}",
            device=where,
            versions=("torch", "transformers", "numpy"),
            code=CODE,
            **found,
        )


if __name__ == "__main__":
    main()
