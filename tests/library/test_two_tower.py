"""Two towers: what they read, what they learn from, whom they serve and whom they refuse."""

import itertools

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

import recsys_lib
from recsys_lib.data import Interactions, leave_last_out
from recsys_lib.devices import seed_generator
from recsys_lib.evaluation import evaluate
from recsys_lib.losses import in_batch_softmax_loss, softmax_loss
from recsys_lib.models import NotFittedError, TwoTower
from recsys_lib.models.core.towers import HistoryAttention, HistoryMean, IdTower, TextTower
from recsys_lib.models.core.windows import strictly_before

N_ITEMS = 9
READING = ("history_mean", "history_attention", "text")


def events(histories: list[list[int]], times: list[list[int]] | None = None, n_items: int = N_ITEMS):
    """Histories as interactions, one second an event unless times are given; ids are names."""
    times = times or [list(range(len(history))) for history in histories]
    rows = [
        (f"u{user}", f"i{item}", time)
        for user, (history, seconds) in enumerate(zip(histories, times, strict=True))
        for item, time in zip(history, seconds, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    users, items = ([f"{kind}{i}" for i in range(n)] for kind, n in (("u", len(histories)), ("i", n_items)))
    return Interactions.from_frame(frame, user_ids=users, item_ids=items)


# Item 8 and user 4 have no events.
HISTORIES = [[0, 1, 2, 3], [0, 2, 1], [4, 0, 6, 7], [7, 0, 5], []]
COUNTS = torch.tensor([4, 2, 2, 1, 1, 1, 1, 2, 0])
TEXT = torch.randn(N_ITEMS, 5, generator=torch.Generator().manual_seed(0)) + 3


def small(**options) -> TwoTower:
    """A model that fits in a tenth of a second."""
    if "text" in (options.get("user_tower", ""), *options.get("item_tower", "").split("+")):
        options.setdefault("text", TEXT)
    return TwoTower(**{"dim": 4, "epochs": 2, "batch_size": 4, "seed": 3} | options)


def fit(model: TwoTower, inter: Interactions | None = None) -> TwoTower:
    return model.fit(events(HISTORIES) if inter is None else inter, device="cpu", progress=False)


TOWERS = list(itertools.product(("id", *READING), ("id", "text", "id+text")))


@pytest.fixture(scope="module", params=TOWERS, ids="-".join)
def any_pair(request) -> TwoTower:
    user, item = request.param
    return fit(small(user_tower=user, item_tower=item))


# No leak.

tied = st.lists(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, N_ITEMS - 1)), max_size=9), min_size=1, max_size=4
).filter(any)


def with_times(rows: list[list[tuple[int, int]]]) -> Interactions:
    return events([[i for _, i in row] for row in rows], [[t for t, _ in row] for row in rows])


def earlier(inter: Interactions, place: int) -> list[int]:
    """Items of the event's user at strictly earlier times, sorted."""
    before = (inter.users == inter.users[place]) & (inter.timestamps < inter.timestamps[place])
    return sorted(inter.items[before].tolist())


@settings(max_examples=30, deadline=None)
@given(tied)
def test_an_example_reads_what_came_strictly_before_it(rows):
    inter = with_times(rows)
    before = strictly_before(inter)
    assert before.tolist() == [len(earlier(inter, place)) for place in range(len(inter))]
    model = small()
    told = [place for place in range(len(inter)) if earlier(inter, place)]
    if not told:
        with pytest.raises(ValueError, match="no user has two events at different times"):
            fit(model, inter)
        return
    fit(model, inter)
    examples = model.prepare(inter, seed_generator(0))
    assert examples.users.tolist() == inter.users[told].tolist()
    assert examples.items.tolist() == inter.items[told].tolist()
    for place, start, length in zip(told, examples.starts.tolist(), examples.lengths.tolist(), strict=True):
        assert sorted(examples.read[start : start + length].tolist()) == earlier(inter, place)


class Counting(torch.nn.Module):
    """In place of a transformer: at each event, how often each item came so far in the row."""

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        return functional.one_hot(items, N_ITEMS).cumsum(1).float()  # (B, T, n_items)


