import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from recsys_lib.data import Interactions
from recsys_lib.models import RatingALS

SMALL = {"dim": 3, "l2": 0.2, "nu": 0.7, "bias_l2": 0.9}


def ratings(seed: int = 0, n_users: int = 14, n_items: int = 9) -> Interactions:
    """Stars for about half of all pairs, one of them twice; the last user and the last item have none."""
    rng = np.random.default_rng(seed)
    rated = rng.random((n_users, n_items)) < 0.5
    rated[-1], rated[:, -1], rated[:-1, 0] = False, False, True
    users, items = rated.nonzero()
    users, items = np.append(users, users[0]), np.append(items, items[0])
    frame = pd.DataFrame({"user_id": users, "item_id": items, "timestamp": rng.permutation(len(users))})
    frame["rating"] = rng.integers(1, 6, len(users)).astype("float32")
    return Interactions.from_frame(frame, user_ids=range(n_users), item_ids=range(n_items))


def by_hand(inter: Interactions, items: np.ndarray, epochs: int, model: RatingALS) -> np.ndarray:
    """The predictions of alternating least squares in float64, one dense system at a time."""
    u, i, r = (x.numpy() for x in (inter.users, inter.items, inter.ratings))
    r = r.astype(np.float64)
    mean = r.mean()

    def side(rows, others, n, theirs):
        found = np.zeros((n, 1 + model.dim))
        for row in range(n):
            mine = rows == row
            if mine.any():
                Y = np.column_stack([np.ones(mine.sum()), theirs[others[mine], 1:]])
                left = r[mine] - mean - theirs[others[mine], 0]
                shrink = np.full(1 + model.dim, model.l2 * mine.sum() ** model.nu)
                shrink[0] = model.bias_l2
                found[row] = np.linalg.solve(Y.T @ Y + np.diag(shrink), Y.T @ left)
        return found

    for _ in range(epochs):
        users = side(u, i, inter.n_users, items)
        items = side(i, u, inter.n_items, users)
    return mean + users[:, :1] + items[:, 0] + users[:, 1:] @ items[:, 1:].T


def start(inter: Interactions, model: RatingALS) -> np.ndarray:
    """The items' biases and vectors before the first epoch."""
    generator = torch.Generator().manual_seed(model.seed)
    vectors = torch.randn(inter.n_items, model.dim, generator=generator) * model.init_scale
    return np.column_stack([np.zeros(inter.n_items), vectors.double().numpy()])


def objective(inter: Interactions, model: RatingALS) -> float:
    """The objective as the docstring writes it."""
    error = inter.ratings - model.score(torch.arange(inter.n_users))[inter.users, inter.items]
    n_u, n_i = inter.user_counts().float() ** model.nu, inter.item_counts().float() ** model.nu
    shrunk = (n_u * model.user_factors.square().sum(1)).sum()
    shrunk += (n_i * model.item_factors.square().sum(1)).sum()
    biases = model.user_bias.square().sum() + model.item_bias.square().sum()
    return float(error.square().sum() + model.l2 * shrunk + model.bias_l2 * biases)


@pytest.mark.parametrize("epochs", [1, 5])
def test_scores_are_those_of_dense_systems_by_hand(epochs):
    inter = ratings()
    model = RatingALS(epochs=epochs, **SMALL).fit(inter, device="cpu", progress=False)
    expected = by_hand(inter, start(inter, model), epochs, model)
    np.testing.assert_allclose(model.score(torch.arange(inter.n_users)), expected, atol=1e-4)


def test_every_epoch_lowers_the_objective():
    inter = ratings(1)
    values = [
        objective(inter, RatingALS(epochs=n, **SMALL).fit(inter, device="cpu", progress=False))
        for n in range(1, 8)
    ]
    assert all(later < earlier for earlier, later in itertools.pairwise(values))


def test_stars_are_within_those_seen():
    inter = ratings()
    model = RatingALS(**SMALL | {"l2": 1e-3, "bias_l2": 1e-3}).fit(inter, device="cpu", progress=False)
    users, items = torch.arange(14).repeat_interleave(9), torch.arange(9).repeat(14)
    stars, scores = model.predict(users, items), model.score(torch.arange(14)).flatten()
    torch.testing.assert_close(stars, scores.clamp(1.0, 5.0))
    assert float(scores.max()) > 5.0


def test_without_ratings_there_is_the_mean_and_the_other_sides_bias():
    model = RatingALS(**SMALL).fit(ratings(), device="cpu", progress=False)
    scores = model.score(torch.tensor([13]))[0]
    torch.testing.assert_close(scores, model.mean + model.item_bias)
    torch.testing.assert_close(scores[-1], model.mean)


def test_events_without_a_rating_are_refused():
    frame = pd.DataFrame({"user_id": [0, 1], "item_id": [0, 1], "rating": [5.0, None]})
    with pytest.raises(ValueError, match="1 of 2 events have none"):
        RatingALS().fit(Interactions.from_frame(frame), progress=False)


def test_wrong_options_are_named():
    for wrong in ({"bias_l2": 0.0}, {"l2": 0.0}, {"nu": 1.5}, {"dim": 0}, {"epochs": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RatingALS(**wrong)
