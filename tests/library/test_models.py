"""What is particular to each model: its formula, its parameters, its files."""

import json
import math
import os
import signal
import stat
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import cosine_similarity

import recsys_lib
from recsys_lib.data import Interactions, leave_last_out, random_split
from recsys_lib.data.ragged import distinct_events
from recsys_lib.devices import seed_generator
from recsys_lib.losses import bpr_loss
from recsys_lib.models import (
    BPR,
    EASE,
    BiasedMF,
    ItemKNN,
    MatrixFactorization,
    Popularity,
    Recommender,
    TfidfContent,
    UserKNN,
    ease,
    knn,
)
from recsys_lib.models.biased_mf import _Observations, _Side
from recsys_lib.models.content import term_counts, tokenize
from recsys_lib.models.core import saving
from recsys_lib.models.core.checks import check_histories
from recsys_lib.models.core.histories import recency_weights
from recsys_lib.models.core.options import learned, option
from recsys_lib.models.core.saving import CONFIG_FILE, IDS_FILES, WEIGHTS_FILE
from recsys_lib.models.core.trained import validation_ndcg
from recsys_lib.models.knn import _first_largest
from recsys_lib.negatives import NegativeSampler
from recsys_lib.ranking import HeldOut

quick = settings(max_examples=20, deadline=None)
DAY = 86_400


def random_events(seed: int, n_users: int = 30, n_items: int = 12, n: int = 160) -> Interactions:
    """Events with duplicates, ties in time, a user and an item without any."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "user_id": rng.integers(0, n_users - 1, n),
            "item_id": rng.integers(0, n_items - 1, n),
            "rating": rng.integers(1, 6, n).astype(float),
            "timestamp": rng.integers(0, 9, n) * DAY,
        }
    )
    return Interactions.from_frame(frame, user_ids=range(n_users), item_ids=range(n_items))


def dense(inter: Interactions) -> np.ndarray:
    x = np.zeros((inter.n_users, inter.n_items))
    x[inter.users, inter.items] = 1
    return x


def everyone(model: Recommender) -> np.ndarray:
    return model.score(torch.arange(model.n_users)).numpy()


# Popularity.


def test_popularity_counts_users_not_events():
    frame = pd.DataFrame({"user_id": [0, 0, 0, 1, 2], "item_id": [0, 0, 1, 1, 1]})
    inter = Interactions.from_frame(frame, item_ids=range(3))
    assert everyone(Popularity().fit(inter)).tolist() == [[1, 3, 0]] * 3


def test_the_window_ends_with_the_training_data_and_includes_its_borders():
    times = [0, 3 * DAY - 1, 3 * DAY, 10 * DAY]
    frame = pd.DataFrame({"user_id": range(4), "item_id": range(4), "timestamp": times})
    inter = Interactions.from_frame(frame)
    assert everyone(Popularity(window_days=7).fit(inter))[0].tolist() == [0, 0, 1, 1]
    assert everyone(Popularity(window_days=10).fit(inter))[0].tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="window_days"):
        Popularity(window_days=0)


# EASE.


@quick
@given(st.integers(0, 999), st.sampled_from([0.5, 7.0]))
def test_ease_is_a_ridge_regression_of_every_item_on_the_others(seed, l2):
    inter = random_events(seed)
    x, weights = dense(inter), EASE(l2=l2).fit(inter).item_weights.numpy()
    assert (np.diag(weights) == 0).all()
    for j in range(inter.n_items):
        others = np.arange(inter.n_items) != j
        column = Ridge(alpha=l2, fit_intercept=False, solver="cholesky").fit(x[:, others], x[:, j]).coef_
        np.testing.assert_allclose(weights[others, j], column, atol=2e-6)


def test_ease_scores_the_history_times_the_weights(monkeypatch):
    inter = random_events(1)
    model = EASE(l2=3.0).fit(inter)
    np.testing.assert_allclose(everyone(model), dense(inter) @ model.item_weights.numpy(), atol=1e-5)
    for ratio, cells in ((0, 24), (2**40, 84)):  # products of sparse matrices, and with two dense columns
        monkeypatch.setattr(ease, "_DENSE_IS_FASTER", ratio)
        monkeypatch.setattr(ease, "_CELLS", cells)
        assert torch.equal(EASE(l2=3.0).fit(inter).item_weights, model.item_weights)
        np.testing.assert_array_equal(ease._gram(*inter.csr(), inter.n_items), dense(inter).T @ dense(inter))


@pytest.mark.parametrize("l2", [0.05, 200.0])
def test_few_users_make_the_smaller_inverse_and_the_same_weights(l2, monkeypatch):
    inter = random_events(2, n_users=20, n_items=60, n=300)
    solved = []
    invert = ease._invert
    monkeypatch.setattr(ease, "_invert", lambda gram, l2: solved.append(len(gram)) or invert(gram, l2))
    few = EASE(l2=l2).fit(inter).item_weights
    monkeypatch.setattr(ease, "_CELLS", 120)  # two items a block
    assert torch.equal(EASE(l2=l2).fit(inter).item_weights, few)
    monkeypatch.setattr(ease, "_FEW_USERS", 0)
    many = EASE(l2=l2).fit(inter).item_weights
    assert solved == [19, 19, 60]  # one of the twenty has no events
    torch.testing.assert_close(few, many, rtol=1e-6, atol=1e-9)


def test_ease_refuses_a_catalog_that_cannot_fit(monkeypatch):
    frame = pd.DataFrame({"user_id": [0, 1], "item_id": [0, 1]})
    inter = Interactions.from_frame(frame, item_ids=range(100_000))
    monkeypatch.setattr(ease, "total_memory", lambda device: 16_000_000_000)
    monkeypatch.setattr(ease, "_gram", lambda *_: pytest.fail("it went on"))
    model = EASE()
    with pytest.raises(MemoryError, match=r"130\.0 GB for 100,000 items.*has 16\.0 GB; leave out.*ItemKNN"):
        model.fit(inter)
    assert not model.fitted


# Runs apart, so that the peak is its own: the bytes that a fit takes on top of what was there before.
PEAK = """
import resource, sys, warnings
import numpy as np, pandas as pd, torch
from recsys_lib.data import Interactions
from recsys_lib.models import EASE, ItemKNN, UserKNN
torch.set_num_threads(1)
def events(n_users, n_items, n):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"user_id": rng.integers(0, n_users, n), "item_id": rng.integers(0, n_items, n)})
    return Interactions.from_frame(frame, user_ids=range(n_users), item_ids=range(n_items))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
