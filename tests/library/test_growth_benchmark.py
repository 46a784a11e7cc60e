"""How models grow: the fitted power law, when a size is not tried, and the benchmark at tiny sizes."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from recsys_lib.chapter.runs import RecordedRun, code_hash

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "book" / "recorded" / "growth.json"


@pytest.fixture(scope="module")
def growth():
    spec = importlib.util.spec_from_file_location("benchmark_growth", ROOT / "benchmarks" / "growth.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_growth"] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    return module


def test_a_power_law_is_found_with_its_error(growth):
    x = np.array([10.0, 30.0, 100.0, 300.0])
    exact = growth.power_law(x, 3 * x**1.5)
    assert exact["value"] == pytest.approx(1.5)
    assert exact["error"] == pytest.approx(0, abs=1e-9)
    rng = np.random.default_rng(0)
    found = [growth.power_law(x, 3 * x**1.5 * np.exp(0.2 * rng.standard_normal(4))) for _ in range(400)]
    spread = np.std([law["value"] for law in found])
    assert np.sqrt(np.mean([law["error"] ** 2 for law in found])) == pytest.approx(spread, rel=0.15)
    assert growth.power_law([1, 2], [1, 2]) is None
    assert growth.power_law([1, 2, 3], [0.0, 1, 2]) is None


def test_a_size_that_would_take_too_much_is_not_tried(growth):
    done, wide = growth.Size(10, 10, 100), growth.Size(10, 40, 100)
    assert growth._too_much(done, wide, (1.0, 1.0), 15.0, 8.0) == "would take more than its share of time"
    assert growth._too_much(done, wide, (1.0, 600.0), 20.0, 8.0) == "would take more than its share of memory"
    assert growth._too_much(done, wide, (1.0, 1.0), 20.0, 8.0) == ""


def test_the_sizes_rise_and_can_be_made(growth):
    for against, sizes in growth.SIZES.items():
        values = [getattr(size, against) for size in sizes]
        assert values == sorted(values)
        assert all(size.events <= size.users * size.items / 2 for size in sizes)
    assert all(code_hash(name) for name in growth.CODE)


@pytest.mark.slow
def test_the_benchmark_at_tiny_sizes(growth):
    found = growth.run(growth.SMALL, seconds=20.0, memory=4.0)["values"]
    assert {row["model"] for row in found["rows"]} == set(growth.MODELS)
    assert all(row["cpu_s"] >= 0 for row in found["rows"])
    assert all(row["stopped"] == "there was none" for row in found["largest"])
    assert {row["against"] for row in found["exponents"]} == set(growth.SMALL)


def test_the_recorded_run_has_what_the_page_shows():
    if not RECORDED.is_file():
        pytest.skip("growth has not been recorded")
    values = RecordedRun.read(RECORDED).values
    assert {row["model"] for row in values["largest"]} >= {"Popularity", "EASE", "BPR", "ALS"}
    assert all(row["error"] >= 0 for law in values["exponents"] if (row := law["time"]))
