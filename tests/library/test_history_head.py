import pandas as pd
import pytest
import torch
from torch.nn import functional

from recsys_lib.data import Interactions
from recsys_lib.losses import softmax_loss
from recsys_lib.models import BERT4Rec, HistoryHead, MultDAE

SMALL = {"dim": 8, "max_length": 6, "epochs": 3, "learning_rate": 0.01}


def events(n_users: int = 30) -> Interactions:
    """Two kinds of people: one likes items 0 to 5 and dislikes 6 and 7, the other the reverse."""
    rows = []
    for u in range(n_users):
        kind = u % 2
        rows += [(u, 6 * kind + (u + t) % 6, 5.0, 100 * u + t) for t in range(4)]
        rows += [(u, 6 * (1 - kind) + (u + t) % 6, 2.0, 100 * u + 10 + t) for t in range(2)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    return Interactions.from_frame(frame, item_ids=range(12))


def fit(labels=None, validation=None, **options):
    labels = events() if labels is None else labels
    return HistoryHead(**(SMALL | options)).fit(labels, validation, device="cpu", progress=False)


@pytest.mark.parametrize("reads", ["bag", "transformer"])
@pytest.mark.parametrize("task", ["ranking", "click", "rating"])
def test_the_own_item_is_never_read(reads, task):
    """What is read for a pair holds no event of its item, in any epoch and however often the item was met."""
    inter = events()
    twice = Interactions.from_frame(
        pd.concat([inter.to_frame()] * 2).reset_index(drop=True), item_ids=range(12)
    )

    class Watched(HistoryHead):
        def person(self, items, lengths):
            self.read = [set(part.tolist()) for part in items.split(lengths.tolist())]
            return super().person(items, lengths)

        def objective(self, person, row, items, labels):
            for r, item in zip(row.tolist(), items.tolist(), strict=True):
                assert item not in self.read[r]
            self.asked.append(len(row))
            return super().objective(person, row, items, labels)

    model = Watched(**SMALL, reads=reads, task=task, behaviour=twice, n_parts=3)
    model.asked = []
    model.fit(inter, device="cpu", progress=False)
    # Each label is asked once in each of the three epochs.
    assert sum(model.asked) == 3 * len(inter)


@pytest.mark.parametrize("reads", ["bag", "transformer"])
def test_ratings_of_behaviour_are_never_read(reads):
    inter = events()
    frame = inter.to_frame()
    frame["rating"] = frame["rating"].sample(frac=1.0, random_state=0).to_numpy()
    shuffled = Interactions.from_frame(frame, item_ids=range(12))
    few = inter[torch.arange(len(inter)) % 3 == 0]
    a, b = (fit(few, task="rating", reads=reads, behaviour=b) for b in (inter, shuffled))
    users = torch.arange(30)
    assert torch.equal(a.score(users), b.score(users))


def test_the_loss_of_a_ranking_is_the_full_softmax():
    model = fit()
    person, row, items = torch.randn(3, 8), torch.tensor([0, 0, 2]), torch.tensor([1, 5, 7])
    expected = softmax_loss(model.catalog(person)[row], items)
    torch.testing.assert_close(model.objective(person, row, items, torch.ones(3)), expected)


def test_scores_are_the_formula():
    model = fit(task="rating")
    history = [3, 1, 4]
    a = model.encoder.rows[history].sum(dim=0) / 3**0.5 + model.encoder.bias
    p = model.encode([history])[0]
    torch.testing.assert_close(p, torch.tanh(a).detach())
    head = model.head
    expected = model.items @ (head.map.weight @ p + head.map.bias) + model.item_bias
    expected = expected + head.level.weight[0] @ p + head.level.bias + model.level
    torch.testing.assert_close(model.score_histories([history])[0], expected.detach())


@pytest.mark.parametrize("reads", ["bag", "transformer"])
def test_tasks_are_learned(reads):
    inter = events()
    users = torch.arange(30)
    own = torch.arange(12) // 6 == (users % 2)[:, None]
    options = {"reads": reads, "epochs": 80, "learning_rate": 0.02}
    click = fit(task="click", **options).predict(inter.users, inter.items).sigmoid()
    assert click[inter.ratings == 5].mean() > 0.8
    assert click[inter.ratings == 2].mean() < 0.4
    rating = fit(task="rating", **options).predict(inter.users, inter.items)
    assert (rating - inter.ratings).abs().mean() < 0.5
    assert rating.max() <= 5
    ranking = fit(inter.positives(4.0), **options).score(users)
    assert ranking[own].mean() > ranking[~own].mean() + 1


def test_it_begins_where_an_autoencoder_stood():
    inter = events()
    dae = MultDAE(dim=8, epochs=5, learning_rate=0.01).fit(inter, device="cpu", progress=False)
    parts = {
        "encoder.rows": "item_rows",
        "encoder.bias": "first_bias",
        "items": "output.weight",
        "item_bias": "output.bias",
    }
    model = HistoryHead(**SMALL | {"epochs": 1, "learning_rate": 1e-12}).start_from(dae, parts)
    model.fit(inter, device="cpu", progress=False)
    histories = [[0, 1, 2], [7], []]
    torch.testing.assert_close(model.score_histories(histories), dae.score_histories(histories))


def test_it_begins_where_a_cloze_test_stood():
    inter = events()
    cloze = BERT4Rec(dim=8, n_layers=1, max_length=6, epochs=3).fit(inter, device="cpu", progress=False)
    parts = {"encoder": "encoder", "items": "encoder.item_embedding.weight"}
    model = HistoryHead(**SMALL | {"epochs": 1, "learning_rate": 1e-12}, reads="transformer")
    model.start_from(cloze, parts).fit(inter, device="cpu", progress=False)
    histories = [[0, 1, 2], [7], list(range(12))]
    torch.testing.assert_close(model.score_histories(histories), cloze.score_histories(histories))


def test_with_features_parts_fit_other_items():
    features = functional.one_hot(torch.arange(12) % 6, 6).float()
    first = fit(text=features, epochs=10)
    assert first.items.shape == (6, 8)
    assert first.encoder.rows.shape == (6, 8)
    frame = events().to_frame()
    frame = frame[frame["item_id"] < 6]
    half = Interactions.from_frame(frame, item_ids=range(6))
    model = HistoryHead(**SMALL | {"epochs": 1, "learning_rate": 1e-12}, text=features[:6])
    model.start_from(first, ["encoder", "items", "head"]).fit(half, device="cpu", progress=False)
    assert torch.allclose(model.items, first.items, atol=1e-6)
    assert model.score(torch.arange(3)).shape == (3, 6)


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="n_heads"):
        HistoryHead(reads="transformer", dim=9)
    with pytest.raises(ValueError, match="reads the numbers"):
        HistoryHead(reads="transformer", text=torch.ones(12, 3))
    with pytest.raises(ValueError, match=r"text must be \(12, D\)"):
        fit(text=torch.ones(5, 3))
    other = Interactions.from_frame(pd.DataFrame({"user_id": [0, 1], "item_id": [0, 1]}))
    with pytest.raises(ValueError, match=r"HistoryHead\(behaviour=...\)"):
        fit(behaviour=other)


