"""The benchmark of pre-training at a small size, and its recorded runs."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from recsys_lib.chapter.runs import RecordedRun, code_hash
from recsys_lib.data import leave_last_out, load_movielens
from recsys_lib.pretraining import PRETRAININGS, TASKS, PerPerson

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "book" / "recorded" / "pretraining.json"
TRANSFER = RECORDED.with_name("pretraining_transfer.json")


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_pre", ROOT / "benchmarks" / "pretraining.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_a_gain_is_better_whatever_the_measure(benchmark):
    ones = torch.ones(50, dtype=torch.float64)
    low, high = (torch.full((50,), x, dtype=torch.float64) + torch.rand(50) / 100 for x in (0.2, 0.4))
    runs = benchmark.Runs()
    for task, metric in benchmark.METRIC.items():
        better, worse = (low, high) if metric in benchmark.LESS_IS_BETTER else (high, low)
        for row, values in (("a", better), ("b", worse)):
            for share in (0.1, 1.0):
                runs.keep(task, row, share, {metric: PerPerson(values, ones, metric == "rmse")})
        assert runs.gain(metric, (task, "a", 0.1), (task, "b", 0.1)).low > 0.1
        assert runs.mean_gain(metric, task, [("a", "b")], 0.1).low > 0.1
        assert runs.mean_gain(metric, task, [("a", "b"), ("b", "a")], 0.1).mean == pytest.approx(0, abs=1e-9)
        assert runs.mean_gain(metric, task, [("a", "b")], 0.1, 1.0).mean == pytest.approx(0, abs=1e-9)


def test_the_rate_is_chosen_once_and_kept(benchmark):
    data = load_movielens("100k").interactions
    split = leave_last_out(data[data.users < 30], n=0.2)
    tried = []

    def fit(rate):
        tried.append(rate)
        few = benchmark.few_labels(split, 1.0)
        options = {"dim": 4, "epochs": 1, "reads": "bag"}
        return benchmark.tuned("click", few, {}, options, rate)

    runs = benchmark.Runs()
    for share in (1.0, 1.0, 0.5):  # the share of a half takes the rate of the whole
        runs.add("click", "row", share, fit, split)
    assert len(tried) == len(benchmark.RATES) + 2
    assert set(tried[-2:]) == {runs.rates["click", "row", 1.0]}
    assert len(runs.found["click", "row", 1.0, "auc"]) == 2


def test_halves_share_people_and_no_film(benchmark):
    ratings = load_movielens("100k").interactions
    wanted = torch.arange(ratings.n_items) % 2 == 0
    one, two = benchmark.half(ratings, wanted), benchmark.half(ratings, ~wanted)
    assert one.test.n_users == two.test.n_users == ratings.n_users
    assert not set(one.test.item_ids) & set(two.test.item_ids)
    assert one.test.n_items + two.test.n_items == ratings.n_items


@pytest.mark.slow
def test_the_benchmark_measures_what_the_recorded_run_holds(benchmark):
    found = benchmark.run(n_seeds=1, only=40, shares=(0.1, 1.0), epochs=1)
    recorded = RecordedRun.read(RECORDED)
    assert found["values"].keys() == recorded.values.keys()
    assert found["settings"].keys() == recorded.settings.keys()
    assert found["inputs"] == recorded.inputs
    for task in TASKS:
        assert found["values"]["cells"][task].keys() == recorded.values["cells"][task].keys()
        assert found["values"]["means"][task].keys() == recorded.values["means"][task].keys()
        assert set(PRETRAININGS) <= recorded.values["cells"][task].keys()
    assert "none, bag" in benchmark.table(found)
    assert all(code_hash(name) for name in benchmark.CODE)


@pytest.mark.slow
def test_the_transfer_measures_what_its_recorded_run_holds(benchmark):
    vectors = torch.randn(load_movielens("100k").interactions.n_items, 6)
    found = benchmark.transfer(n_seeds=2, only=40, vectors=vectors, shares=(1.0,), epochs=1)
    recorded = RecordedRun.read(TRANSFER)
    assert found["values"].keys() == recorded.values.keys()
    assert found["settings"].keys() == recorded.settings.keys()
    for task in TASKS:
        assert found["values"]["cells"][task].keys() == recorded.values["cells"][task].keys()
    assert all(code_hash(name) for name in benchmark.TRANSFER_CODE)


def test_the_recorded_gains_are_those_of_the_values():
    cells = RecordedRun.read(RECORDED).values["cells"]
    for task, metric, sign in (("click", "log-loss", -1), ("ranking", "ndcg@10", 1), ("rating", "rmse", -1)):
        for name, how in PRETRAININGS.items():
            for share, cell in cells[task][name].items():
                none = cells[task][f"none, {how.reads}"][share]
                expected = sign * (cell[metric]["mean"] - none[metric]["mean"])
                assert cell[f"{metric} gain"]["mean"] == pytest.approx(expected, abs=3e-5)
