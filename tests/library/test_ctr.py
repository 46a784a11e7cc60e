"""The click model beside its conformance: right values, features by name, and what it refuses."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from recsys_lib.calibration import log_loss
from recsys_lib.data import Interactions
from recsys_lib.models import ClickModel
from recsys_lib.models.core.fields import field_table, fields_of, widths_of

N_USERS, N_ITEMS = 30, 12
INTERACTIONS = ("linear", "fm", "inner", "outer", "cross", "mlp")

USERS = pd.DataFrame(
    {"age": np.arange(N_USERS) % 3, "job": [("baker", "pilot", None)[i % 3] for i in range(N_USERS)]}
)
ITEMS = pd.DataFrame(
    {
        "year": 1990 + np.arange(N_ITEMS),
        "genres": [("Drama",), ("Comedy", "Drama"), ()] * (N_ITEMS // 3),
        "new": [i > 6 for i in range(N_ITEMS)],
    }
)


def ratings(seed: int = 0) -> Interactions:
    """Two in three pairs rated; even users like even items."""
    rng = np.random.default_rng(seed)
    rows = [(u, i) for u in range(N_USERS) for i in range(N_ITEMS) if rng.random() < 2 / 3]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id"])
    frame["rating"] = [5.0 if (u + i) % 2 == 0 else 2.0 for u, i in rows]
    frame["timestamp"] = range(len(rows))
    return Interactions.from_frame(frame, user_ids=range(N_USERS), item_ids=range(N_ITEMS))


def small(**options) -> ClickModel:
    return ClickModel(**{"dim": 4, "epochs": 5, "batch_size": 64, "labels": "liked"} | options)


def fit(model: ClickModel, events: Interactions | None = None) -> ClickModel:
    return model.fit(ratings() if events is None else events, device="cpu", progress=False)


def everything(model: ClickModel) -> torch.Tensor:
    return model.score(torch.arange(model.n_users))


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_every_interaction_but_the_linear_one_learns_who_likes_what(interaction):
    events = ratings()
    model = fit(small(interaction=interaction, epochs=80, learning_rate=0.03, layer_l2=1e-3), events)
    right = (model.predict(events.users, events.items) > 0.5) == (events.ratings >= 4)
    assert (float(right.float().mean()) > 0.9) == (interaction != "linear")


def test_a_factorization_machine_without_features_is_matrix_factorization():
    model = fit(small(interaction="fm"))
    users, items = model.user_vectors, model.item_vectors  # (U, 1 + d), (I, 1 + d)
    wanted = model.bias + users[:, :1] + items[:, 0] + users[:, 1:] @ items[:, 1:].mT
    torch.testing.assert_close(everything(model), wanted.detach())


def test_a_factorization_machine_is_the_double_loop_over_fields():
    model = fit(small(user_features=USERS, item_features=ITEMS))
    user, item = 4, 7
    users, items = fields_of(USERS), fields_of(ITEMS)
    vectors = [model.user_vectors[user], model.item_vectors[item]]
    for fields, kept, row in (
        (users, model.user_feature_vectors, user),
        (items, model.item_feature_vectors, item),
    ):
        start = 0
        for name in sorted(fields):
            width = fields[name].shape[1]
            vectors.append(fields[name][row] @ kept[start : start + width])
            start += width
    wanted = model.bias + sum(v[0] for v in vectors)
    wanted = wanted + sum(vectors[f][1:] @ vectors[g][1:] for f in range(7) for g in range(f + 1, 7))
    assert len(vectors) == 7
    torch.testing.assert_close(everything(model)[user, item], wanted.detach())


def test_the_linear_model_is_a_logistic_regression():
    """scikit-learn's, without penalty, on one-hot features of items and the same labels."""
    events = ratings()
    frame = ITEMS[["new"]]
    options = {"interaction": "linear", "item_features": frame, "l2": 0.0, "epochs": 400}
    model = fit(small(**options, learning_rate=0.05, batch_size=10_000), events)
    x = np.concatenate([np.eye(N_USERS)[events.users], np.eye(N_ITEMS)[events.items]], axis=1)
    other = LogisticRegression(C=1e6, max_iter=5000).fit(x, events.ratings >= 4)
    wanted = other.predict_proba(x)[:, 1]
    np.testing.assert_allclose(model.predict(events.users, events.items).numpy(), wanted, atol=0.02)


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_the_order_of_named_features_changes_nothing(interaction):
    options = {"interaction": interaction, "deep": True}
    model = fit(small(user_features=USERS, item_features=ITEMS, **options))
    turned = fit(small(user_features=USERS.iloc[:, ::-1], item_features=ITEMS.iloc[:, ::-1], **options))
    assert torch.equal(everything(model), everything(turned))
    assert model.config == turned.config