@pytest.mark.parametrize("task", ["click", "rating"])
def test_training_stops_by_the_error_of_the_task(task):
    inter = events()
    even = torch.arange(len(inter)) % 4 > 0
    model = fit(inter[even], inter[~even], task=task, epochs=4)
    name = {"click": "minus log-loss", "rating": "minus rmse"}[task]
    known = inter[~even]
    scores = model.predict(known.users, known.items)
    found = max(entry[name] for entry in model.log)
    if task == "rating":
        expected = -(scores - known.ratings).square().mean().sqrt()
    else:
        expected = -functional.binary_cross_entropy_with_logits(scores, (known.ratings >= 4).float())
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_a_slow_body_stays_where_it_began():
    start = fit(task="click", epochs=1, learning_rate=1e-12)
    still = fit(task="click", epochs=5, learning_rate=0.02, body_rate=1e-9)
    for name, before in start.named_parameters():
        after = dict(still.named_parameters())[name]
        moved = float((after - before).detach().abs().max())
        assert moved < 1e-6 if name.startswith(("encoder", "items")) else moved > 1e-3, name


def test_a_penalty_shrinks_tables_and_maps():
    free, held = fit(task="rating", epochs=30), fit(task="rating", epochs=30, l2=1.0)
    for name in ("items", "item_bias", "encoder.rows", "head.map.weight"):
        sizes = [float(dict(model.named_parameters())[name].detach().norm()) for model in (free, held)]
        assert sizes[1] < 0.5 * sizes[0], name