@settings(max_examples=30, deadline=None)
@given(tied, st.integers(2, 5), st.integers(0, 99))
def test_attention_reads_what_came_strictly_before_too(rows, max_history, seed):
    inter = with_times(rows)
    if not (strictly_before(inter) > 0).any():
        return
    model = fit(small(user_tower="history_attention", max_history=max_history), inter)
    model.user.encoder = Counting()
    asked = []

    def objective(vectors, users, items, left_out, examples, generator):
        assert torch.equal(left_out, users[:, None] == users)
        asked.extend(zip(vectors.long(), users.tolist(), items.tolist(), strict=True))
        return vectors.sum()

    model.objective = objective
    found = sum(n for _, n in model.losses(model.prepare(inter, seed_generator(0)), seed_generator(seed)))
    assert found == len(asked)
    for counts, user, item in asked:
        read = sorted(torch.arange(N_ITEMS).repeat_interleave(counts).tolist())
        assert 0 < len(read) <= max_history
        # There is an event of this user and item before which all of that had happened.
        places = ((inter.users == user) & (inter.items == item)).nonzero().flatten().tolist()
        assert any(
            all(read.count(i) <= before.count(i) for i in read)
            for before in (earlier(inter, place) for place in places)
        )
    whole = all(len(row) <= max_history + 1 for row in rows)
    assert not whole or len(asked) == int((strictly_before(inter) > 0).sum())


def test_only_the_most_recent_events_are_read():
    model = fit(small(max_history=2))
    torch.testing.assert_close(model.score_histories([[5, 6, 0, 1]]), model.score_histories([[0, 1]]))
    assert not torch.allclose(model.score_histories([[5, 0, 1]]), model.score_histories([[5, 0]]))
    whole = fit(small())
    assert not torch.allclose(whole.score_histories([[5, 6, 0, 1]]), whole.score_histories([[0, 1]]))


# The towers.


@pytest.mark.parametrize("n_items", [8, 50])  # the whole catalog is mapped, or only what was read
def test_the_mean_of_a_history_is_a_mean(n_items):
    items = torch.tensor([3, 1, 1, 0, 7, 5, 3, 3])
    starts, lengths = torch.tensor([2, 0, 5]), torch.tensor([3, 5, 3])
    histories = [[1, 0, 7], [3, 1, 1, 0, 7], [5, 3, 3]]
    tower = HistoryMean(IdTower(n_items, 4, 1.0), n_items)
    table = tower.source.table.weight
    expected = torch.stack([table[history].mean(0) for history in histories])
    torch.testing.assert_close(tower(items, starts, lengths), expected)
    text = torch.randn(n_items, 5, generator=torch.Generator().manual_seed(1))
    for hidden in (0, 6):
        tower = HistoryMean(TextTower(5, 4, hidden), n_items)
        expected = torch.stack([tower.source.projection(text[history]).mean(0) for history in histories])
        torch.testing.assert_close(tower(items, starts, lengths, text), expected)


def test_attention_reads_each_history_by_itself(monkeypatch):
    torch.manual_seed(0)
    tower = HistoryAttention(N_ITEMS, 4, dim=8, n_layers=1, n_heads=2).eval()
    items = torch.tensor([3, 1, 1, 0, 7, 5])
    starts, lengths = torch.tensor([2, 0, 5, 1]), torch.tensor([3, 2, 1, 3])
    monkeypatch.setattr("recsys_lib.models.core.towers._EVENTS_AT_ONCE", 4)
    found = tower(items, starts, lengths)
    for row, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        alone = tower.encoder(items[None, start : start + length], lengths[row : row + 1])[0, -1]
        torch.testing.assert_close(found[row], alone)
    (gradient,) = torch.autograd.grad(found[1].sum(), tower.encoder.item_embedding.weight)
    assert set(gradient.abs().sum(1).nonzero().flatten().tolist()) == {3, 1}


# Vectors and scores.


def test_scores_are_the_products_of_the_vectors(any_pair):
    users, items = torch.tensor([2, 0, 3]), any_pair.encode_items()
    vectors = any_pair.encode_users(users)
    assert vectors.shape == (3, 4)
    assert items.shape == (N_ITEMS, 4)
    assert not vectors.requires_grad
    torch.testing.assert_close(vectors @ items.mT, any_pair.score(users))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    some = torch.tensor([5, 0], dtype=torch.int32)
    torch.testing.assert_close(any_pair.encode_items(some), items[some.long()])
    assert torch.equal(any_pair.encode_items(), items)
    items.zero_()  # a copy
    assert any_pair.encode_items().abs().sum() > 0


