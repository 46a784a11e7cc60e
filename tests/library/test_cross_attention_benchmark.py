"""The benchmark of cross-attention and its ablations at a small size, and its recorded run."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from recsys_lib.attention import MultiHeadAttention
from recsys_lib.chapter.runs import RecordedRun, code_hash
from recsys_lib.evaluation import Report
from recsys_lib.models.core.event_words import Stretches, Tokens
from recsys_lib.text import TextWords

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "book" / "recorded" / "cross_attention.json"
LONG = RECORDED.with_name("cross_attention_long.json")
NEW = RECORDED.with_name("cross_attention_new.json")


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location(
        "benchmark_cross", ROOT / "benchmarks" / "cross_attention.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where the types of a model's options are looked up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_averaged_heads_are_the_mean_of_the_heads(benchmark):
    torch.manual_seed(0)
    attention, averaged = MultiHeadAttention(8, 2), benchmark.MeanOfHeads(8, 2)
    heads = torch.randn(5, 8)
    expected = averaged.one(heads.unflatten(-1, (2, 4)).mean(dim=-2))
    torch.testing.assert_close(averaged(heads), expected)
    # Pooled or not, the model reads the same map.
    attention.output = averaged
    x, context, shares = torch.randn(4, 8), torch.randn(3, 8), torch.rand(4)
    pooled = attention.pooled(x, context, shares)
    torch.testing.assert_close(pooled, (shares[:, None] * attention(x, context)).sum(dim=0))


def some_words():
    """The words of five films."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(9, (5, 4), generator=generator)
    rows[2, 1:], rows[3, 3:] = -1, -1
    return TextWords(rows, torch.randn(9, 6, generator=generator))


def test_the_controls_are_the_attention_score_without_its_attention(benchmark, small):
    makes = benchmark.rows(some_words(), small, seed=0)
    score, equal, control = (
        makes[name](epochs=1).fit(small, device="cpu", progress=False)
        for name in (benchmark.SCORE, benchmark.EQUAL, benchmark.CONTROL)
    )
    equal.load_state_dict(score.state_dict())
    shared = control.state_dict().keys() & score.state_dict().keys()
    renamed = {"bias.weight": "top.weight", "bias.bias": "top.bias"}
    state = {name: score.state_dict()[name] for name in shared}
    state |= {to: score.state_dict()[name] for name, to in renamed.items()}
    control.load_state_dict(state, strict=False)
    assert not control.blocks
    assert not list(control.pool_events.parameters())

    crow = score.history_crow
    past = Stretches(score.history_items, score.history_actions, crow[1:], crow.diff())
    events, films = score.events_side(past), score.items_side(torch.arange(5))
    torch.testing.assert_close(control.events_side(past).x, events.x)
    torch.testing.assert_close(control.items_side(torch.arange(5)).x, films.x)
    events = Tokens(events.x[:, None], events.present[:, None])
    films = Tokens(films.x[None], films.present[None])
    expected = equal.meet(events, films)  # (4, 5)
    # The other control has the same two vectors, and a dot product that is smaller by sqrt(d).
    larger = events._replace(x=events.x * score.dim**0.5)
    torch.testing.assert_close(control.meet(larger, films), expected)
    assert not torch.allclose(score.meet(events, films), expected, atol=1e-4)
    torch.nn.init.zeros_(score.out.weight)  # f is the same for all pairs
    torch.testing.assert_close(score.meet(events, films), expected)


def test_an_interval_over_seeds_and_people_is_no_narrower_than_either(benchmark):
    def report(values):
        return Report(
            metrics={"ndcg@10": float(values.mean())},
            per_user={"ndcg@10": values},
            users=torch.arange(50),
            n_relevant=torch.ones(50, dtype=torch.int64),
            items=torch.zeros(50, 10, dtype=torch.int64),
            seconds=0.0,
            protocol="the same",
        )

    generator = torch.Generator().manual_seed(0)
    level = torch.rand(50, generator=generator)
    b = [report(level) for _ in range(3)]
    steps = (0.0, 0.1, 0.35)
    a = [report(level + step + 0.1 * torch.randn(50, generator=generator)) for step in steps]
    gap = benchmark.over_both(a, b)
    assert gap["mean"] == pytest.approx(sum(gap["by_seed"]) / 3, abs=2e-5)
    for part in ("over_people", "over_seeds"):
        assert gap["low"] < gap[part]["low"] < gap["mean"] < gap[part]["high"] < gap["high"]
    # Seeds that differ this much do not tell, though people would.
    assert gap["low"] < 0 < gap["over_people"]["low"]


