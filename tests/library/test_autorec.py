from dataclasses import replace

import pandas as pd
import pytest
import torch

from recsys_lib.data import Interactions
from recsys_lib.models import AutoRec


def events(seed: int = 0, n_users: int = 40, n_items: int = 15) -> Interactions:
    """Two kinds of users and of items: 5 where they agree, 2 where not; six tenths of the pairs are rated."""
    generator = torch.Generator().manual_seed(seed)
    users, items = (torch.rand(n_users, n_items, generator=generator) < 0.6).nonzero(as_tuple=True)
    frame = pd.DataFrame({"user_id": users.numpy(), "item_id": items.numpy()})
    frame["rating"] = torch.where(users % 2 == items % 2, 5.0, 2.0).numpy()
    frame["timestamp"] = range(len(frame))
    return Interactions.from_frame(frame, user_ids=range(n_users), item_ids=range(n_items))


def plain(model: AutoRec, inter: Interactions) -> torch.Tensor:
    """The ratings by dense layers, (n_users, n_items)."""
    x = torch.zeros(inter.n_users, inter.n_items)
    x[inter.users, inter.items] = inter.ratings - inter.ratings.mean()
    x = x.mT if model.side == "item" else x
    code = torch.sigmoid(x @ model.rows + model.code_bias)
    found = inter.ratings.mean() + code @ model.output.weight.mT + model.output.bias
    return found.mT if model.side == "item" else found


@pytest.fixture(params=["item", "user"])
def side(request):
    return request.param


def test_ratings_are_those_of_dense_layers(side):
    inter = events()
    model = AutoRec(dim=3, side=side, epochs=5).fit(inter, device="cpu", progress=False)
    torch.testing.assert_close(model.score(torch.arange(40)), plain(model, inter).detach())


def test_a_step_minimizes_the_error_of_what_was_given(side):
    inter = events()
    model = AutoRec(dim=3, side=side, epochs=1, l2=0.1).fit(inter, device="cpu", progress=False)
    model.train()
    examples = model.prepare(inter, torch.Generator())
    ((loss, n),) = model.losses(examples, torch.Generator())
    error = plain(model, inter)[inter.users, inter.items] - inter.ratings
    expected = error.square().mean() + 0.1 * (model.rows.square().sum() + model.output.weight.square().sum())
    assert n == len(inter)
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(
        torch.autograd.grad(loss, list(model.parameters()), retain_graph=True),
        torch.autograd.grad(expected, list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_it_tells_the_ratings_that_were_not_given(side):
    inter = events()
    model = AutoRec(dim=4, side=side, epochs=400, learning_rate=0.02, l2=1e-3)
    model.fit(inter, device="cpu", progress=False)
    users, items = torch.meshgrid(torch.arange(40), torch.arange(15), indexing="ij")
    given = torch.zeros(40, 15, dtype=torch.bool)
    given[inter.users, inter.items] = True
    users, items = users[~given], items[~given]
    wanted = torch.where(users % 2 == items % 2, 5.0, 2.0)
    error = (model.predict(users, items) - wanted).square().mean().sqrt()
    assert error < 0.6  # the mean alone is 1.5 away


def test_predictions_stay_within_the_range_and_agree_with_the_scores(side):
    inter = events()
    model = AutoRec(dim=2, side=side, epochs=300, learning_rate=0.05, l2=0.0)
    model.fit(inter, device="cpu", progress=False)
    users, items = torch.randint(40, (200,)), torch.randint(15, (200,))
    found, scores = model.predict(users, items), model.score(users)[torch.arange(200), items]
    torch.testing.assert_close(found, scores.clamp(2.0, 5.0))
    assert (scores > 5).any()


def test_training_stops_where_the_error_on_validation_is_least(side):
    inter = events()
    held_out = torch.arange(len(inter)) % 5 == 0
    noise = torch.randn(len(inter), generator=torch.Generator().manual_seed(1))
    noisy = replace(inter, ratings=inter.ratings + noise)
    model = AutoRec(dim=8, side=side, epochs=400, learning_rate=0.02, l2=0.0, check_every=1, patience=20)
    model.fit(noisy[~held_out], noisy[held_out], device="cpu", progress=False)
    looks = [entry["minus rmse"] for entry in model.log]
    assert model.stopped_by == "patience"
    assert max(looks) == looks[model.best_epoch - 1] > looks[-1]
    rest = noisy[held_out]
    error = (model.predict(rest.users, rest.items) - rest.ratings).square().mean().sqrt()
    assert float(error) == pytest.approx(-max(looks), rel=1e-5)


def test_what_it_cannot_learn_from_is_named():
    inter = events()
    with pytest.raises(ValueError, match="have none"):
        AutoRec().fit(replace(inter, ratings=inter.ratings * torch.nan), progress=False)
    with pytest.raises(ValueError, match="side"):
        AutoRec(side="both")
