"""EASE with side information, against the closed form written out and against EASE on more users."""

import math

import pandas as pd
import pytest
import torch

from recsys_lib.data import Interactions
from recsys_lib.models import EASE, CollectiveEASE

N_USERS, N_ITEMS = 30, 12


@pytest.fixture(scope="module")
def events() -> Interactions:
    generator = torch.Generator().manual_seed(0)
    rows = [
        (user, int(item), place)
        for user in range(N_USERS)
        for place, item in enumerate(torch.randperm(N_ITEMS - 2, generator=generator)[:4])
    ]  # nobody has the last two items
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    return Interactions.from_frame(frame, item_ids=range(N_ITEMS))


def closed_form(events, features, weight, l2):
    X, F = events.matrix().to_dense().double(), features.double()
    P = torch.linalg.inv(X.mT @ X + weight * F @ F.mT + l2 * torch.eye(len(F)))
    B = -P / P.diagonal()
    return B.fill_diagonal_(0).float()


@pytest.mark.parametrize("n_features", [1, 5, 40])  # fewer, and more, than items
@pytest.mark.parametrize("weight", [0.1, 3.0, 1000.0])
def test_weights_are_those_of_the_closed_form(events, n_features, weight, device):
    features = torch.randn(N_ITEMS, n_features, generator=torch.Generator().manual_seed(1))
    model = CollectiveEASE(l2=2.0, weight=weight, item_features=features).fit(events, device=device)
    expected = closed_form(events, features, weight, 2.0)
    torch.testing.assert_close(model.item_weights.cpu(), expected, rtol=1e-4, atol=1e-5)
    sparse = CollectiveEASE(l2=2.0, weight=weight, item_features=features.to_sparse()).fit(events)
    torch.testing.assert_close(sparse.item_weights, expected, rtol=1e-4, atol=1e-5)


def test_a_binary_feature_is_a_user(events):
    features = (torch.rand(N_ITEMS, 6, generator=torch.Generator().manual_seed(2)) < 0.4).float()
    new = [(N_USERS + f, i, 0) for i, f in features.nonzero().tolist()]
    frame = events.to_frame()[["user_id", "item_id", "timestamp"]]
    more = pd.concat([frame, pd.DataFrame(new, columns=frame.columns)])
    together = Interactions.from_frame(more, item_ids=range(N_ITEMS))
    model = CollectiveEASE(l2=3.0, weight=1.0, item_features=features).fit(events)
    torch.testing.assert_close(model.item_weights, EASE(l2=3.0).fit(together).item_weights)


def test_without_features_it_is_ease(events):
    users = torch.arange(N_USERS)
    expected = EASE(l2=3.0, recency=0.5).fit(events).score(users)
    features = torch.randn(N_ITEMS, 3)
    for options in ({}, {"item_features": features, "weight": 0.0}):
        model = CollectiveEASE(l2=3.0, recency=0.5, **options).fit(events)
        torch.testing.assert_close(model.score(users), expected, rtol=1e-4, atol=1e-6)


def test_a_new_item_is_placed_by_its_features(events):
    """Items 10 and 11 have no events; 10 has the feature of item 0, 11 that of item 1."""
    features = torch.zeros(N_ITEMS, 2)
    features[[0, 10], 0] = features[[1, 11], 1] = 1.0
    assert (EASE(l2=1.0).fit(events).item_weights[:, 10:] == 0).all()
    model = CollectiveEASE(l2=1.0, weight=5.0, item_features=features).fit(events)
    scores = model.score_histories([[0], [1]])[:, 10:]
    assert scores[0, 0] > scores[0, 1] + 0.1
    assert scores[1, 1] > scores[1, 0] + 0.1


def test_wrong_features_are_named(events):
    with pytest.raises(ValueError, match=r"item_features must be \(12, D\)"):
        CollectiveEASE(item_features=torch.ones(5, 2)).fit(events)
    broken = torch.ones(N_ITEMS, 2)
    broken[4, 1] = math.inf
    with pytest.raises(ValueError, match="those of item 4 are not"):
        CollectiveEASE(item_features=broken).fit(events)
    with pytest.raises(ValueError, match="weight must be 0 or more"):
        CollectiveEASE(weight=-1.0)