def test_other_features_change_something():
    model, without = fit(small(item_features=ITEMS)), fit(small(item_features=ITEMS.drop(columns="year")))
    assert not torch.allclose(everything(model), everything(without))


@pytest.mark.parametrize("interaction", INTERACTIONS)
@pytest.mark.parametrize("matrix_rank", [None, 2])
def test_a_model_with_features_comes_back_from_its_files(interaction, matrix_rank, tmp_path):
    model = fit(
        small(
            interaction=interaction,
            matrix_rank=matrix_rank,
            deep=True,
            user_features=USERS,
            item_features=ITEMS,
        )
    )
    model.save_pretrained(tmp_path)
    loaded = ClickModel.from_pretrained(tmp_path)
    assert torch.equal(everything(loaded), everything(model))
    assert json.loads(loaded.item_fields) == {"genres": 2, "new": 2, "year": 1}
    assert torch.equal(everything(fit(loaded)), everything(model))  # the features came along


def test_features_of_another_catalog_are_refused(tmp_path):
    model = fit(small(item_features=ITEMS))
    model.save_pretrained(tmp_path)
    frame = pd.DataFrame({"user_id": [0, 1], "item_id": [0, 1], "rating": [5.0, 1.0], "timestamp": [0, 1]})
    other = Interactions.from_frame(frame)
    with pytest.raises(ValueError, match="item_features hold 12 items, and there are 2"):
        fit(ClickModel.from_pretrained(tmp_path), other)
    with pytest.raises(ValueError, match="has item_fields but no features: give item_features"):
        fit(small(item_fields=model.item_fields))


def test_probabilities_are_the_logistic_function_of_the_scores():
    model, events = fit(small()), ratings()
    found = model.predict(events.users, events.items)
    torch.testing.assert_close(found, everything(model)[events.users, events.items].sigmoid())


def test_drawn_items_make_the_share_of_yeses():
    """One event and n drawn ones: the mean probability over those pairs is about 1 / (1 + n)."""
    events = ratings().positives(4.0)
    model = fit(small(labels="chosen", n_negatives=3, epochs=60, interaction="linear"), events)
    yes = model.predict(events.users, events.items).mean()
    taken = torch.zeros(N_USERS, N_ITEMS, dtype=torch.bool)
    taken[events.users, events.items] = True
    users, items = (~taken).nonzero(as_tuple=True)
    no = model.predict(users, items).mean()
    assert float(yes + 3 * no) / 4 == pytest.approx(0.25, abs=0.03)


def test_training_stops_by_the_log_loss_of_the_validation_labels():
    events = ratings()
    noise = torch.rand(len(events), generator=torch.Generator().manual_seed(0)) < 0.3
    events = dataclasses.replace(events, ratings=torch.where(noise, 7 - events.ratings, events.ratings))
    even = torch.arange(len(events)) % 2 == 0
    model = small(epochs=200, check_every=2, patience=2, learning_rate=0.05, l2=0.0)
    model.fit(events[even], events[~even], device="cpu", progress=False)
    looked = [row["minus log-loss"] for row in model.log if "minus log-loss" in row]
    held = events[~even]
    found = -float(log_loss(model.predict(held.users, held.items), held.ratings >= 4))
    assert model.stopped_by == "patience"
    assert found == pytest.approx(max(looked), abs=1e-6)


def test_missing_ratings_are_refused_where_they_are_labels():
    events = ratings()
    events.ratings[3] = torch.nan
    with pytest.raises(ValueError, match=r'labels="liked" reads ratings, and 1 of \d+ events have none'):
        fit(small(), events)
    assert everything(fit(small(labels="chosen"), events)).isfinite().all()


# Fields.


def test_columns_become_fields():
    users, items = fields_of(USERS), fields_of(ITEMS)
    assert users["job"][:3].tolist() == [[1, 0], [0, 1], [0, 0]]  # baker, pilot, unknown
    assert items["genres"][:3].tolist() == [[0, 1], [0.5, 0.5], [0, 0]]
    assert items["new"][6:8].tolist() == [[1, 0], [0, 1]]
    assert items["year"].mean().abs() < 1e-6
    assert items["year"].std(unbiased=False) == pytest.approx(1)