model, few, many = MODEL, events(20, 20, 50), EVENTS
model.fit(few, progress=False)  # loads what is loaded once
before = peak()
model.fit(many, progress=False)
print(peak() - before)
"""


@pytest.mark.skipif(
    not hasattr(os, "sysconf"), reason="peak memory is read through resource, which is Unix's"
)
@pytest.mark.parametrize(
    ("model", "events", "n", "bytes_a_cell"),
    [
        ("ItemKNN()", "events(2_000, 6_000, 60_000)", 6_000, 6),  # it held 12 when blocks were kept alive
        ("UserKNN()", "events(6_000, 2_000, 60_000)", 6_000, 6),
        ("ItemKNN()", "events(50_000, 20_000, 1_000_000)", 20_000, 1),
        # It held 32. Here it is 13, and 3 for the blocks of this small case.
        ("EASE()", "events(2_000, 4_000, 40_000)", 4_000, 16),
        ("EASE()", "events(5_000, 4_000, 40_000)", 4_000, 16),
    ],
)
def test_memory_of_a_fit(model, events, n, bytes_a_cell):
    code = PEAK.replace("MODEL", model).replace("EVENTS", events)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < bytes_a_cell * n**2


def test_ease_needs_regularization():
    with pytest.raises(ValueError, match="l2 must be above 0"):
        EASE(l2=0)
    with pytest.raises(ValueError, match="recency"):
        EASE(recency=-1)
    with pytest.raises(ValueError, match="half_life_days"):
        EASE(half_life_days=0)


# Histories and their weights.


@quick
@given(
    st.integers(0, 999),
    st.sampled_from([0.0, 0.5, 1.0, math.inf]),
    st.sampled_from([None, 2.0]),
)
def test_recency_weights_are_their_formula(seed, recency, half_life):
    inter = random_events(seed, n_users=6)
    events = distinct_events(inter.users, inter.items, inter.timestamps, inter.n_users, inter.n_items)
    found = recency_weights(events, recency, half_life).tolist()
    latest: dict[tuple[int, int], int] = {}
    for user, item, time in zip(
        *(x.tolist() for x in (inter.users, inter.items, inter.timestamps)), strict=True
    ):
        latest[user, item] = max(time, latest.get((user, item), time))
    pairs = sorted(latest)
    assert pairs == list(zip(events.users.tolist(), events.items.tolist(), strict=True))
    for (user, item), weight in zip(pairs, found, strict=True):
        times = [t for (u, _), t in latest.items() if u == user]
        age = (max(times) - latest[user, item]) / DAY
        later = sum(t > latest[user, item] for t in times)
        expected = (1 + later) ** -recency * (1 if half_life is None else 0.5 ** (age / half_life))
        assert weight == pytest.approx(expected, rel=1e-5)


def test_recency_weighs_the_history_only_when_scoring():
    inter = random_events(2)
    plain, recent = EASE(l2=3.0).fit(inter), EASE(l2=3.0, recency=0.7).fit(inter)
    assert torch.equal(plain.item_weights, recent.item_weights)
    x = dense(inter)
    events = distinct_events(inter.users, inter.items, inter.timestamps, inter.n_users, inter.n_items)
    x[events.users, events.items] = recency_weights(events, 0.7, None)
    np.testing.assert_allclose(everyone(recent), x @ plain.item_weights.numpy(), atol=1e-5)


HISTORY_MODELS = {
    "EASE": lambda **k: EASE(l2=2.0, **k),
    "ItemKNN": lambda **k: ItemKNN(k=5, **k),
    "TfidfContent": lambda **k: TfidfContent([f"word{i % 5} other{i % 3} same" for i in range(12)], **k),
}


@pytest.mark.parametrize("name", HISTORY_MODELS)
@pytest.mark.parametrize("decay", [{}, {"recency": 0.5}, {"half_life_days": 2.0}])
def test_a_known_users_history_scores_as_the_user(name, decay):
    inter = random_events(3)
    model = HISTORY_MODELS[name](**decay).fit(inter)
    times = [inter.timestamps[inter.users == u] for u in range(inter.n_users)]
    found = model.score_histories(inter.histories(), times)
    torch.testing.assert_close(found, model.score(torch.arange(inter.n_users)), rtol=1e-5, atol=1e-6)
    assert not found.requires_grad


@pytest.mark.parametrize("name", HISTORY_MODELS)
def test_histories_of_strangers(name):
    model = HISTORY_MODELS[name](recency=0.5).fit(random_events(4))
    histories = [torch.tensor([3, 1]), torch.tensor([]), torch.tensor([1, 3], dtype=torch.int32)]
    scores = model.score_histories(histories)
    assert scores.shape == (3, 12)
    assert (scores[1] == 0).all()
    assert not torch.equal(scores[0], scores[2])  # the order says which one is recent
    again = model.score_histories([torch.tensor([3, 1, 3, 1])])
    # An item that comes twice counts once, at its last place: 3, 1 again.
    torch.testing.assert_close(again[0], scores[0])
    assert torch.equal(model.score_histories([histories[0]])[0], scores[0])
    # Lists serve as well as tensors, as with SASRec.
    assert torch.equal(model.score_histories([[3, 1], [], [1, 3]]), scores)
    assert torch.equal(model.score_histories([[3, 1]], [[5, 2]])[0], scores[2])


def test_histories_that_make_no_sense_are_refused():
    model = EASE(half_life_days=3.0).fit(random_events(5))
    good = torch.tensor([1, 2])
    with pytest.raises(ValueError, match=r"forgets by the clock.*give the events' timestamps"):
        model.score_histories([good])
    with pytest.raises(ValueError, match="one entry for each item"):
        model.score_histories([good], [torch.tensor([1])])
    for histories, error, match in (
        ([torch.tensor([1, 12])], IndexError, "item 12 is unknown.*fitted on 12 items"),
        ([torch.tensor([0.5])], TypeError, "integer indices"),
        ([torch.tensor([[1]])], ValueError, "one-dimensional"),
        ([["a"]], TypeError, "each history must be a list or tensor of item indices"),
        (["12"], TypeError, "each history must be a list or tensor of item indices"),
        ([[0.5]], TypeError, "integer indices"),
        ([3], ValueError, "one-dimensional"),
        (torch.tensor([1, 2]), TypeError, "a list with one history a user.*got Tensor"),
        ("12", TypeError, "each history must be a list or tensor of item indices"),
        ([], ValueError, "histories is empty"),
    ):
        with pytest.raises(error, match=match):
            check_histories(histories, 12, torch.device("cpu"))
    joined = check_histories([[1, 2], (), torch.tensor([3])], 12, torch.device("cpu"))
    assert [t.tolist() for t in joined] == [[1, 2, 3], [2, 0, 1]]
    items, lengths = check_histories([[1], []], 12, torch.device("meta"))
    assert items.is_meta
    assert lengths.is_meta


# Neighbors.


def similarities(x: np.ndarray, shrink: float, power: float) -> np.ndarray:
    """Of the rows of x, by loops."""
    n = len(x)
    s = np.zeros((n, n))
    for a in range(n):
        for b in range(n):
            shared = (x[a] * x[b]).sum()
            if a != b and shared:
                s[a, b] = shared / ((x[a].sum() * x[b].sum()) ** (power / 2) + shrink)
    return s


def kept(model) -> np.ndarray:
    """The similarities that the model kept, as a matrix; each row distinct, and never with itself."""
    n = len(model.neighbors)
    matrix = np.zeros((n, n))
    np.put_along_axis(matrix, model.neighbors.numpy(), model.similarities.numpy(), 1)
    assert all(len(set(row)) == len(row) for row in model.neighbors.tolist())
    assert not (model.neighbors == torch.arange(n)[:, None]).any()
    return matrix


@quick
@given(st.integers(0, 999), st.sampled_from([1, 3, 50]), st.sampled_from([(0, 1), (10, 1), (2, 0.5), (0, 0)]))
def test_neighbors_by_brute_force(seed, k, norm):
    shrink, power = norm
    inter = random_events(seed)
    x = dense(inter)
    items = ItemKNN(k=k, shrink=shrink, power=power).fit(inter)
    users = UserKNN(k=k, shrink=shrink, power=power).fit(inter)
    for model, rows in ((items, x.T), (users, x)):
        expected, found = similarities(rows, shrink, power), kept(model)
        np.testing.assert_allclose(found[found > 0], expected[found > 0], atol=1e-6)
        # Which of several equal ones is kept is left open here: rounding makes them differ in the last digit.
        best = -np.sort(-expected, axis=1)[:, :k]
        np.testing.assert_allclose(model.similarities, best[:, : len(rows) - 1], atol=1e-6)
    np.testing.assert_allclose(everyone(items), x @ kept(items).T, atol=1e-5)
    np.testing.assert_allclose(everyone(users), kept(users) @ x, atol=1e-5)


def test_neighbors_are_the_same_in_blocks_and_at_once(monkeypatch):
    inter = random_events(4, n_users=30, n_items=25, n=300)
    at_once = ItemKNN(k=6).fit(inter), UserKNN(k=6).fit(inter)
    monkeypatch.setattr(knn, "_CELLS", 120)  # two rows a block, counted anew
    for ratio in (0, 2**40):  # products of sparse matrices, and with two dense columns
        monkeypatch.setattr(knn, "_DENSE_IS_FASTER", ratio)
        for model in at_once:
            blocks = type(model)(k=6).fit(inter)
            torch.testing.assert_close(blocks.similarities, model.similarities)


def test_of_equal_neighbors_the_first_are_kept():
    frame = pd.DataFrame([(u, i) for u in range(3) for i in range(5)], columns=["user_id", "item_id"])
    inter = Interactions.from_frame(frame)
    assert ItemKNN(k=2).fit(inter).neighbors.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]
    assert UserKNN(k=1).fit(inter).neighbors.tolist() == [[1], [0], [0]]


@quick
@given(
    st.lists(st.lists(st.sampled_from([-1.0, 0.0, 1e-30, 0.25, 0.5]), min_size=5, max_size=5), min_size=1),
    st.data(),
)
def test_the_first_largest_are_those_of_a_stable_sort(rows, draw):
    values, k = torch.tensor(rows), draw.draw(st.integers(1, 5))
    expected = values.sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(_first_largest(values, k), expected)
    assert torch.equal(_first_largest(values.mT.contiguous().mT, k), expected)  # in another layout


def test_without_shrinkage_the_similarity_is_the_cosine():
    inter = random_events(6)
    x = dense(inter)
    expected = cosine_similarity(x.T)
    np.fill_diagonal(expected, 0)
    model = ItemKNN(k=100, shrink=0).fit(inter)
    assert model.neighbors.shape == (12, 11)  # no more neighbors than other items
    found = np.zeros((12, 12))
    np.put_along_axis(found, model.neighbors.numpy(), model.similarities.numpy(), 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_blocks_do_not_change_the_neighbors(monkeypatch):
    inter = random_events(7)
    before = [everyone(model.fit(inter)) for model in (ItemKNN(k=3), UserKNN(k=3))]
    monkeypatch.setattr("recsys_lib.models.knn._CELLS", 100)  # two rows a block
    monkeypatch.setattr("recsys_lib.models.knn._EVENTS", 30)
    after = [everyone(model.fit(inter)) for model in (ItemKNN(k=3), UserKNN(k=3))]
    assert all((a == b).all() for a, b in zip(before, after, strict=True))
    monkeypatch.setattr("recsys_lib.models.knn._CACHED", 1)  # of the two one at a time
    by_rows = [everyone(model.fit(inter)) for model in (ItemKNN(k=3), UserKNN(k=3))]
    assert (by_rows[0] == before[0]).all()
    # A power that is no square root may have another last bit where a block ends.
    np.testing.assert_allclose(by_rows[1], before[1], rtol=1e-6)


def test_a_user_s_scores_do_not_depend_on_who_is_asked_with_them(monkeypatch):
    """To the last bit: a product with a sparse matrix sums in another order where its columns are few."""
    inter = random_events(8, n_users=150, n_items=90, n=4_000)
    model = ItemKNN(k=40, half_life_days=3.0).fit(inter)  # weights whose sums depend on their order
    together = model.score(torch.arange(150))  # (150, 90)
    monkeypatch.setattr("recsys_lib.models.ease._CACHED", 1)  # 32 users at a time, and 22 at the end
    assert torch.equal(model.score(torch.arange(150)), together)
    for n in (1, 2, 7, 8, 15, 16, 17, 31, 33):
        assert torch.equal(model.score(torch.arange(n)), together[:n]), n


@pytest.mark.parametrize("model", [ItemKNN, UserKNN])
def test_neighbors_refuse_nonsense(model):
    for name, value in (("k", 0), ("shrink", -1.0), ("power", -0.5)):
        with pytest.raises(ValueError, match=name):
            model(**{name: value})


# Content.


def test_words_and_weights_are_those_of_scikit_learn(movielens):
    texts = movielens.items["text"].tolist()
    assert tokenize("Don't Look_Now, 2 (1973): Été!") == ["don", "look_now", "1973", "été"]
    vectorizer = TfidfVectorizer(min_df=2)
    expected = vectorizer.fit_transform(texts)
    _, words = term_counts(texts, min_count=2)
    assert words == vectorizer.get_feature_names_out().tolist()
    model = TfidfContent(texts, min_count=2).fit(movielens.interactions)
    size = (len(texts), len(words))
    found = torch.sparse_coo_tensor(model.term_index, model.term_weights, size, check_invariants=False)
    np.testing.assert_allclose(found.to_dense().numpy(), expected.toarray(), atol=1e-6)


def test_the_score_is_the_cosine_with_the_mean_of_the_history(monkeypatch):
    texts = ["a dark dark film", "a light film", "dark light", "", "nothing shared here", "film film film"]
    frame = pd.DataFrame({"user_id": [0, 0, 1, 2, 2], "item_id": [0, 1, 3, 2, 5]})
    inter = Interactions.from_frame(frame, item_ids=range(6))
    vectors = TfidfVectorizer().fit_transform(texts).toarray()
    expected = np.vstack(
        [cosine_similarity(vectors[i].mean(0)[None], vectors) for i in ([0, 1], [3], [2, 5])]
    )
    model = TfidfContent(texts).fit(inter)
    np.testing.assert_allclose(everyone(model), expected, atol=1e-6)
    for cells in (1, 2 * int(model.n_terms)):  # one user a block, two users a block
        monkeypatch.setattr("recsys_lib.models.content._CELLS", cells)
        np.testing.assert_allclose(everyone(model), expected, atol=1e-6)


def test_texts_that_do_not_fit_are_refused():
    inter = random_events(0)
    with pytest.raises(TypeError, match="got a single text"):
        TfidfContent("one text")
    with pytest.raises(ValueError, match="needs the items' texts"):
        TfidfContent().fit(inter)
    with pytest.raises(ValueError, match="12 items, 3 texts"):
        TfidfContent(["a b c"] * 3).fit(inter)
    with pytest.raises(TypeError, match=r"texts\[4\] is None"):
        TfidfContent([*["some text"] * 4, None, *["some text"] * 7]).fit(inter)


def test_items_without_words_are_no_trouble():
    model = TfidfContent(["!"] * 12).fit(random_events(0))
    assert (everyone(model) == 0).all()


# Matrix factorization of implicit feedback.


@pytest.mark.parametrize("loss", ["bpr", "bce", "softmax"])
def test_the_loss_is_the_librarys_on_the_scores_of_the_batch(loss):
    inter = random_events(8)
    model = MatrixFactorization(dim=4, epochs=1, loss=loss, l2=0.3, n_negatives=2).fit(inter)
    crow, own = inter.csr()
    sampler = NegativeSampler(crow, own, inter.n_items)
    users = torch.repeat_interleave(torch.arange(inter.n_users), crow.diff())[:20]
    items = own[:20]
    found = model.objective(users, items, sampler, seed_generator(3))
    scores, p = model.score(users), model.user_factors[users]
    if loss == "softmax":
        plain = torch.nn.functional.cross_entropy(scores, items)
        q = model.item_factors
        penalty = 0.15 * (p.square().sum(1).mean() + q.square().sum() / inter.n_items)
    else:
        negatives = sampler.sample(users, 2, seed_generator(3))
        positive, negative = scores.gather(1, items[:, None])[:, 0], scores.gather(1, negatives)
        labels = torch.tensor([1.0, 0.0, 0.0]).expand(20, 3)
        logits = torch.cat([positive[:, None], negative], 1)
        bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        plain = bpr_loss(positive, negative) if loss == "bpr" else bce
        touched = torch.cat([items[:, None], negatives], 1)
        q, b = model.item_factors[touched], model.item_bias[touched]
        penalty = 0.15 * (p.square().sum() + q.square().sum() + b.square().sum()) / 20
    torch.testing.assert_close(found, plain + penalty, rtol=1e-4, atol=1e-6)


def test_bpr_is_matrix_factorization_with_that_loss():
    inter = random_events(9)
    options = {"dim": 5, "epochs": 3, "batch_size": 32, "seed": 4}
    one, two = BPR(**options).fit(inter), MatrixFactorization(loss="bpr", **options).fit(inter)
    assert (everyone(one) == everyone(two)).all()
    assert "loss" not in one.config
    shared = {k: v for k, v in MatrixFactorization().config.items() if k != "loss"}
    assert BPR().config == shared


def test_hard_negatives_are_the_best_of_their_pool():
    inter = random_events(10)
    model = BPR(dim=4, epochs=2, negatives="hard", n_negatives=2, hard_pool=3).fit(inter)
    sampler = NegativeSampler(*inter.csr(), inter.n_items)
    users = torch.arange(20)
    found = model.prepare(inter, seed_generator(0)).sampler.sample(users, 2, seed_generator(1))
    pool = sampler.sample(users, 6, seed_generator(1)).view(20, 2, 3)
    scores = model.score(users).gather(1, pool.view(20, 6)).view(20, 2, 3)
    assert torch.equal(found, pool.gather(2, scores.argmax(2, keepdim=True)).squeeze(2))


def test_a_sampler_of_ones_own_takes_the_place_of_the_models():
    inter = random_events(10)

    class Only:
        """Every negative is item 3."""

        def sample(self, users, k=1, generator=None):
            return torch.full((len(users), k), 3)

    model = BPR(dim=4, epochs=20, sampler=Only()).fit(inter)
    assert (model.item_bias.argmin() == 3).all()
    assert "sampler" not in model.config
    own = NegativeSampler(*inter.csr(), inter.n_items)
    same = [BPR(dim=4, epochs=2, sampler=sampler).fit(inter) for sampler in (None, own)]
    assert (everyone(same[0]) == everyone(same[1])).all()


def test_early_stopping_restores_the_best_epoch_and_a_refit_finds_it_again(movielens):
    inter = movielens.interactions.positives(4.0)
    split = leave_last_out(inter[inter.users < 150], 0.2)
    options = {"dim": 16, "learning_rate": 0.05, "batch_size": 512, "l2": 0.0}
    model = BPR(**options, epochs=40, patience=2, check_every=2).fit(split.train, split.validation)
    checks = {int(h["epoch"]): h["ndcg@10"] for h in model.log if "ndcg@10" in h}
    assert len(model.log) < 40  # it stopped
    assert model.best_epoch == max(checks, key=checks.get)
    held_out = HeldOut.of(split.validation, split.train)
    assert validation_ndcg(model, held_out, split.train) == pytest.approx(max(checks.values()))
    refit = BPR(**options, epochs=model.best_epoch).fit(split.train)
    assert (everyone(refit) == everyone(model)).all()
    assert [h["loss"] for h in refit.log] == [h["loss"] for h in model.log][: model.best_epoch]


def test_the_loss_falls(movielens):
    model = BPR(dim=8, epochs=4, n_negatives=1).fit(movielens.interactions.positives(4.0))
    losses = [h["loss"] for h in model.log]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.4 < math.log(2) + 0.02 > losses[0]


def test_nothing_to_learn_from_is_said():
    frame = pd.DataFrame([(u, i) for u in range(3) for i in range(4)], columns=["user_id", "item_id"])
    with pytest.warns(UserWarning, match="BPR: there is nothing to learn from"):
        model = BPR(dim=2, epochs=3).fit(Interactions.from_frame(frame))
    assert (model.log, model.best_epoch) == ([], 0)
    assert np.isfinite(everyone(model)).all()


def test_users_without_events_get_the_item_biases():
    inter = random_events(11)
    model = BPR(dim=4, epochs=5).fit(inter)
    empty = inter.n_users - 1
    assert torch.equal(model.score(torch.tensor([empty]))[0], model.item_bias.detach())
    assert model.item_bias.detach().abs().max() > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("dim", 0), ("epochs", 0), ("n_negatives", 0), ("hard_pool", 0), ("batch_size", 0)),
        *(("learning_rate", 0.0), ("l2", -1.0), ("init_scale", 0.0), ("patience", 0), ("check_every", 0)),
        *(("loss", "hinge"), ("negatives", "none")),
    ],
)
def test_matrix_factorization_refuses_nonsense(name, value):
    with pytest.raises(ValueError, match=name):
        MatrixFactorization(**{name: value})


def test_validation_without_anything_held_out_is_refused():
    inter = random_events(12)
    with pytest.raises(ValueError, match="nothing is held out"):
        BPR(epochs=1).fit(inter, validation=inter)


# Ratings.


def test_ratings_of_movielens(movielens):
    split = random_split(movielens.interactions, (0.8, 0.1, 0.1), seed=0)
    years = torch.tensor(movielens.items["year"].fillna(1995).to_numpy(dtype=float))
    names = sorted({name for genres in movielens.items["genres"] for name in genres})
    genres = torch.tensor([[float(n in g) for n in names] for g in movielens.items["genres"]])
    decades = torch.nn.functional.one_hot((years // 10).long() - 192)
    features = torch.cat([genres, decades], 1)
    rmse = {}
    for name, model in (
        ("factors", BiasedMF()),
        ("features", BiasedMF(item_features=features)),
        ("biases", BiasedMF(dim=1, epochs=1)),
    ):
        predicted = model.fit(split.train).predict(split.test.users, split.test.items)
        assert 1 <= predicted.min() <= predicted.max() <= 5
        rmse[name] = (predicted - split.test.ratings).square().mean().sqrt().item()
    spread = (split.test.ratings - split.train.ratings.mean()).square().mean().sqrt().item()
    # Shares of the spread, as measured: .851 for the biases, .798 with factors, .793 with features.
    assert 0.785 * spread < rmse["features"] < rmse["factors"] - 0.003
    assert rmse["factors"] < 0.803 * spread
    assert rmse["biases"] > 0.84 * spread


@pytest.mark.parametrize("cells", [2**22, 60])  # all at once, and two users a block
def test_certain_neighbors_make_the_update_a_ridge_regression(cells, monkeypatch):
    monkeypatch.setattr("recsys_lib.models.biased_mf._CELLS", cells)
    # With no uncertainty on the other side, and priors of zero mean, sklearn's ridge gives the same.
    inter = random_events(13)
    d, noise = 3, 0.7
    users = _Side(inter.n_users, d, free_bias=d, constant=d + 1, device=torch.device("cpu"))
    items = _Side(inter.n_items, d, free_bias=d + 1, constant=d, device=torch.device("cpu"))
    items.mean[:, [0, 1, 2, 4]] = torch.randn(inter.n_items, 4, generator=seed_generator(0))
    size = (inter.n_users, inter.n_items)
    observed = _Observations(inter.users, inter.items, inter.ratings, size)
    error = users.update(observed, items, torch.tensor(noise))
    for user in range(inter.n_users):
        mine = inter.users == user
        if not mine.any():
            assert users.mean[user].tolist() == [0, 0, 0, 0, 1]
            continue
        q, bias = items.mean[inter.items[mine]][:, :4], items.mean[inter.items[mine], 4]
        ridge = Ridge(alpha=noise, fit_intercept=False).fit(q, inter.ratings[mine] - bias)
        np.testing.assert_allclose(users.mean[user, :4], ridge.coef_, atol=1e-4)
    # The error that is reported is E[(r - x.y)^2] without the sum of r^2, here with uncertain users.
    x = torch.distributions.MultivariateNormal(users.mean[:, :4], users.covariance).sample((4000,))
    x = torch.cat([x, torch.ones(4000, inter.n_users, 1)], 2)  # (S, n_users, d + 2)
    product = (x[:, inter.users] * items.mean[inter.items]).sum(2)  # (S, E)
    sampled = (inter.ratings - product).square().sum(1).mean() - inter.ratings.square().sum()
    assert error.item() == pytest.approx(sampled.item(), rel=0.02)


def test_an_item_without_ratings_is_placed_by_its_features():
    # Users of two tastes, items of two kinds; the last item of each kind has no ratings.
    rng = np.random.default_rng(0)
    kind = np.arange(20) % 2
    rows = [
        (u, i, 5.0 if kind[i] == u % 2 else 2.0) for u in range(40) for i in range(18) if rng.random() < 0.6
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating"])
    inter = Interactions.from_frame(frame, item_ids=range(20))
    features = torch.nn.functional.one_hot(torch.tensor(kind)).float()
    users, cold = torch.tensor([0, 1]), torch.tensor([18, 18])
    placed = BiasedMF(dim=2, item_features=features).fit(inter).predict(users, cold)
    assert placed[0] > 4.5
    assert placed[1] < 2.5
    blind = BiasedMF(dim=2).fit(inter).predict(users, cold)
    assert (blind - inter.ratings.mean()).abs().max() < 0.5


def test_predictions_are_the_scores_within_the_scale():
    inter = random_events(14)
    model = BiasedMF(dim=2).fit(inter)
    users, items = torch.tensor([0, 3, 29]), torch.tensor([5, 11, 0], dtype=torch.int32)
    expected = model.score(users).gather(1, items.long()[:, None])[:, 0].clamp(1, 5)
    torch.testing.assert_close(model.predict(users, items), expected)
    with pytest.raises(IndexError, match="item 12 is unknown"):
        model.predict(torch.tensor([0]), torch.tensor([12]))
    with pytest.raises(ValueError, match="one length"):
        model.predict(users, items[:2])


def test_ratings_that_make_no_sense_are_refused():
    frame = pd.DataFrame({"user_id": [0, 1], "item_id": [0, 1], "rating": [3.0, None]})
    with pytest.raises(ValueError, match="1 of 2 events have none"):
        BiasedMF().fit(Interactions.from_frame(frame))
    inter = random_events(0)
    with pytest.raises(ValueError, match=r"item_features must be \(12, n_features\)"):
        BiasedMF(item_features=torch.ones(3, 2)).fit(inter)
    with pytest.raises(ValueError, match="must be finite"):
        BiasedMF(item_features=torch.full((12, 1), torch.nan)).fit(inter)
    for name, value in (("dim", 0), ("epochs", 0), ("feature_l2", 0.0)):
        with pytest.raises(ValueError, match=name):
            BiasedMF(**{name: value})


# Files: what can go wrong with them.


@pytest.fixture
def saved(tmp_path):
    """A folder with a saved BPR."""
    BPR(dim=4, epochs=2).fit(random_events(15)).save_pretrained(tmp_path / "bpr")
    return tmp_path / "bpr"


def edit(folder, **changes):
    config = json.loads((folder / CONFIG_FILE).read_text())
    config.update(changes)
    (folder / CONFIG_FILE).write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def test_the_wrong_class_is_named(saved):
    with pytest.raises(ValueError, match=r"holds a BPR, not a EASE; use BPR\.from_pretrained"):
        EASE.from_pretrained(saved)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 0.999])
def test_truncated_weights_are_noticed(saved, share):
    content = (saved / WEIGHTS_FILE).read_bytes()
    (saved / WEIGHTS_FILE).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        BPR.from_pretrained(saved)


def test_a_damaged_configuration_is_noticed(saved):
    content = (saved / CONFIG_FILE).read_text()
    (saved / CONFIG_FILE).write_text(content[:50])
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        BPR.from_pretrained(saved)


def test_configurations_that_do_not_fit_are_refused(saved):
    edit(saved, momentum=0.9)
    with pytest.raises(ValueError, match="names momentum, which BPR does not take"):
        BPR.from_pretrained(saved)
    edit(saved, momentum=..., dim=8)
    with pytest.raises(ValueError, match=r"item_factors has shape \(12, 4\).*\(12, 8\)"):
        BPR.from_pretrained(saved)
    edit(saved, dim=4, n_items=0)
    with pytest.raises(ValueError, match="n_items as a number above zero"):
        BPR.from_pretrained(saved)


def test_missing_files_are_named(saved, tmp_path):
    (saved / WEIGHTS_FILE).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        BPR.from_pretrained(saved)
    (saved / CONFIG_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        BPR.from_pretrained(str(saved))
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        BPR.from_pretrained(tmp_path / "nothing")


def test_weights_that_lack_something_are_refused(saved, monkeypatch):
    state = saving.load_file(saved / WEIGHTS_FILE)
    state.pop("item_bias")
    saving.save_file(state, saved / WEIGHTS_FILE)
    with pytest.raises(ValueError, match="lacks item_bias"):
        BPR.from_pretrained(saved)
    saving.save_file({**state, "item_bias": torch.zeros(12), "deep.er": torch.zeros(1)}, saved / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=r"holds deep\.er, which BPR has no place for"):
        BPR.from_pretrained(saved)


@pytest.mark.parametrize("step", ["save_file", "json"])
def test_an_interrupted_save_leaves_nothing_that_looks_finished(saved, monkeypatch, step):
    model = BPR.from_pretrained(saved)

    def interrupted(state, path, **_):
        if step == "save_file":
            path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    if step == "save_file":
        monkeypatch.setattr(saving, "save_file", interrupted)
    else:
        monkeypatch.setattr(type(saved), "write_text", lambda self, *_, **__: interrupted(None, self))
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(saved)
    monkeypatch.undo()
    assert not [p.name for p in saved.iterdir() if p.name.startswith(".")]
    assert not (saved / CONFIG_FILE).exists()
    with pytest.raises(FileNotFoundError, match="saving was interrupted"):
        BPR.from_pretrained(saved)


def test_saved_files_can_be_read_by_others(saved, tmp_path):
    (tmp_path / "any").touch()
    assert stat.S_IMODE((saved / WEIGHTS_FILE).stat().st_mode) == stat.S_IMODE(
        (tmp_path / "any").stat().st_mode
    )


def test_loading_by_name_asks_the_hub(saved, monkeypatch):
    asked = []

    def download(repo_id, filename, revision=None, **_):
        asked.append((repo_id, filename, revision))
        return str(saved / filename)

    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download)
    monkeypatch.setattr(saving, "hf_hub_download", download)
    monkeypatch.setattr(saving, "_hub_answers", lambda: True)
    model = BPR.from_pretrained("someone/a-model", revision="v2")
    assert (everyone(model) == everyone(BPR.from_pretrained(saved))).all()
    assert {name for name, *_ in asked} == {"someone/a-model"}
    assert {file for _, file, _ in asked} == {CONFIG_FILE, WEIGHTS_FILE, *IDS_FILES.values()}
    assert {revision for *_, revision in asked} == {"v2"}
    again = recsys_lib.load("someone/a-model", revision="v2")
    assert (everyone(again) == everyone(model)).all()


def test_a_folder_that_is_not_there_is_named_at_once(saved, monkeypatch):
    monkeypatch.setattr(saving, "hf_hub_download", lambda *_, **__: pytest.fail("the hub was asked"))
    monkeypatch.chdir(saved.parent)
    with pytest.raises(FileNotFoundError, match=r"bpr/typo is not a folder"):
        BPR.from_pretrained("bpr/typo")
    with pytest.raises(FileNotFoundError, match=r"tpyo is not a folder; .* \. holds bpr"):
        recsys_lib.load("./tpyo")
    monkeypatch.undo()
    # Where the hub cannot be reached, the folder is named, without half a minute of tries.
    monkeypatch.setattr(saving, "_hub_answers", lambda: False)
    for load in (recsys_lib.load, BPR.from_pretrained):
        with pytest.raises(FileNotFoundError, match=r"there is no folder models/typo in .*cannot be reached"):
            load("models/typo")


def test_ids_come_back_in_their_own_type(tmp_path):
    for ids in (["007", "010"], [7, 10], [1.5, 2.5], pd.to_datetime(["2020-01-01", "2021-01-01"])):
        frame = pd.DataFrame({"user_id": ids, "item_id": ids})
        model = Popularity().fit(Interactions.from_frame(frame))
        model.save_pretrained(tmp_path)
        loaded = recsys_lib.load(tmp_path)
        assert loaded.item_ids.equals(model.item_ids)
        assert loaded.item_ids.dtype == model.item_ids.dtype


def test_ids_that_are_missing_or_damaged(saved):
    (saved / "item_ids.parquet").write_bytes(b"half a fi")
    with pytest.raises(ValueError, match=r"item_ids\.parquet is damaged"):
        BPR.from_pretrained(saved)
    pd.DataFrame({"id": [1, 2, 3]}).to_parquet(saved / "item_ids.parquet")
    with pytest.raises(ValueError, match="holds 3 ids for a model of 12"):
        BPR.from_pretrained(saved)
    for name in ("item_ids", "user_ids"):
        (saved / f"{name}.parquet").unlink()
    model = BPR.from_pretrained(saved)  # saved by a version that did not keep them
    assert model.item_ids is None
    assert model.recommend(torch.tensor([0]), k=2)[0].shape == (1, 2)
    with pytest.raises(ValueError, match="this BPR was saved without the ids"):
        model.recommend_frame([0])


def test_a_class_that_is_not_here_is_named(saved):
    edit(saved, model_class="Unheard")
    with pytest.raises(ValueError, match="holds a Unheard, which is no model of this library"):
        recsys_lib.load(saved)


def test_a_budget_of_time_and_an_interrupt_reach_a_fit(monkeypatch):
    inter = random_events(3)
    with pytest.warns(UserWarning, match="stopped by max_seconds"):
        model = BPR(dim=4, epochs=10_000_000).fit(inter, max_seconds=0.05, progress=False)
    assert model.stopped_by == "time"
    assert len(model.log) < 10_000_000
    with pytest.raises(ValueError, match="max_seconds must be above 0"):
        model.fit(inter, max_seconds=0)
    steps = iter(range(100))
    plain = BPR.objective

    def press(self, *arguments):
        if next(steps) == 5:
            raise KeyboardInterrupt
        return plain(self, *arguments)

    monkeypatch.setattr(BPR, "objective", press)
    with pytest.warns(UserWarning, match="stopped by Ctrl-C"):
        model = BPR(dim=4, epochs=50, batch_size=32).fit(inter, progress=False)
    assert model.fitted
    assert model.stopped_by == "interrupt"
    assert np.isfinite(everyone(model)).all()


def test_hyper_parameters_can_be_replaced_while_loading(saved):
    assert BPR.from_pretrained(saved, epochs=7).epochs == 7
    assert BPR.from_pretrained(saved, epochs=7).config["epochs"] == 7
    with pytest.raises(TypeError, match="momentum"):
        BPR.from_pretrained(saved, momentum=1)
    with pytest.raises(ValueError, match="device 'nowhere'"):
        BPR.from_pretrained(saved, map_location="nowhere")


# What a model gets from the base class.


class Layered(Recommender):
    """Made of layers that draw from the global random state, as any layer of torch does."""

    width: int = option("of the hidden layer", default=3)
    seed: int = option("of everything random", default=0)
    body: torch.nn.Module = learned("the first layer")
    head: torch.nn.Module = learned("the second")

    def build(self) -> None:
        self.body = torch.nn.Sequential(torch.nn.Linear(self.n_items, self.width), torch.nn.Dropout(0.5))
        self.head = torch.nn.Linear(self.width, self.n_items)

    def _fit(self, interactions, validation, progress):
        assert self.training
        x = interactions.matrix().to_dense()  # (n_users, n_items)
        self.head(self.body(x)).sum().backward()
        self.body.register_buffer("scale", self.head.weight.grad.clone())
        self._keep("x", x)

    def _score(self, users):
        return self.head(self.body(self.x[users])) + self.body.scale.sum()


def test_layers_are_reproducible_without_a_generator_and_come_back_from_files(tmp_path):
    inter = random_events(16)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = Layered().fit(inter)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert (everyone(Layered().fit(inter)) == everyone(first)).all()
    assert not (everyone(Layered(seed=1).fit(inter)) == everyone(first)).all()
    first.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    loaded = Layered.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert (everyone(loaded) == everyone(first)).all()
    assert all(p.requires_grad for p in loaded.parameters())
    assert sorted(n for n, _ in loaded.named_buffers()) == ["body.scale", "x"]


def test_a_fit_that_fails_leaves_no_half_fitted_model(monkeypatch):
    model = ItemKNN().fit(random_events(0))
    monkeypatch.setattr("recsys_lib.models.knn._nearest", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.fit(random_events(1))
    assert not model.fitted


def test_progress_is_a_bar_and_changes_nothing(capsys):
    inter = random_events(0)
    for model in (ItemKNN(), BiasedMF(), BPR(epochs=2)):
        quiet = everyone(model.fit(inter))
        assert (everyone(model.fit(inter, progress=True)) == quiet).all()
    assert capsys.readouterr().out == ""


def test_validation_ndcg_is_the_evaluations(movielens):
    from recsys_lib.evaluation import evaluate

    split = leave_last_out(movielens.interactions.positives(4.0))
    model = EASE().fit(split.train)
    expected = evaluate(model, split.validation, seen=split.train).metrics["ndcg@10"]
    found = validation_ndcg(model, HeldOut.of(split.validation, split.train), split.train)
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", HISTORY_MODELS)
def test_times_that_are_no_seconds_are_refused_with_a_history(name):
    model = HISTORY_MODELS[name](half_life_days=2.0).fit(random_events(3))
    seconds = [1_600_000_000, 1_600_086_400]
    assert model.score_histories([[1, 2], []], [seconds, []]).isfinite().all()
    with pytest.raises(ValueError, match=f"{name}.score_histories, event 0: .*milliseconds"):
        model.score_histories([[1, 2]], [[1000 * s for s in seconds]])
    with pytest.raises(ValueError, match=r"score_histories, event 1: "):
        model.score_histories([[1, 2]], [[seconds[0], torch.iinfo(torch.int64).min]])


@pytest.fixture
def python_hears_ctrl_c():
    """As in a program that a person started; a worker of the tests may ignore the signal."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("python_hears_ctrl_c")
def test_alternating_passes_can_be_stopped(monkeypatch):
    inter = random_events(3)
    with pytest.warns(UserWarning, match="BiasedMF: stopped by max_seconds after epoch"):
        model = BiasedMF(dim=2, epochs=10_000_000).fit(inter, max_seconds=0.05, progress=False)
    assert np.isfinite(everyone(model)).all()
    passed = []
    plain = _Side.learn_prior

    def press(self, *arguments):
        passed.append(1)
        if len(passed) == 9:  # in the third pass: users and items each learn once a pass
            signal.raise_signal(signal.SIGINT)
        return plain(self, *arguments)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(_Side, "learn_prior", press)
    with pytest.warns(UserWarning, match="stopped by Ctrl-C after epoch 5 of 50"):
        model = BiasedMF(dim=2).fit(inter, progress=False)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is before
    assert (everyone(model) == everyone(BiasedMF(dim=2, epochs=5).fit(inter, progress=False))).all()
    # In the first pass there is nothing to keep.
    monkeypatch.setattr(_Side, "learn_prior", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        BiasedMF(dim=2).fit(inter, progress=False)