def test_a_history_stands_for_its_user(any_pair):
    if any_pair.user_tower == "id":
        for ask in (any_pair.score_histories, any_pair.encode_users):
            with pytest.raises(ValueError, match="knows users by number and reads no histories"):
                ask([[0, 1]])
        with pytest.raises(ValueError, match="knows users by number"):
            any_pair.update_histories(events(HISTORIES))
        with pytest.raises(ValueError, match="knows users by number"):
            any_pair.recommend_histories({"x": ["i1"]})
        return
    torch.testing.assert_close(
        any_pair.encode_users(HISTORIES[:4]), any_pair.encode_users(torch.arange(4)), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        any_pair.score_histories(HISTORIES), any_pair.score(torch.arange(5)), rtol=1e-4, atol=1e-5
    )
    frame = any_pair.recommend_histories({"a visitor": ["i1", "i5"]}, k=3)
    assert frame["user_id"].tolist() == ["a visitor"] * 3
    assert not {"i1", "i5"} & set(frame["item_id"])


def test_who_is_not_known_is_refused_by_name_and_gets_what_is_popular(any_pair):
    with pytest.raises(ValueError, match=r"user 4 \('u4'\) has no events"):
        any_pair.encode_users(torch.tensor([1, 4]))
    share = (COUNTS + 1) / (COUNTS + 1).sum()
    torch.testing.assert_close(any_pair.score(torch.tensor([4]))[0], share.log())
    with pytest.raises(IndexError, match="user 5 is unknown"):
        any_pair.encode_users(torch.tensor([5]))
    if any_pair.user_tower != "id":
        with pytest.raises(ValueError, match="history 1 is empty"):
            any_pair.encode_users([[0], []])


def test_a_number_that_is_an_id_is_named_as_a_number():
    frame = pd.DataFrame({"user_id": [70, 70], "item_id": [5, 6], "timestamp": [0, 1]})
    model = fit(small(user_tower="id"), Interactions.from_frame(frame, user_ids=[70, 80], item_ids=[5, 6, 9]))
    with pytest.raises(ValueError, match=r"user 1 \(80\) has no events"):
        model.encode_users(torch.tensor([1]))
    with pytest.raises(ValueError, match=r"item 2 \(9\) had no events"):
        model.encode_items(torch.tensor([2]))


def test_an_item_without_events_is_refused_by_name_where_only_its_number_is_read(any_pair):
    with pytest.raises(IndexError, match="item 9 is unknown"):
        any_pair.encode_items(torch.tensor([9]))
    if any_pair.item_tower == "id":
        with pytest.raises(ValueError, match=r"item 8 \('i8'\) had no events in fit"):
            any_pair.encode_items(torch.tensor([0, 8]))
        assert any_pair.encode_items()[8].tolist() == [0] * 4
        assert any_pair.score(torch.tensor([0]))[0, 8] == 0
        for texts in (["a text"], TEXT):
            with pytest.raises(ValueError, match='item_tower="id" reads no text'):
                any_pair.encode_items(texts)
        return
    assert any_pair.encode_items(torch.tensor([8])).norm() > 0
    # Its vector is that of its text: a new item with this text gets the same.
    torch.testing.assert_close(any_pair.encode_items(TEXT[8:]), any_pair.encode_items(torch.tensor([8])))
    new = any_pair.encode_items(TEXT[:2])
    assert torch.allclose(new, any_pair.encode_items(torch.tensor([0, 1]))) == (any_pair.item_tower == "text")
    with pytest.raises(ValueError, match=r"must be \(3, 5\), one row an item, got \(3, 4\)"):
        any_pair.encode_items(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="set its attribute encoder, or give the text's vector"):
        any_pair.encode_items(["a text"])


def test_an_item_without_events_is_known_where_the_whole_catalog_is_held_against():
    model = fit(small(loss="softmax"))
    assert model.encode_items(torch.tensor([8])).norm() > 0
    assert bool(model.item_known.all())


def test_any_pair_comes_back_from_its_files(any_pair, tmp_path):
    any_pair.save_pretrained(tmp_path)
    loaded = recsys_lib.load(tmp_path)
    assert torch.equal(loaded.score(torch.arange(5)), any_pair.score(torch.arange(5)))
    assert torch.equal(loaded.encode_items(), any_pair.encode_items())
    assert (loaded.user_tower, loaded.item_tower) == (any_pair.user_tower, any_pair.item_tower)
    if any_pair.item_tower != "id":
        assert torch.equal(loaded.encode_items(TEXT), any_pair.encode_items(TEXT))
    again = fit(loaded)  # what it knew of the texts came with it
    torch.testing.assert_close(again.score(torch.arange(5)), any_pair.score(torch.arange(5)))


