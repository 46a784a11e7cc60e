"""The experiment: what it chooses, fits and measures, against doing the same by hand."""

import re

import matplotlib as mpl
import pandas as pd
import pytest
import torch

from recsys_lib.chapter import Chapter
from recsys_lib.data import Interactions, leave_last_out
from recsys_lib.evaluation import compare, evaluate, mean_report
from recsys_lib.experiment import Experiment
from recsys_lib.models import BPR, EASE, Popularity
from recsys_lib.tuning import tune

mpl.use("agg")


@pytest.fixture(scope="module")
def split():
    generator = torch.Generator().manual_seed(0)
    rows = [
        (user, (3 * user + int(step)) % 30, place)
        for user in range(40)
        for place, step in enumerate(torch.randperm(15, generator=generator)[:9])
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    return leave_last_out(Interactions.from_frame(frame), n=2)


GRID = {"l2": [0.5, 5.0, 50.0, 500.0]}


@pytest.fixture(scope="module")
def done(split) -> Experiment:
    trial = Experiment(split, budget=3, seed=4, device="cpu", progress=False)
    trial.add("popularity", Popularity, family="counting")
    trial.add("EASE", EASE, GRID, family="linear")
    trial.add("BPR", BPR, {"l2": [0.001, 0.1]}, family="factors", seeds=2, dim=4, epochs=5)
    return trial.run()


def test_it_is_what_one_would_do_by_hand(done, split):
    found = tune(EASE, GRID, split, budget=3, seed=4, progress=False)
    assert done["EASE"].best == found.best
    by_hand = evaluate(EASE(**found.best).fit(split.history), split.test, seen=split.history, seed=4)
    assert done.report("EASE").metrics == by_hand.metrics

    found = tune(
        BPR, {"l2": [0.001, 0.1]}, split, budget=3, seed=4,
        fixed={"seed": 4, "dim": 4, "epochs": 5}, progress=False,
    )  # fmt: skip
    reports = [
        evaluate(BPR(**found.best | {"seed": s}).fit(split.history), split.test, seen=split.history, seed=4)
        for s in (4, 5)
    ]
    assert done.report("BPR").metrics == mean_report(reports).metrics
    assert done.gap("EASE", "BPR") == compare(by_hand, mean_report(reports), "ndcg@10")
    assert done["popularity"].tuning is None


def test_the_test_part_is_not_seen_before_the_choice(split, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "recsys_lib.experiment.evaluate", lambda *a, **k: asked.append(a[1]) or evaluate(*a, **k)
    )
    seen_by_tuning = []
    monkeypatch.setattr(
        "recsys_lib.tuning.evaluate", lambda *a, **k: seen_by_tuning.append(a[1]) or evaluate(*a, **k)
    )
    Experiment(split, budget=2, progress=False).add("EASE", EASE, GRID, family="linear").run()
    assert all(part is split.validation for part in seen_by_tuning)
    assert [part is split.test for part in asked] == [True]


def test_every_contender_gets_the_same_budget(done):
    assert len(done["EASE"].tuning.trials) == 3
    assert len(done["BPR"].tuning.trials) == 3  # the defaults and a grid of two


def test_the_table_the_gaps_and_the_figure(done):
    table = done.table()
    assert list(table.index) == done.ranked()
    assert (table["low"] <= table["ndcg@10"]).all()
    assert (table["ndcg@10"] <= table["high"]).all()
    assert table.loc["EASE", "chosen"] == f"l2 {done['EASE'].best['l2']:g}"
    assert table.loc["popularity", "chosen"] == ""
    gaps = done.gaps(("EASE", "popularity"))
    assert gaps.loc["EASE − popularity", "mean"] == pytest.approx(done.gap("EASE", "popularity").mean)
    assert len(done.gaps()) == 2  # each with the best one
    ax = done.plot()
    assert [label.get_text() for label in ax.get_yticklabels()] == done.ranked()
    assert ax.get_xlabel() == "NDCG@10"


def test_a_table_says_what_its_rows_are_in_one_line_of_headings(done):
    for shown, name in ((done.table().round(3), "model"), (done.gaps(), "difference")):
        head = re.search("<thead>(.*?)</thead>", shown.to_html(), re.DOTALL)[1]
        assert head.count("<tr") == 1
        assert re.findall("<th>(.*?)</th>", head) == [name, *shown.columns]


def test_what_was_chosen_is_short_and_shown_whole(split):
    """pandas cuts texts of 50 characters or more: many options have a table of their own."""
    options = {"l2": [0.1 + 0.2], "learning_rate": [0.1 * 0.3], "epochs": [2], "negatives": ["uniform"]}
    trial = Experiment(split, budget=2, device="cpu", progress=False)
    trial.add("BPR", BPR, options, family="factors", seeds=1, dim=4)
    trial.add("EASE", EASE, GRID, family="linear").add("popularity", Popularity, family="counting").run()
    # as a search that was done elsewhere may have found it
    trial["BPR"].tuning.best.update(l2=0.1 + 0.2, learning_rate=0.1 * 0.3, epochs=2, negatives="uniform")
    chosen = trial.table().loc["BPR", "chosen"]
    assert chosen == "l2 0.3, learning_rate 0.03, epochs 2, negatives uniform"
    choices = trial.choices()
    assert dict(choices.loc["BPR"]) == {
        "l2": "0.3",
        "learning_rate": "0.03",
        "epochs": "2",
        "negatives": "uniform",
    }
    assert list(choices.loc["EASE", ["learning_rate", "epochs", "negatives"]]) == ["", "", ""]
    assert sorted(choices.index) == ["BPR", "EASE"]  # popularity has nothing to choose
    assert choices.columns.name == "model"
    assert "..." not in choices.to_html()


def test_a_best_value_at_the_end_of_its_grid_is_pointed_out(done):
    best = done["EASE"].best["l2"]
    edges = done.edges()
    assert ("EASE" in edges) == (best in (0.5, 500.0))
    assert "BPR" not in edges  # two values have no inside


def test_what_was_measured_is_kept_and_what_comes_later_is_added(done, split, monkeypatch):
    trial = Experiment(split, budget=1, progress=False).add("popularity", Popularity, family="counting").run()
    before = trial.report("popularity")
    trial.add("EASE", EASE, family="linear", tuned=done["EASE"].tuning)
    trial.run()
    assert trial.report("popularity") is before
    assert trial["EASE"].best == done["EASE"].best  # one search for a model, wherever it is used
    again = trial.fit("EASE", l2=7.0)
    assert again.l2 == 7.0


def test_results_go_to_the_chapter(done, tmp_path):
    chapter = Chapter("05_trial", dataset="100k", seed=4, device="cpu", results=tmp_path)
    done.record(chapter, "EASE", "ease", scoreboard=True, headline=True)
    done.record(chapter, "BPR", "bpr", suffix="-last-one")
    chapter.finish()
    import json

    rows = {row["name"]: row for row in json.loads((tmp_path / "05_trial.json").read_text())["results"]}
    assert rows["ease"]["deterministic"]
    assert rows["ease"]["value"] == pytest.approx(done.report("EASE").metrics["ndcg@10"])
    assert rows["bpr-last-one"]["seed"] == [4, 5]
    assert rows["bpr-last-one"]["family"] == "factors"


def test_what_makes_no_sense_is_refused(split):
    trial = Experiment(split, budget=1, progress=False).add("EASE", EASE, family="linear")
    with pytest.raises(ValueError, match="there is a contender 'EASE' already"):
        trial.add("EASE", EASE, family="linear")
    with pytest.raises(ValueError, match="seeds must be 1 or more"):
        trial.add("BPR", BPR, family="factors", seeds=0)
    with pytest.raises(KeyError, match="no contender 'EASY'; there are EASE"):
        trial.report("EASY")
    with pytest.raises(RuntimeError, match="'EASE' has not been measured yet"):
        trial.report("EASE")
