"""The run that holds one factorization's objectives against metrics, at a small size, and its record."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from recsys_lib.calibration import expected_calibration_error
from recsys_lib.chapter.runs import RecordedRun, code_hash
from recsys_lib.data import leave_last_out

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "book" / "recorded" / "objectives.json"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location(
        "benchmark_objectives", ROOT / "benchmarks" / "objectives.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where the types of a model's options are looked up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_logistic_regression_on_a_score_is_scikit_learns(benchmark):
    rng = np.random.default_rng(0)
    scores = rng.normal(3, 2, 500)
    labels = (rng.random(500) < 1 / (1 + np.exp(2 - 0.7 * scores))).astype(float)
    found = benchmark.logistic(torch.tensor(scores), torch.tensor(labels))(torch.tensor(scores))
    other = LogisticRegression(C=1e6).fit(scores[:, None], labels).predict_proba(scores[:, None])[:, 1]
    np.testing.assert_allclose(found.numpy(), other, atol=1e-4)


def test_the_calibration_error_from_sums_over_users_is_that_of_the_pairs(benchmark):
    generator = torch.Generator().manual_seed(0)
    chance = torch.rand(400, generator=generator).double()
    labels = (torch.rand(400, generator=generator) < chance**2).double()
    users = torch.randint(20, (400,), generator=generator)
    gap = torch.zeros(20, benchmark.N_BINS, dtype=torch.float64)
    place = (chance * benchmark.N_BINS).long()
    gap.index_put_((users, place), labels - chance, accumulate=True)
    count = torch.bincount(users, minlength=20).double()
    found = benchmark.value("ECE", (gap, count), torch.ones(1, 20, dtype=torch.float64))
    wanted = expected_calibration_error(chance, labels, benchmark.N_BINS)
    assert float(found) == pytest.approx(float(wanted), abs=1e-9)


def test_the_jackknife_of_the_coverage_leaves_each_user_out(benchmark):
    items = torch.randint(12, (9, 3), generator=torch.Generator().manual_seed(1))
    found, error = benchmark.coverage(items, 20)
    without = [len(items[torch.arange(9) != u].unique()) / 20 for u in range(9)]
    assert found == pytest.approx(len(items.unique()) / 20)
    assert error == pytest.approx((np.var(without) * 8) ** 0.5)


def test_parts_ask_of_what_comes_later(benchmark, movielens):
    every = movielens.interactions
    liked = every.positives(4.0)
    split = leave_last_out(liked, n=0.2)
    validation, test = (benchmark.part_of(split, name, every, liked, 0) for name in ("validation", "test"))
    pairs = [
        set(zip(p.stars.users.tolist(), p.stars.items.tolist(), strict=True)) for p in (validation, test)
    ]
    assert not pairs[0] & pairs[1]
    of_test = set(zip(split.test.users.tolist(), split.test.items.tolist(), strict=True))
    assert of_test <= pairs[1]
    assert test.clicks.values.mean() == pytest.approx(1 / (1 + benchmark.PER_CHOSEN))
    no = test.clicks.values == 0
    drawn = set(zip(test.clicks.users[no].tolist(), test.clicks.items[no].tolist(), strict=True))
    assert not drawn & set(zip(liked.users.tolist(), liked.items.tolist(), strict=True))


@pytest.mark.slow
def test_the_benchmark_measures_what_the_recorded_run_measured(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "RATES", (0.01,))
    monkeypatch.setattr(benchmark, "PENALTIES", (0.01,))
    monkeypatch.setattr(benchmark, "BEYOND", 1)
    monkeypatch.setattr(benchmark, "LONGER", 1)
    found, recorded = benchmark.run(seeds=1, epochs=4), RecordedRun.read(RECORDED)
    assert found["inputs"] == recorded.inputs
    assert found["settings"].keys() == recorded.settings.keys()
    assert found["values"].keys() == recorded.values.keys()
    for name, column in recorded.values["cells"].items():
        assert found["values"]["cells"][name].keys() == column.keys()
    assert "processor time" in benchmark.table(found)
    assert all(code_hash(name) for name in benchmark.CODE)


def test_an_end_of_the_grid_is_followed_until_both_neighbors_are_worse(benchmark):
    search = benchmark.Search("BPR", None, None, None, {}, {})
    search.tried = {(0.005, 0.01): 24, (0.03, 0.01): 24, (0.03, 0.002): 24, (0.03, 0.06): 24}
    chosen = {"learning_rate": 0.03, "l2": 0.01, "epochs": 24}
    assert search.open_ends(chosen) == {"learning_rate": (0.09, 0.01), "epochs": (0.03, 0.01)}
    search.best = dict.fromkeys(benchmark.PURPOSES, chosen)
    asked = []

    def trial(rate, penalty, epochs, patience, least):
        asked.append((rate, penalty))
        search.tried[rate, penalty] = epochs

    search.trial = trial
    assert search.beyond(24) == 2
    assert asked == [(0.09, 0.01), (0.03, 0.01)]
    assert search.open_ends(chosen) == {}  # more epochs were offered, and 24 stayed the best


def test_every_recorded_choice_was_followed_beyond_the_grid(benchmark):
    for uses in RecordedRun.read(RECORDED).values["chosen"].values():
        for purpose in benchmark.PURPOSES:
            first = uses[purpose]["in_the_grid"]
            assert uses[purpose]["validation"] >= first["validation"]
            assert uses[purpose]["at_edge"] == []
        assert uses["trials_beyond"] < benchmark.BEYOND


def test_every_recorded_cell_has_an_interval_and_each_metric_a_best(benchmark):
    cells = RecordedRun.read(RECORDED).values["cells"]
    assert cells.keys() == benchmark.METRICS.keys()
    for name, column in cells.items():
        assert len(column) == 10 - (name in ("log-loss", "ECE"))
        assert all(cell["low"] <= cell["value"] <= cell["high"] for cell in column.values())
        best = [cell for cell in column.values() if cell.get("best")]
        assert len(best) == 1
        sign = 1 if benchmark.METRICS[name][0] else -1
        assert best[0]["value"] * sign == max(cell["value"] * sign for cell in column.values())


FLOORS = ROOT / "book" / "recorded" / "objective_floors.json"


def test_the_floors_are_what_was_recorded(benchmark):
    spec = importlib.util.spec_from_file_location(
        "benchmark_floors", ROOT / "benchmarks" / "objective_floors.py"
    )
    floors = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(floors)
    found, recorded = floors.run(), RecordedRun.read(FLOORS)
    assert found["inputs"] == recorded.inputs
    cells, kept = found["values"]["cells"], recorded.values["cells"]
    assert cells.keys() == kept.keys() == benchmark.METRICS.keys()
    for name, column in kept.items():
        for floor, cell in column.items():
            assert cells[name][floor]["value"] == pytest.approx(cell["value"], abs=1e-3)
    share = 1 / (1 + benchmark.PER_CHOSEN)  # of liked films: a constant's log-loss is the entropy
    entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
    assert kept["log-loss"]["a constant"]["value"] == pytest.approx(entropy, abs=1e-4)
    assert kept["ECE"]["a constant"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert all(code_hash(name) for name in floors.CODE)