def test_vectors_may_keep_their_length():
    model = fit(small(normalize=False))
    assert not torch.allclose(model.encode_items().norm(dim=1), torch.ones(N_ITEMS))
    torch.testing.assert_close(
        model.encode_users([[1]]) @ model.encode_items().mT, model.score_histories([[1]])
    )


# What it learns from.


def one_batch(model: TwoTower, inter: Interactions | None = None, seed: int = 0):
    """The first batch of an epoch: its loss, its users' and items' vectors, and the items (B,)."""
    fit(model, inter)
    seen = {}
    objective = model.objective

    def spy(vectors, users, items, left_out, examples, generator):
        seen.update(vectors=vectors, users=users, items=items, examples=examples)
        return objective(vectors, users, items, left_out, examples, generator)

    model.objective = spy
    examples = model.prepare(events(HISTORIES) if inter is None else inter, seed_generator(seed))
    loss, n = next(iter(model.losses(examples, seed_generator(seed))))
    assert n == len(seen["items"])
    u = functional.normalize(seen["vectors"], dim=1)
    return loss, u, functional.normalize(model.item.table.weight, dim=1), seen


LOG_Q = (COUNTS.clamp(min=1) / 14).log()  # an item without events counts as one


def test_the_loss_of_a_batch_is_the_papers():
    for log_q, corrected in (("all", True), ("negatives", False), ("none", True)):
        loss, u, v, seen = one_batch(small(batch_size=6, log_q=log_q))
        items = seen["items"]
        expected = in_batch_softmax_loss(
            u @ v[items].mT / 0.2, items, None if log_q == "none" else LOG_Q[items],
            correct_positive=corrected,
        )  # fmt: skip
        torch.testing.assert_close(loss, expected)
    loss, u, v, seen = one_batch(small(batch_size=6, masked="nothing", temperature=0.7, user_tower="id"))
    scores = u @ v[seen["items"]].mT / 0.7
    torch.testing.assert_close(loss, in_batch_softmax_loss(scores, None, LOG_Q[seen["items"]]))


def test_what_a_user_is_known_to_have_chosen_can_be_left_out():
    loss, u, v, seen = one_batch(small(batch_size=8, masked="known"))
    users, items = seen["users"].tolist(), seen["items"]
    known = torch.tensor([[item in HISTORIES[user] for item in items.tolist()] for user in users])
    scores = u @ v[items].mT / 0.2
    torch.testing.assert_close(loss, in_batch_softmax_loss(scores, None, LOG_Q[items], left_out=known))
    assert loss != in_batch_softmax_loss(scores, items, LOG_Q[items])


def test_the_catalog_as_negatives_and_some_of_it():
    loss, u, v, seen = one_batch(small(loss="softmax"))
    full = softmax_loss(u @ v.mT / 0.2, seen["items"])
    torch.testing.assert_close(loss, full)
    loss, u, v, seen = one_batch(small(loss="sampled_softmax", n_negatives=2000))
    full = softmax_loss(u @ v.mT / 0.2, seen["items"])
    torch.testing.assert_close(loss, full, rtol=0.05, atol=0)  # of very many draws, their mean


def test_the_penalty_is_half_the_mean_squared_length():
    with_penalty, _, _, seen = one_batch(small(l2=0.3, epochs=1, learning_rate=1e-12))
    without, *_ = one_batch(small(l2=0.0, epochs=1, learning_rate=1e-12))
    model = fit(small(l2=0.0, epochs=1, learning_rate=1e-12))
    lengths = (
        seen["vectors"].square().sum(1).mean() + model.item.table.weight[seen["items"]].square().sum(1).mean()
    )
    torch.testing.assert_close(with_penalty - without, 0.15 * lengths, rtol=1e-3, atol=1e-6)


def test_the_loss_can_be_replaced():
    calls = []

    def plain(scores, items, log_q, left_out):
        assert left_out is None
        assert scores.shape == (len(items), len(items))
        torch.testing.assert_close(log_q, LOG_Q[items])
        calls.append(len(items))
        return in_batch_softmax_loss(scores, items, log_q)

    users = torch.arange(5)
    found = fit(small(batch_loss=plain)).score(users)
    assert torch.equal(found, fit(small()).score(users))
    assert calls
    wrong = fit(small(batch_loss=lambda s, items, log_q, _: in_batch_softmax_loss(s, items, -log_q)))
    assert not torch.allclose(wrong.score(users), found)


