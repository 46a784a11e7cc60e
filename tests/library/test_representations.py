"""Representations in one table, and the recipe of the page about running, on a catalog that is untidy."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from recsys_lib.cold_items import ColdItems
from recsys_lib.data import Interactions, leave_last_out
from recsys_lib.evaluation import compare, evaluate
from recsys_lib.models import EASE, Popularity, TextProfile
from recsys_lib.representations import compare_representations, item_vectors

ROOT = Path(__file__).parents[2]
TOPICS = {
    "tea": ["Grüner Tee from Kyōto", "black tea, Assam №{}", "a teapot for oolong tea", "matcha tea 抹茶"],
    "hiking": ["boots for mountain hiking", "Wanderstöcke: hiking poles {}", "map of alpine hiking trails"],
    "jazz": ["jazz trumpet, live in São Paulo", "vinyl of bebop jazz {}", "piano jazz «Ночь»", "jazz drums"],
}
N_USERS, N_ITEMS = 90, 120


@pytest.fixture(scope="module")
def shop() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Items of three topics and people who like one each; leading zeros, missing texts, items never sold."""
    rng = np.random.default_rng(0)
    names = list(TOPICS)
    rows = []
    for number in range(N_ITEMS):
        kinds = TOPICS[names[number % 3]]
        text = kinds[number // 3 % len(kinds)].format(number)
        rows.append((f"{number:04}", text if number % 17 else (None if number % 2 else "  "), number % 3))
    items = pd.DataFrame(rows, columns=["item_id", "text", "topic"]).sample(frac=1, random_state=1)
    events = []
    for user in range(N_USERS):
        own = [i for i in range(N_ITEMS - 6) if i % 3 == user % 3]  # the last six were never sold
        other = [i for i in range(N_ITEMS - 6) if i % 3 != user % 3]
        bought = [*rng.choice(own, 10, replace=False), *rng.choice(other, 1)]
        events += [(f"каждый-{user}", f"{i:04}", 1_700_000_000 + int(rng.integers(10**7))) for i in bought]
    frame = pd.DataFrame(events, columns=["user_id", "item_id", "timestamp"])
    return items, frame.sample(frac=1, random_state=2)


class Topic:
    """Knows the topics' words, and cannot be led astray."""

    def encode(self, texts, progress=True):
        found = [[float(word in text.lower()) for word in ("te", "hik", "jazz")] for text in texts]
        return torch.tensor(found)


@pytest.fixture(scope="module")
def chosen(shop) -> Interactions:
    items, events = shop
    return Interactions.from_frame(events, item_ids=items["item_id"])


def test_a_missing_text_gets_the_mean(shop):
    texts = [None, "jazz", "  ", "jazz tea", math.nan]
    vectors = item_vectors(texts, Topic())
    assert vectors[[1, 3]].tolist() == [[0, 0, 1], [1, 0, 1]]
    assert vectors[0].tolist() == vectors[2].tolist() == vectors[4].tolist() == [0.5, 0, 1]
    assert torch.allclose(vectors.mean(0), vectors[0])  # centered they are zero
    with pytest.raises(ValueError, match="none of the 2 items has a text"):
        item_vectors([None, ""], Topic())
    with pytest.raises(TypeError, match="text 1 is a int"):
        item_vectors(["a", 3], Topic())


def test_values_are_those_of_evaluate_and_of_the_cold_draws(shop, chosen):
    vectors = item_vectors(shop[0]["text"], Topic())
    found = compare_representations(chosen, {"topics": vectors}, n=2, n_draws=2, seed=3, device="cpu")
    split, cold = leave_last_out(chosen, n=2), ColdItems(chosen, 2, seed=3, device="cpu")
    for name, build in {"topics": lambda: TextProfile(vectors), "popularity": Popularity}.items():
        report = evaluate(build().fit(split.history), split.test, seen=split.history, progress=False)
        assert found.known[name].metrics["ndcg@10"] == report.metrics["ndcg@10"]
        for number, draw in enumerate(cold):
            new = cold.evaluate(build().fit(draw.events), draw).metrics["ndcg@10"]
            assert found.new.frame[name][number] == new
    table = found.table()
    assert set(table.index) == {"topics", "popularity", "random vectors"}
    assert table.loc["topics", "known items"] == found.known["topics"].metrics["ndcg@10"]
    assert (table.loc["topics", ["low", "high"]] == list(found.new.mean("topics")[1:3])).all()
    known = compare(found.known["topics"], found.known["popularity"], "ndcg@10")
    assert found.gap("topics", "popularity", new=False) == known
    assert found.gap("topics") == found.new.compare("topics", "random vectors")
    assert found.gap("topics").mean > 0.1


def test_random_vectors_are_the_control_of_every_model(chosen):
    seen = []

    def make(vectors):
        seen.append(vectors)
        return EASE()

    compare_representations(
        chosen, {"a": torch.zeros(N_ITEMS, 2), "b": torch.zeros(N_ITEMS, 5)}, make, n_draws=1
    )
    assert max(x.shape[1] for x in seen) == 5
    assert next(x for x in seen if x.std() > 0).shape == (N_ITEMS, 5)


def test_wrong_arguments_are_named(chosen):
    good = torch.ones(N_ITEMS, 2)
    with pytest.raises(ValueError, match="one representation or more"):
        compare_representations(chosen, {})
    with pytest.raises(ValueError, match="'popularity' is that of a control"):
        compare_representations(chosen, {"popularity": good})
    with pytest.raises(ValueError, match=r"'a' must be \(120, D\), got \(3, 2\)"):
        compare_representations(chosen, {"a": good[:3]})
    with pytest.raises(ValueError, match="item 4 of 'a' holds NaN"):
        compare_representations(chosen, {"a": good.index_fill(0, torch.tensor([4]), math.nan)})
    with pytest.raises(RuntimeError, match="'a' failed on known items: ZeroDivisionError"):
        compare_representations(chosen, {"a": good}, lambda vectors: 1 / 0)


# The recipe.


def recipe() -> str:
    page = (ROOT / "book" / "how_to_run.md").read_text("utf8")
    section = page.partition("## On your own items")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))


