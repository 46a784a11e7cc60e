"""The benchmark of the language model with a random one of two layers, and its recorded run."""

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from recsys_lib.chapter.runs import RecordedRun, code_hash
from recsys_lib.data import leave_last_out, load_movielens

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "book" / "recorded" / "language_model.json"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = ROOT / "benchmarks" / "language_model.py"
    spec = importlib.util.spec_from_file_location("benchmark_language_model", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def shape(value: Any, model: str) -> Any:
    """The names in a run, without the numbers, and without what a model's own name is part of."""
    if isinstance(value, dict):
        return {key.replace(model, "model"): shape(part, model) for key, part in value.items()}
    if isinstance(value, list):
        rows = [shape(part, model) for part in value]
        return rows[0] if rows else None
    return None


@pytest.mark.slow
def test_a_small_run_has_the_layout_of_the_recorded_one(benchmark: ModuleType, tmp_path: Path) -> None:
    found = benchmark.run(small=True, parts=tmp_path)
    recorded = RecordedRun.read(RECORDED)
    assert found["settings"].keys() == recorded.settings.keys()
    assert found["inputs"]["ratings"] == recorded.inputs["ratings"]
    ours, theirs = (
        {name: shape(part, values["model"]) for name, part in values.items()}
        for values in (found["values"], recorded.values)
    )
    for values in (ours, theirs):  # the letter's film in each draw, by name
        values["embeddings"].pop("draws")
    assert ours == theirs
    assert all(code_hash(name) for name in benchmark.CODE)
    assert "chance 0.2272" in benchmark.table(found)
    # What was kept is read again, and gives the same.
    again = benchmark.run(small=True, parts=tmp_path)
    for run in (found, again):
        run["values"].pop("cost")
    assert again == found


def test_the_liked_film_is_hidden_and_the_others_were_not_rated(benchmark: ModuleType) -> None:
    data = load_movielens("100k", progress=False)
    split = leave_last_out(data.interactions.positives(4.0), n=1)
    asked = benchmark.draw_people(data, split, benchmark.Sizes(people=40), seed=3)
    assert len(set(asked.users.tolist())) == 40
    pairs = zip(data.interactions.users.tolist(), data.interactions.items.tolist(), strict=True)
    rated = set(pairs)
    hidden = set(zip(split.test.users.tolist(), split.test.items.tolist(), strict=True))
    for user, films, likes in zip(asked.users.tolist(), asked.films.tolist(), asked.likes, strict=True):
        assert (user, films[0]) in hidden
        assert len(set(films)) == 20
        assert not any((user, film) in rated for film in films[1:])
        assert films[0] not in likes
        assert all((user, film) in rated for film in likes)
    same = benchmark.draw_people(data, split, benchmark.Sizes(people=40), seed=3)
    assert torch.equal(same.films, asked.films)


def test_the_measure_of_twenty_films(benchmark: ModuleType) -> None:
    asked = benchmark.Asked(torch.arange(3), torch.arange(60).view(3, 20), [[]] * 3)
    scores = torch.zeros(3, 20)
    scores[0, 0] = 1  # first
    scores[1, 1:4] = 1  # fourth
    scores[1, 0] = 0.5
    scores[2, 1:12] = 1  # twelfth
    scores[2, 0] = 0.5
    assert benchmark.ndcg_of(scores, asked).tolist() == pytest.approx([1.0, 1 / math.log2(5), 0.0])
    # Chance is what a constant gives on the average.
    many = benchmark.Asked(torch.arange(4000), torch.arange(80_000).view(4000, 20), [])
    by_chance = float(benchmark.ndcg_of(torch.zeros(4000, 20), many).mean())
    assert by_chance == pytest.approx(benchmark.CHANCE, abs=0.02)
    assert pytest.approx(0.2272, abs=1e-4) == benchmark.CHANCE


def test_forms_and_the_share_of_the_titles_own(benchmark: ModuleType) -> None:
    chance = torch.Generator().manual_seed(0)
    before, rest = torch.randn(2, 50, 20, generator=chance)
    tokens = torch.full((50, 20), 4.0)
    forms = benchmark.score_forms(before + rest, before, tokens)
    assert torch.allclose(forms["minus 1 of its own, tokens to the power 0"], rest, atol=1e-6)
    assert torch.allclose(forms["minus 0 of its own, tokens to the power 0.5"], (before + rest) / 2)
    found = benchmark._prior_share(before + rest, before)
    assert found["low"] < 0.5 < found["high"]
    assert benchmark._prior_share(before, before)["mean"] == 1
    # What belongs to the person alone is no part of it.
    moved = before + 100 * torch.randn(50, 1, generator=chance)
    assert benchmark._prior_share(moved, before)["mean"] == pytest.approx(1, abs=1e-4)


def test_a_share_of_nothing_has_an_interval(benchmark: ModuleType) -> None:
    none = benchmark._wilson(0, 100)
    assert none["mean"] == none["low"] == 0
    assert none["high"] == pytest.approx(0.037, abs=1e-3)
    assert benchmark._plain("Godfather, The") == benchmark._plain("the GODFATHER")


def test_the_recorded_run_agrees_with_itself(benchmark: ModuleType) -> None:
    values = RecordedRun.read(RECORDED).values
    asked = {row["name"]: row["mean"] for row in values["asked"]["contenders"]}
    for gap in values["asked"]["differences"]:
        assert gap["mean"] == pytest.approx(asked[gap["a"]] - asked[gap["b"]], abs=3e-5)
    assert values["asked"]["chance"] == pytest.approx(benchmark.CHANCE, abs=1e-4)
    letters = values["asked"]["listwise"]
    assert sum(letters["chosen"].values()) == letters["answers"] == 2 * letters["people"]
    trapped = values["trap"]
    by_form = {row["name"]: row for row in trapped["by_form"]}
    assert len(by_form) == trapped["forms"]
    best = by_form[trapped["best"]]
    assert best["on_the_first"] == max(row["on_the_first"] for row in by_form.values())
    assert trapped["on_fresh_people"]["mean"] == pytest.approx(best["on_fresh_people"], abs=1e-4)
    rows = {row["name"]: row for row in values["embeddings"]["rows"]}
    assert rows["random"]["dimensions"] == rows["Gemma, mean"]["dimensions"] == 640
    draws = values["embeddings"]["draws"]
    for name, row in rows.items():
        assert row["new films"]["mean"] == pytest.approx(sum(draws[name]) / len(draws[name]), abs=2e-5)
