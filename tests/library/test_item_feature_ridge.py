"""Ridge regression from item features: the closed forms against definitions and scikit-learn; new items."""

import pandas as pd
import pytest
import torch

from recsys_lib.data import Interactions
from recsys_lib.kernels import Features
from recsys_lib.models import ItemFeatureRidge, item_feature_ridge

N_USERS, N_ITEMS, NEW = 40, 30, 6  # the last items are new


@pytest.fixture(scope="module")
def vectors() -> torch.Tensor:
    return torch.randn(N_ITEMS, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def events(vectors) -> Interactions:
    """Users choose the items that are like a direction of their own, and the first feature is fame."""
    generator = torch.Generator().manual_seed(2)
    taste = torch.randn(N_USERS, 5, generator=generator)
    taste[:, 0] += 2.0
    scores = taste @ vectors[: N_ITEMS - NEW].mT
    users, items = (scores > 1.5).nonzero(as_tuple=True)
    frame = pd.DataFrame({"user_id": users, "item_id": items, "rating": 5.0, "timestamp": 0})
    return Interactions.from_frame(frame, user_ids=range(N_USERS + 1), item_ids=range(N_ITEMS))


def everyone(model: ItemFeatureRidge) -> torch.Tensor:
    return model.score(torch.arange(N_USERS)).double().cpu()


def matrix(events: Interactions) -> torch.Tensor:
    X = torch.zeros(N_USERS, N_ITEMS, dtype=torch.float64)
    X[events.users, events.items] = 1.0
    return X


def fit(events, features, device="cpu", **options) -> ItemFeatureRidge:
    return ItemFeatureRidge(features, **options).fit(events, device=device, progress=False)


def by_definition(
    X: torch.Tensor, K: torch.Tensor, known: torch.Tensor, l2: float, power: float
) -> torch.Tensor:
    """The minimum over all users and known items at once, by one large system; (users, items)."""
    X = X[:, known]
    Y = X - X.mean(1, keepdim=True)
    g, v = torch.linalg.eigh(X @ X.mT)
    g = g.clamp(min=0) * len(X) / g.sum()
    G = v @ (g**power).diag() @ v.mT
    system = torch.kron(G, K[known][:, known]) + l2 * torch.eye(Y.numel(), dtype=torch.float64)
    dual = torch.linalg.solve(system, Y.flatten()).view(Y.shape)
    return G @ dual @ K[known]


@pytest.mark.parametrize("power", [0.0, 0.7, 1.0])
def test_scores_are_those_of_the_large_system(events, vectors, device, power):
    features = Features(vectors, width=1.2)
    X = matrix(events)
    active = X.sum(1) > 0
    expected = by_definition(X[active], features.kernel("cpu").double(), X.sum(0) > 0, 3.0, power)
    found = everyone(fit(events, features, device, l2=3.0, power=power))
    assert torch.allclose(found[active], expected, atol=2e-5)


def test_without_power_it_is_the_kernel_ridge_of_scikit_learn(events, vectors, device):
    kernel_ridge = pytest.importorskip("sklearn.kernel_ridge")
    features = {"gaussian": Features(vectors, weight=0.5, width=0.9), "linear": Features(vectors)}
    found = everyone(fit(events, features, device, l2=2.0, power=0.0))
    K = (0.5 * features["gaussian"].kernel("cpu") + features["linear"].kernel("cpu")).double()
    X = matrix(events)
    known = X.sum(0) > 0
    Y = X[:, known] - X[:, known].mean(1, keepdim=True)
    reference = kernel_ridge.KernelRidge(alpha=2.0, kernel="precomputed").fit(K[known][:, known], Y.mT)
    expected = torch.from_numpy(reference.predict(K[:, known])).mT
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_leaving_one_out_is_fitting_without_it(events, vectors, device, power):
    """Of one item: the column is taken out, while means and likeness of users stay."""
    features, l2 = Features(vectors, width=1.2), 3.0
    found = everyone(fit(events, features, device, l2=l2, power=power, leave_one_out=True))
    X = matrix(events)
    known = X.sum(0) > 0
    left = int(known.nonzero()[4, 0])
    others = known.clone()
    others[left] = False
    K = features.kernel("cpu").double()
    Y = X - X[:, known].mean(1, keepdim=True)
    g, v = torch.linalg.eigh(X[:, known] @ X[:, known].mT)
    g = (g.clamp(min=0) * int((X.sum(1) > 0).sum()) / g.sum()) ** power
    expected = torch.zeros(N_USERS, dtype=torch.float64)
    for strength, one in zip(g, v.mT, strict=True):
        if strength > 1e-9:
            system = K[others][:, others] + l2 / strength * torch.eye(int(others.sum()))
            expected += one * (K[left, others] @ torch.linalg.solve(system, Y[:, others].mT @ one))
    assert torch.allclose(found[:, left], expected, atol=2e-5)
    usual = everyone(fit(events, features, device, l2=l2, power=power))
    assert torch.allclose(found[:, ~known], usual[:, ~known])  # those were new all along
    assert not torch.allclose(found[:, known], usual[:, known], atol=1e-2)


def test_new_items_are_ranked_by_taste(events, vectors, device):
    taste_of = torch.randn(N_USERS, 5, generator=torch.Generator().manual_seed(2))
    taste_of[:, 0] += 2.0
    wanted = taste_of @ vectors[-NEW:].mT
    found = everyone(fit(events, vectors, device, l2=1.0))[:, -NEW:]
    active = matrix(events).sum(1) > 2
    agree = torch.corrcoef(torch.stack([wanted[active].flatten().double(), found[active].flatten()]))[0, 1]
    assert agree > 0.7
    order = torch.randperm(N_ITEMS, generator=torch.Generator().manual_seed(3))
    broken = everyone(fit(events, vectors[order], device, l2=1.0))[:, -NEW:]  # features of other items
    assert (
        torch.corrcoef(torch.stack([wanted[active].flatten().double(), broken[active].flatten()]))[0, 1] < 0.5
    )


def test_a_history_is_scored_like_the_user_who_has_it(events, vectors, device):
    model = fit(events, vectors, device)
    histories = [events.items[events.users == user] for user in range(5)]
    assert torch.allclose(
        model.score_histories(histories).cpu(), model.score(torch.arange(5)).cpu(), atol=1e-5
    )
    assert (model.score(torch.tensor([N_USERS])) == 0).all()
    assert (model.score_histories([[]]) == 0).all()


def test_texts_go_through_the_encoder(events, vectors):
    class Encoder:
        name, dim = "given", 5

        def encode(self, texts, progress=True):
            return torch.stack([vectors[int(text)] for text in texts])

    texts = [str(item) for item in range(N_ITEMS)]
    read = fit(events, {"text": texts}, encoder=Encoder())
    assert torch.equal(everyone(read), everyone(fit(events, vectors)))


def test_a_loaded_model_learns_anew_without_the_features(events, vectors, tmp_path):
    fit(events, vectors).save_pretrained(tmp_path)
    loaded = ItemFeatureRidge.from_pretrained(tmp_path)
    half = events[torch.arange(0, len(events), 2)]
    assert torch.equal(everyone(loaded.fit(half, device="cpu")), everyone(fit(half, vectors)))


def test_doubling_the_weights_is_halving_the_penalty(events, vectors):
    one = fit(events, Features(vectors, weight=2.0), l2=10.0)
    other = fit(events, Features(vectors), l2=5.0)
    assert torch.allclose(everyone(one), everyone(other), atol=1e-6)


def test_what_makes_no_sense_is_refused(events, vectors, monkeypatch):
    with pytest.raises(ValueError, match=r"ItemFeatureRidge\(features\)"):
        fit(events, None)
    with pytest.raises(ValueError, match="30 items, 29 rows"):
        fit(events, vectors[1:])
    monkeypatch.setattr(item_feature_ridge, "total_memory", lambda device: 10_000)
    with pytest.raises(MemoryError, match="30 items"):
        fit(events, vectors)
    with pytest.raises(ValueError, match="l2"):
        ItemFeatureRidge(vectors, l2=0.0)