class Always:
    """Draws one item for everyone."""

    def __init__(self, item: int) -> None:
        self.item = item

    def sample(self, users: Tensor, k: int = 1, generator: torch.Generator | None = None) -> Tensor:
        return torch.full((len(users), k), self.item)


def test_negatives_of_ones_own_are_added_to_the_batch():
    seen = {}

    def spy(scores, items, log_q, left_out):
        seen.update(scores=scores, items=items, left_out=left_out)
        return in_batch_softmax_loss(scores, items, log_q, left_out=left_out)

    fit(small(sampler=Always(8), batch_loss=spy, batch_size=10))
    assert seen["scores"].shape == (10, 11)
    assert seen["items"][10] == 8
    fit(small(sampler=Always(0), batch_loss=spy, batch_size=10, masked="known"))
    assert seen["left_out"][:, 10].all()  # everyone has it
    fit(small(sampler=Always(2), batch_loss=spy, batch_size=10, masked="known"))
    assert int(seen["left_out"][:, 10].sum()) == 3 + 2  # the examples of users 0 and 1
    # An item that is only ever a negative is pushed away from users on the whole.
    assert fit(small(sampler=Always(8), epochs=30)).score(torch.arange(4))[:, 8].mean() < -0.1
    assert fit(small(epochs=30)).score(torch.arange(4))[:, 8].mean() == 0


@pytest.mark.parametrize("user_tower", ["id", "history_mean", "history_attention"])
def test_learning_lowers_the_loss(user_tower):
    model = fit(small(user_tower=user_tower, epochs=20, batch_size=32, dropout=0.0))
    assert model.log[-1]["loss"] < model.log[0]["loss"] - 0.5


def test_without_the_correction_the_popular_are_not_found(movielens):
    split = leave_last_out(movielens.interactions.positives(4.0), 0.2)
    found = {}
    for log_q in ("all", "none"):
        model = fit(TwoTower(epochs=2, log_q=log_q), split.history)
        report = evaluate(model, split.test, seen=split.history, progress=False)
        found[log_q] = report.metrics["ndcg@10"]
    assert found["all"] > 1.5 * found["none"]


# What makes no sense is refused.


def test_options_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="dim=5 cannot be shared evenly among n_heads=2"):
        TwoTower(user_tower="history_attention", dim=5)
    assert TwoTower(dim=5).dim == 5
    with pytest.raises(ValueError, match='fine_tune needs item_tower="text", got "id"'):
        TwoTower(fine_tune=True)
    with pytest.raises(ValueError, match="user_tower must be one of id, history_mean"):
        TwoTower(user_tower="name")
    one = events([[0, 0], [0]], n_items=1)
    with pytest.raises(ValueError, match="there is one item"):
        fit(small(loss="sampled_softmax"), one)


def test_texts_that_do_not_fit_are_refused():
    reading = {"user_tower": "text", "item_tower": "id+text"}
    with pytest.raises(
        ValueError, match=r'user_tower="text", item_tower="id\+text"\) reads the items\' texts'
    ):
        fit(TwoTower(**reading))
    with pytest.raises(ValueError, match="and has none: give text="):
        fit(TwoTower(**reading, text_dim=5))
    with pytest.raises(ValueError, match="9 items, 8 texts"):
        fit(small(**reading, text=TEXT[:8]))
    with pytest.raises(TypeError, match="got a single text"):
        fit(small(**reading, text="films"))
    with pytest.raises(ValueError, match=r"must be \(9, D\), one row an item, got \(9,\)"):
        fit(small(**reading, text=TEXT[:, 0]))
    with pytest.raises(ValueError, match="must be finite; that of item 2 is not"):
        fit(small(**reading, text=TEXT.index_fill(0, torch.tensor([2]), torch.nan)))
    with pytest.raises(ValueError, match="fine_tune needs the texts themselves, got vectors"):
        fit(small(item_tower="text", fine_tune=True))


def test_nothing_is_encoded_before_fit():
    for ask in (lambda: TwoTower().encode_items(), lambda: TwoTower().encode_users([[0]])):
        with pytest.raises(NotFittedError):
            ask()
