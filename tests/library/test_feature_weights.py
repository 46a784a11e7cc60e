"""Weights of kinds of features: what tells of taste gets one, what does not gets none."""

import pandas as pd
import pytest
import torch

from recsys_lib.cold_items import Among
from recsys_lib.data import Interactions
from recsys_lib.evaluation import evaluate
from recsys_lib.feature_weights import find_weights
from recsys_lib.kernels import Features
from recsys_lib.models import ItemFeatureRidge

N_USERS, N_ITEMS = 60, 48


@pytest.fixture(scope="module")
def kinds() -> dict[str, Features]:
    generator = torch.Generator().manual_seed(0)
    return {
        "noise": Features(torch.randn(N_ITEMS, 30, generator=generator)),
        "taste": Features(torch.randn(N_ITEMS, 3, generator=generator), weight=0.0),
        "unused": Features(torch.randn(N_ITEMS, 30, generator=generator), weight=0.0),
    }


@pytest.fixture(scope="module")
def events(kinds) -> Interactions:
    taste = torch.randn(N_USERS, 3, generator=torch.Generator().manual_seed(1))
    users, items = (taste @ kinds["taste"].rows.mT > 1.0).nonzero(as_tuple=True)
    frame = pd.DataFrame({"user_id": users, "item_id": items, "rating": 5.0, "timestamp": 0})
    return Interactions.from_frame(frame, user_ids=range(N_USERS), item_ids=range(N_ITEMS))


def test_the_kind_that_tells_of_taste_is_found(kinds, events):
    found = find_weights(kinds, events, l2=3.0, group=12, rounds=3)
    assert found.weights["taste"] > found.weights.get("noise", 0.0)
    assert found.value > found.trials["value"][0] + 0.1
    kept = found.trials[found.trials["kept"]]
    assert kept["value"].is_monotonic_increasing
    assert kept["value"].iloc[-1] == found.value
    again = find_weights(kinds, events, l2=3.0, group=12, rounds=3)
    assert again.weights == found.weights
    assert again.l2 == found.l2


def test_its_value_is_that_of_the_model_that_leaves_one_out(kinds, events):
    """In one group, of all items."""
    found = find_weights(kinds, events, l2=3.0, group=N_ITEMS, changes=(1.0,))
    model = ItemFeatureRidge(found.features, l2=found.l2, leave_one_out=True).fit(events, progress=False)
    known = (events.item_counts() > 0).nonzero()[:, 0]
    report = evaluate(Among(model, known), events, metrics=["ndcg"], progress=False)
    assert found.value == pytest.approx(report.metrics["ndcg@10"], abs=1e-4)


def test_only_the_items_named_are_ranked(kinds, events):
    few = torch.arange(10)
    assert find_weights(kinds, events, items=few, changes=(1.0,), group=10).value > 0
    with pytest.raises(ValueError, match="two items"):
        find_weights(kinds, events, items=few[:1])
    with pytest.raises(ValueError, match="weight above 0"):
        find_weights({"taste": kinds["taste"]}, events)
    with pytest.raises(ValueError, match="group"):
        find_weights(kinds, events, group=1)
