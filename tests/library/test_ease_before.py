"""EASE without a user's later events: the low-rank update is the refit."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_lib.data import Interactions
from recsys_lib.models import EASE
from recsys_lib.models.ease_before import EASEBefore


def some_events(seed: int, n_users: int = 12, n_items: int = 9, n: int = 70) -> Interactions:
    """With repeated items and tied times."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "user_id": rng.integers(n_users, size=n),
            "item_id": rng.integers(n_items, size=n),
            "timestamp": rng.integers(20, size=n),
        }
    )
    return Interactions.from_frame(frame, user_ids=range(n_users), item_ids=range(n_items))


def first_of(inter: Interactions, user: int, n: int) -> Interactions:
    """The events of all others, and the first n of the user's."""
    mine = (inter.users == user).nonzero().squeeze(1)
    kept = torch.ones(len(inter), dtype=torch.bool)
    kept[mine[n:]] = False
    return inter[kept]


def refitted(inter: Interactions, user: int, l2: float) -> np.ndarray:
    """EASE's formula written out, in float64, at the user's row."""
    x = inter.matrix().to_dense().numpy().astype(np.float64)
    inverse = np.linalg.inv(x.T @ x + l2 * np.eye(x.shape[1]))
    b = -inverse / np.diag(inverse)
    np.fill_diagonal(b, 0.0)
    return x[user] @ b


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 5.0, 200.0]))
def test_the_update_is_the_refit(seed, l2):
    inter = some_events(seed)
    quick = EASEBefore(inter, l2)
    for user in range(inter.n_users):
        n = int(inter.user_counts()[user])
        found = quick.scores(user, torch.arange(n + 1))
        for before in range(n + 1):
            expected = refitted(first_of(inter, user, before), user, l2)
            assert np.abs(found[before].numpy() - expected).max() < 1e-8


@pytest.mark.parametrize("options", [{}, {"recency": 0.5}, {"half_life_days": 1e-4}])
def test_histories_weigh_as_they_do_in_the_model(options):
    inter = some_events(3)
    quick = EASEBefore(inter, 2.0, **options)
    for user in (0, 5, 11):
        n = int(inter.user_counts()[user])
        found = quick.scores(user, torch.arange(1, n + 1))
        for before in range(1, n + 1):
            model = EASE(l2=2.0, **options).fit(first_of(inter, user, before), progress=False)
            expected = model.score(torch.tensor([user]))[0]
            torch.testing.assert_close(found[before - 1].float(), expected, rtol=1e-4, atol=1e-5)
    full = EASE(l2=2.0).fit(inter, progress=False)
    torch.testing.assert_close(quick.item_weights().float(), full.item_weights, rtol=1e-4, atol=1e-6)


def test_the_target_leaves_no_trace():
    """With the target in the fit its score is higher; that is the leak."""
    inter = some_events(1, n_users=30, n=200)
    leaks, quick = [], EASEBefore(inter, 5.0)
    weights = quick.item_weights()
    for user in range(30):
        items = inter.items[inter.users == user]
        for n in range(1, len(items)):
            if items[n] in items[:n]:
                continue
            past = items[:n].unique()
            leaks.append(
                float(weights[past, items[n]].sum() - quick.scores(user, torch.tensor([n]))[0, items[n]])
            )
    assert np.mean(leaks) > 0.01
    assert np.mean(np.array(leaks) > 0) > 0.8


def test_moments_that_were_not_are_refused():
    inter = some_events(0)
    n = int(inter.user_counts()[2])
    with pytest.raises(IndexError, match=f"user 2 has {n} events, so there are no first {n + 1}"):
        EASEBefore(inter, 1.0).scores(2, torch.tensor([n + 1]))
    assert EASEBefore(inter, 1.0).scores(2, torch.tensor([], dtype=torch.int64)).shape == (0, 9)