def test_a_missing_number_is_the_mean():
    year = fields_of(pd.DataFrame({"year": pd.array([1990, None, 1994], dtype="Int64")}))["year"]
    assert year[:, 0].tolist() == [-1, 0, 1]


def test_a_table_is_in_the_order_of_names():
    table, fields = field_table({"b": torch.ones(3, 2), "a": torch.zeros(3, 1)}, 3, "item")
    assert table.tolist() == [[0, 1, 1]] * 3
    assert widths_of(fields) == [1, 2]
    assert widths_of(None) == []


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({}, "item_features has no field"),
        ({"x": torch.ones(3)}, r"item_features\['x'\] must be \(2, V\), a row for each item, got \(3,\)"),
        ({"x": torch.ones(3, 1)}, r"must be \(2, V\)"),
        ({"x": torch.ones(2, 0)}, r"must be \(2, V\)"),
        ({"x": torch.tensor([[0.0], [torch.nan]])}, r"item_features\['x'\] is not finite for item 1"),
        (pd.DataFrame({"x": [None, None]}), r"features\['x'\] is missing in every row"),
        (pd.DataFrame({"x": [1.0, np.inf]}), r"features\['x'\] holds an infinite number"),
    ],
)
def test_features_that_make_no_sense_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        field_table(features, 2, "item")


@pytest.mark.parametrize("features", ["genres", [1, 2], pd.DataFrame({"x": [("a", 1), ("b",)]})])
def test_features_of_another_kind_are_refused(features):
    with pytest.raises(TypeError, match="features"):
        field_table(features, 2, "item")


def by_the_hour() -> Interactions:
    """Everybody likes even items before noon, and odd ones after it."""
    rows = [(u, i, (u * 5 + i * 7) % 24) for u in range(N_USERS) for i in range(N_ITEMS)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "hour"])
    frame["rating"] = np.where((frame["item_id"] % 2 == 0) == (frame["hour"] < 12), 5.0, 1.0)
    frame["timestamp"] = 1_000_000_000 // 86_400 * 86_400 + frame["hour"] * 3600 + 59
    return Interactions.from_frame(frame)


def test_the_hour_decides_where_it_is_told_and_is_averaged_where_not():
    events = by_the_hour()
    model = fit(small(hour=True, epochs=60, learning_rate=0.03), events)
    liked = events.ratings >= 4
    told = model.predict(events.users, events.items, events.timestamps)
    assert float(((told > 0.5) == liked).float().mean()) > 0.95
    untold = model.predict(events.users, events.items)
    assert float(((untold > 0.5) == liked).float().mean()) < 0.8
    # A factorization machine is linear in each field, so the mean vector gives the mean logit.
    day = torch.arange(24) * 3600
    each = [model.predict(torch.full((24,), 3), torch.full((24,), item), day) for item in (0, 5)]
    mean = torch.stack([model.hour_shares @ chances.logit() for chances in each])
    torch.testing.assert_close(model.predict(torch.tensor([3, 3]), torch.tensor([0, 5])).logit(), mean)
    torch.testing.assert_close(model.score(torch.tensor([3]))[0, [0, 5]], mean)


def test_the_hour_of_a_choice_is_its_last_and_drawn_items_share_it():
    model = small(hour=True, labels="chosen", epochs=1)
    frame = pd.DataFrame(
        {"user_id": [0, 0, 1, 2], "item_id": [0, 0, 1, 2], "timestamp": [7200, 90_000, 86_399, 3600]}
    )
    fit(model, Interactions.from_frame(frame))
    wanted = torch.zeros(24)
    wanted[[1, 23]] = torch.tensor([2 / 3, 1 / 3])
    torch.testing.assert_close(model.hour_shares, wanted)


def test_a_model_that_reads_hours_is_saved_with_them(tmp_path):
    events = by_the_hour()
    model = fit(small(hour=True), events)
    model.save_pretrained(tmp_path)
    again = ClickModel.from_pretrained(tmp_path)
    given = events.users, events.items, events.timestamps
    torch.testing.assert_close(again.predict(*given), model.predict(*given))
    torch.testing.assert_close(everything(again), everything(model))


def test_times_are_one_a_pair_and_nothing_to_a_model_without_hours():
    users, items = torch.tensor([0, 1]), torch.tensor([2, 3])
    with pytest.raises(ValueError, match="2, 2 and 1"):
        fit(small(hour=True)).predict(users, items, torch.tensor([0]))
    model = fit(small())
    torch.testing.assert_close(
        model.predict(users, items, torch.tensor([0, 3600])), model.predict(users, items)
    )
