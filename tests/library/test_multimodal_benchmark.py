"""The benchmark of pictures beside words at a small size, and its recorded run."""

from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import multimodal as benchmark
from recsys_lib.chapter.runs import RecordedRun, code_hash

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "book" / "recorded" / "multimodal.json"


@pytest.fixture(scope="module")
def content() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Vectors of 200 items that show the truth itself, and which items are cold."""
    generator = torch.Generator().manual_seed(0)
    looks, meanings = torch.randn(200, 4, generator=generator), torch.randn(200, 4, generator=generator)
    vectors = {"looks": looks, "meanings": meanings, "image": looks, "pixels": looks, "text": meanings}
    return vectors, torch.arange(200) % 5 == 0


def test_a_world_is_cut_without_a_leak(content):
    vectors, cold = content
    asked = benchmark.world_of(vectors, cold, "both", 15, seed=0, n_people=30)
    assert asked.known.user_counts().tolist() == [15] * 30
    assert asked.stop.user_counts().tolist() == [3] * 30
    assert asked.train.user_counts().tolist() == [12] * 30
    assert asked.warm.user_counts().tolist() == [10] * 30
    assert not cold[asked.known.items].any()
    assert not cold[asked.warm.items].any()
    assert cold[asked.cold.items].all()
    pairs = [set(zip(x.users.tolist(), x.items.tolist(), strict=True)) for x in (asked.known, asked.warm)]
    assert not pairs[0] & pairs[1]
    # What is asked does not depend on how much is known, and fewer known choices are a part of more.
    fewer = benchmark.world_of(vectors, cold, "both", 5, seed=0, n_people=30)
    assert torch.equal(fewer.warm.items, asked.warm.items)
    known = zip(fewer.known.users.tolist(), fewer.known.items.tolist(), strict=True)
    assert set(known) <= pairs[0]
    with pytest.raises(ValueError, match="fewer than 70"):
        benchmark.world_of(vectors, cold, "both", 70, seed=0, n_people=30)


def test_the_truth_earns_all_of_the_best(content):
    asked = benchmark.world_of(*content, "looks", 15, seed=0, n_people=30)
    assert benchmark.shares(asked.world.truth, asked) == (1.0, 1.0)


def test_content_that_shows_the_truth_ranks_what_is_cold(content):
    vectors, _ = content
    asked = benchmark.world_of(*content, "looks", 15, seed=0, n_people=60)
    image, text = (
        benchmark.fitted(name, vectors, {"l2": 0.03}, asked).score(torch.arange(60))
        for name in ("image", "text")
    )
    assert benchmark.shares(Given(image), asked)[1] > benchmark.shares(Given(text), asked)[1] + 0.25


class Given:
    """Scores that are there."""

    def __init__(self, scores):
        self.scores, self.n_items = scores, scores.shape[1]

    def score(self, users):
        return self.scores[users]


def test_every_model_has_as_many_trials():
    assert {len(trials) for trials in benchmark.TRIALS.values()} == {4}


def test_the_record_is_whole_and_that_of_this_code():
    run = RecordedRun.read(RECORDED)
    recorded = vars(run)["values"]
    assert run.command == benchmark.COMMAND
    assert run.code == {name: code_hash(name, ROOT) for name in benchmark.CODE}
    table = pd.DataFrame(recorded["shares"])
    rows = set(table[["about", "known", "model", "side"]].itertuples(index=False, name=None))
    models = ("popularity", *benchmark.MODELS)
    assert rows == set(product(benchmark.KINDS, benchmark.DENSITIES, models, ("warm", "cold")))
    assert (table["low"] <= table["mean"]).all()
    assert (table["mean"] <= table["high"]).all()
    assert recorded["chosen"].keys() == benchmark.MODELS.keys()


@pytest.mark.slow
def test_what_needs_no_transformer_comes_out_as_recorded():
    """Numbers, pixels and popularity in one world each; what the transformer sees is not read."""
    vectors, cold = benchmark.catalog(epochs=1)
    recorded = vars(RecordedRun.read(RECORDED))["values"]
    table = pd.DataFrame(recorded["shares"]).set_index(["about", "known", "model", "side"])["worlds"]
    for about, name in (("looks", "pixels"), ("neither", "id"), ("both", "popularity")):
        asked = benchmark.world_of(vectors, cold, about, 5, seed=0)
        model = benchmark.fitted(name, vectors, recorded["chosen"].get(name, {}), asked)
        for side, found in zip(("warm", "cold"), benchmark.shares(model, asked), strict=True):
            assert found == pytest.approx(table[about, 5, name, side][0], rel=0.1), (about, name, side)