@pytest.mark.slow
def test_the_benchmark_compares_what_the_recorded_run_compares(benchmark):
    found = benchmark.run(epochs=1, only=40, every=4, bar_epochs=1)
    recorded = RecordedRun.read(RECORDED)
    assert found["values"].keys() == recorded.values.keys()
    assert found["settings"].keys() == recorded.settings.keys()
    assert found["inputs"] == recorded.inputs
    for part in (
        "ndcg@10",
        "minus_full",
        "cpu_seconds",
        "strangers",
        "ndcg@10_by_seed",
        "over_seeds",
        "bars",
    ):
        assert found["values"][part].keys() == recorded.values[part].keys()
    assert all(0 <= value < 1 for value in found["values"]["ndcg@10"].values())
    assert "people never trained on" in benchmark.table(found)
    assert all(code_hash(name) for name in benchmark.CODE)


@pytest.mark.slow
def test_the_longer_benchmark_compares_what_its_recorded_run_compares(benchmark):
    found = benchmark.long_run(only=40, every=4, epochs=1)
    recorded = RecordedRun.read(LONG)
    assert found["values"].keys() == recorded.values.keys()
    assert found["settings"].keys() == recorded.settings.keys()
    assert found["inputs"] == recorded.inputs
    assert found["values"]["ndcg@10"].keys() == recorded.values["ndcg@10"].keys()
    assert all(code_hash(name) for name in benchmark.LONG_CODE)


@pytest.mark.slow
def test_the_benchmark_of_new_films_has_each_control_for_each_draw(benchmark):
    found = benchmark.new_run(n_draws=2, only=60, every=1, epochs=1)
    values, recorded = found["values"], RecordedRun.read(NEW)
    draws = values["draws"]
    assert values.keys() == recorded.values.keys()
    assert found["settings"].keys() == recorded.settings.keys()
    assert found["inputs"] == recorded.inputs
    assert draws.keys() == recorded.values["draws"].keys()
    assert values["ndcg@10"].keys() == draws.keys()
    assert {"ridge, same words", "ridge, random words", "full model, random words"} < draws.keys()
    assert all(len(row) == 2 and all(0 <= value <= 1 for value in row) for row in draws.values())
    assert draws[benchmark.FULL] != draws[f"{benchmark.FULL}, random words"]
    assert draws[benchmark.SCORE] != draws[benchmark.EQUAL]
    assert draws["hidden likes"] > draws["random order"]
    assert values["l2"].keys() == {name for name in draws if name.startswith("ridge")}
    assert all(code_hash(name) for name in benchmark.NEW_CODE)


def test_the_words_that_ridge_reads_are_the_mean_of_those_that_the_models_read(benchmark):
    words = some_words()
    centered = words.vectors - words.vectors.mean(dim=0)
    expected = [centered[row[row >= 0]].mean(dim=0) for row in words.rows]
    torch.testing.assert_close(benchmark.mean_words(words), torch.stack(expected))


def test_the_recorded_differences_are_those_of_the_scores(benchmark):
    values = RecordedRun.read(RECORDED).values
    for name, gap in values["minus_full"].items():
        expected = values["ndcg@10"][name] - values["ndcg@10"][benchmark.FULL]
        assert gap["mean"] == pytest.approx(expected, abs=2e-5)
        assert gap["low"] <= gap["mean"] <= gap["high"]


def test_the_recorded_means_on_new_films_are_those_of_the_draws():
    recorded = RecordedRun.read(NEW)
    for name, draws in recorded.values["draws"].items():
        found = recorded.values["ndcg@10"][name]
        assert len(draws) == recorded.settings["draws"]
        assert found["mean"] == pytest.approx(sum(draws) / len(draws), abs=2e-5)
        assert found["low"] <= found["mean"] <= found["high"]


def test_the_recorded_seeds_are_those_of_the_rows(benchmark):
    values = RecordedRun.read(RECORDED).values
    by_seed = values["ndcg@10_by_seed"]
    assert tuple(by_seed) == benchmark.SEEDED
    for name, found in by_seed.items():
        assert found[0] == values["ndcg@10"][name]
        assert len(set(found)) == 3  # another seed is another model
    for pair, gap in values["over_seeds"].items():
        a, b = pair.split(" - ")
        expected = [x - y for x, y in zip(by_seed[a], by_seed[b], strict=True)]
        assert gap["by_seed"] == pytest.approx(expected, abs=3e-5)
        assert gap["mean"] == pytest.approx(sum(expected) / 3, abs=3e-5)
        assert gap["low"] <= min(gap["over_people"]["low"], gap["over_seeds"]["low"])
