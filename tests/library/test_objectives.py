"""The factorization whose loss is an option: its lists and its losses."""

import pandas as pd
import pytest
import torch

from recsys_lib.data import Interactions
from recsys_lib.devices import seed_generator
from recsys_lib.losses import bpr_loss, softmax_loss
from recsys_lib.models import ObjectiveMF
from recsys_lib.models.objectives import OBJECTIVES, _Lists


def two_groups(n: int = 24) -> Interactions:
    """Even users choose most even items, odd users odd ones; each dislikes two of the others."""
    rows = [(u, i, 5.0) for u in range(n) for i in range(u % 2, 16, 2) if (u + i) % 5]
    rows += [(u, i, 1.0) for u in range(n) for i in ((u + 1) % 16, (u + 3) % 16)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating"])
    frame["timestamp"] = range(len(frame))
    return Interactions.from_frame(frame, user_ids=range(n), item_ids=range(16))


def lists(scores, gains, n_chosen=1, present=None) -> _Lists:
    scores, gains = torch.tensor(scores), torch.tensor(gains)
    present = torch.ones_like(scores, dtype=torch.bool) if present is None else torch.tensor(present)
    return _Lists(scores, gains, present, n_chosen, 16, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("loss", [*OBJECTIVES, "stars"])
def test_every_objective_tells_the_groups_apart(loss):
    events = two_groups()
    given = events if loss == "stars" else events.positives(4.0)
    model = ObjectiveMF(
        loss=loss, dim=4, n_drawn=6, epochs=60, batch_size=64, learning_rate=0.02, l2=0.02
    ).fit(given, device="cpu", progress=False)
    scores = model.score(torch.arange(24))
    own = (torch.arange(24)[:, None] + torch.arange(16)) % 2 == 0
    assert float(scores[own].mean()) > float(scores[~own].mean()) + 0.2


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_every_loss_falls_when_the_chosen_item_rises(loss):
    gains = [[1.0, 0.0, 0.0]]
    # Below the gain, beyond which the squared error and ListNet want no more.
    low, high = (float(OBJECTIVES[loss](lists([[s, 0.1, -0.2]], gains))) for s in (-0.5, 0.5))
    assert high < low


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_what_is_not_there_changes_nothing(loss):
    short = OBJECTIVES[loss](lists([[0.3, -0.2, 0.5]], [[1.0, 0.0, 0.0]], n_chosen=1))
    gains, present = [[1.0, 0.0, 0.0, 0.0]], [[True, False, True, True]]
    padded = [OBJECTIVES[loss](lists([[0.3, x, -0.2, 0.5]], gains, 2, present)) for x in (-9.0, 9.0)]
    assert padded[0] == padded[1]
    if loss != "ListMLE":  # whose ties are in a random order
        assert float(padded[0]) == pytest.approx(float(short), abs=1e-6)


def test_with_one_chosen_item_the_losses_are_those_of_a_pair_and_of_the_softmax():
    scores, gains = [[0.3, -0.2, 0.5], [1.0, 0.1, 0.2]], [[1.0, 0.0, 0.0]] * 2
    s = torch.tensor(scores)
    assert OBJECTIVES["BPR"](lists(scores, gains)) == pytest.approx(float(bpr_loss(s[:, 0], s[:, 1:])))
    wanted = softmax_loss(s, torch.zeros(2, dtype=torch.int64))
    assert OBJECTIVES["softmax"](lists(scores, gains)) == pytest.approx(float(wanted))


def test_each_epoch_deals_every_chosen_item_once():
    events = two_groups().positives(4.0)
    model = ObjectiveMF(n_chosen=3, epochs=1).fit(events, device="cpu", progress=False)
    generator = seed_generator(0, torch.device("cpu"))
    examples = model.prepare(events, generator)
    deals = [model._deal(examples, generator) for _ in range(2)]
    for users, chosen in deals:
        row, place = (chosen >= 0).nonzero(as_tuple=True)
        pairs = set(zip(users[row].tolist(), chosen[row, place].tolist(), strict=True))
        assert pairs == set(zip(events.users.tolist(), events.items.tolist(), strict=True))
        assert len(row) == len(events)
        assert ((chosen >= 0).int().diff(dim=1) <= 0).all()  # padding stands at the end
    assert not torch.equal(deals[0][1], deals[1][1])


def test_the_bias_of_users_stays_where_only_the_order_counts():
    events = two_groups().positives(4.0)
    model = ObjectiveMF(loss="softmax", epochs=5).fit(events, device="cpu", progress=False)
    assert model.mean.item() == 0
    assert model.user_bias.abs().max() == 0
    pointwise = ObjectiveMF(loss="BCE", epochs=5).fit(events, device="cpu", progress=False)
    assert pointwise.user_bias.abs().max() > 1e-2


def test_stars_need_ratings_and_stay_in_their_range():
    events = two_groups()
    model = ObjectiveMF(loss="stars", epochs=30, learning_rate=0.1).fit(events, progress=False)
    found = model.predict(events.users, events.items)
    assert found.min() >= 1
    assert found.max() <= 5
    events.ratings[0] = torch.nan
    with pytest.raises(ValueError, match='loss="stars" learns from ratings, and 1 of'):
        model.fit(events, progress=False)