def test_the_recipe_finds_what_was_planted(shop, tmp_path, monkeypatch, capsys):
    items, events = shop
    items[["item_id", "text"]].to_csv(tmp_path / "items.csv", index=False)
    events.to_csv(tmp_path / "events.csv", index=False)
    monkeypatch.chdir(tmp_path)
    placeholder = "A text that you write for a new item"
    code = recipe()
    assert placeholder in code
    names: dict = {}
    exec(compile(code.replace(placeholder, "a new album of cool jazz"), "how_to_run.md", "exec"), names)

    printed = capsys.readouterr().out
    assert "known items" in printed
    assert "minus random vectors" in printed
    found = names["found"]
    for name in ("words", "tokens", "MiniLM"):
        assert found.gap(name).low > 0.1
        assert found.gap(name, "popularity").low > 0.1
        assert found.gap(name, new=False).low > 0
    topic = items.set_index("item_id")["topic"]
    first = events["user_id"].iloc[0]
    assert names["lists"]["user_id"].tolist() == [first] * 5
    assert (topic[names["lists"]["item_id"]] == int(first.rpartition("-")[2]) % 3).all()
    assert not set(names["lists"]["item_id"]) & set(events.loc[events["user_id"] == first, "item_id"])
    assert len(names["visitor"]) == 5
    assert {int(name.rpartition("-")[2]) % 3 for name in names["people"]} == {2}  # those who like jazz
    loaded = TextProfile.from_pretrained(tmp_path / "text_profile")
    assert loaded.item_ids.tolist() == items["item_id"].tolist()
    assert names["chosen"].n_items == N_ITEMS
