"""Ranking by features: training lists look like test lists, features are what a refit would give."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from recsys_lib.data import Interactions
from recsys_lib.models import EASE, LinearListwise, PairNetwork
from recsys_lib.models.core.pair_tables import CANDIDATE_FEATURES, PairTables, retrieval_features
from recsys_lib.models.core.windows import shuffle_ties, strictly_before
from recsys_lib.models.pair_features import _Pooled

DAY = 86_400


def some_events(seed: int = 0, n_users: int = 15, n_items: int = 12, n: int = 110) -> Interactions:
    """Over three months, with tied times and repeated items."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "user_id": rng.integers(n_users, size=n),
            "item_id": rng.integers(n_items, size=n),
            "timestamp": rng.integers(30, size=n) * 3 * DAY,
        }
    )
    return Interactions.from_frame(frame, user_ids=range(n_users), item_ids=range(n_items))


def learned_from(model, inter: Interactions):
    """The examples of a fit."""
    kept = []
    prepare = model.prepare
    model.prepare = lambda *args: kept.append(prepare(*args)) or kept[0]
    model.fit(inter, device="cpu", progress=False)
    return kept[0]


def seconds(inter: Interactions, user: int) -> list[int]:
    return inter.timestamps[inter.users == user].tolist()


def only_past(inter: Interactions, user: int, n: int) -> Interactions:
    """All events but the user's after the first n."""
    kept = torch.ones(len(inter), dtype=torch.bool)
    kept[(inter.users == user).nonzero().squeeze(1)[n:]] = False
    return inter[kept]


def by_refitting(model, inter: Interactions, event: int) -> tuple[list[int], torch.Tensor]:
    """What a model that never saw the user's later events would offer, and its features of all items."""
    user, n = int(inter.users[event]), int(strictly_before(inter)[event])
    past = only_past(inter, user, n)
    retriever = EASE(l2=model.l2, recency=model.recency).fit(past, progress=False)
    scores = retriever.score(torch.tensor([user])).double()  # (1, I)
    tables = PairTables()
    tables.fill(past, model.window_days)
    history = inter.items[shuffle_ties(inter, torch.Generator().manual_seed(model.seed))][
        inter.users == user
    ][:n]
    times = torch.tensor(seconds(inter, user)[:n])
    moments = tables.moments(torch.tensor([0, n]), history, times, model.n_history, torch.tensor(0))
    everything = torch.arange(inter.n_items)[None]
    pairs = tables.pair_scalars(moments, everything)
    found = retrieval_features(scores, moments.seen, everything)
    features = tables.features(moments, everything, found, pairs)[0]  # (I, F)
    order = scores[0].masked_fill(moments.seen[0], -torch.inf).argsort(descending=True, stable=True)
    offered = [item for item in order.tolist() if not moments.seen[0, item]][: model.n_candidates]
    return offered, features


def test_training_lists_are_what_a_refit_would_have_offered():
    inter = some_events()
    model = LinearListwise(l2=3.0, recency=0.5, n_candidates=5, n_history=3, window_days=20.0)
    examples = learned_from(model, inter)
    row = 0
    for event in range(len(inter)):
        if not strictly_before(inter)[event]:
            continue
        offered, features = by_refitting(model, inter, event)
        target, later = int(inter.items[event]), set(inter.items[inter.users == inter.users[event]].tolist())
        others = [item for item in offered if item not in later]
        if target not in offered or not others:
            continue
        items = examples.items[row]
        assert items[0] == target
        assert set(items[1:].tolist()) - {-1} == set(others)
        there = items >= 0
        torch.testing.assert_close(
            examples.features[row, there], features[items[there]], rtol=1e-4, atol=1e-4
        )
        row += 1
    assert row == len(examples.items) > 15


def test_a_leak_is_made_on_purpose_only():
    """Of features that know the target, the rank of the target is better."""
    inter = some_events(1, n_users=40, n=400)
    rank = CANDIDATE_FEATURES.index("minus the logarithm of its rank")
    honest, leaking = (
        learned_from(LinearListwise(l2=3.0, n_candidates=12, leak=leak), inter).features[:, 0, rank].mean()
        for leak in (False, True)
    )
    assert leaking > honest + 0.1


def test_the_last_events_are_targets_of_one_moment():
    inter = some_events(2)
    model = LinearListwise(l2=3.0, n_candidates=12, last=0.3)
    told, before = model._targets(inter, strictly_before(inter))
    for user in range(inter.n_users):
        mine = inter.users == user
        times, count = inter.timestamps[mine], int(mine.sum())
        n = min(count, max(1, math.ceil(0.3 * count)))
        first = int((times < times[count - n]).sum())
        assert set(before[mine].tolist()) == {first}
        assert told[mine].tolist() == [place >= first > 0 for place in range(count)]
    one, _ = LinearListwise(last=1)._targets(inter, strictly_before(inter))
    assert int(one.sum()) >= 10


def test_features_say_what_they_are_called():
    """Four users; the moment is user 0's after items 0 and 1, at day 10."""
    rows = [(0, 0, 0), (0, 1, 10), (1, 0, 1), (1, 2, 2), (2, 1, 3), (2, 2, 9), (3, 2, 80), (3, 3, 81)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    frame["timestamp"] *= DAY
    inter = Interactions.from_frame(frame, user_ids=range(4), item_ids=range(5))
    tables = PairTables()
    tables.fill(inter, 8.0)
    moments = tables.moments(
        torch.tensor([0, 2]), torch.tensor([0, 1]), torch.tensor([0, 10 * DAY]), 3, torch.tensor(0)
    )
    assert moments.recent.tolist() == [[1, 0, -1]]
    items = torch.arange(5)[None]
    scores = torch.tensor([[9.0, 8.0, 3.0, 1.0, 2.0]])
    pairs = tables.pair_scalars(moments, items)
    found = tables.features(moments, items, retrieval_features(scores, moments.seen, items), pairs)[0]
    # Of the items not chosen, 2 has the best score, 4 the next.
    spread = np.std([3.0, 1.0, 2.0])
    assert found[2:, 0].tolist() == pytest.approx([1 / spread, -1 / spread, 0])
    assert found[2:, 1].tolist() == pytest.approx([0, -math.log(3), -math.log(2)])
    # Item 2 was chosen by three, by one of them with 0, by another with 1; each of these by two.
    assert found[2, 2] == pytest.approx(1 / math.sqrt(6))
    assert found[2, 3] == pytest.approx(1 / math.sqrt(6))
    assert found[3, 2] == 0
    assert found[2:, 4].tolist() == pytest.approx([math.log(4), math.log(2), 0])
    # Steps are two days, and the window is the four before the moment's, days 2 to 9. Item 2 had events on
    # the first and on the last of them; the one of day 80 has not happened yet.
    assert found[2:, 5].tolist() == pytest.approx([math.log(3), 0, 0])
    assert found[2:, 6].tolist() == pytest.approx([-math.log(2), -math.log(53), -math.log(53)])
    # The places of the history, and nothing where there is none.
    assert pairs[0, :, 2, 5].tolist() == pytest.approx([1, 1 / math.sqrt(2), 0])
    assert (pairs[0, 2] == 0).all()


def test_what_the_retriever_would_not_offer_stays_behind():
    inter = some_events()
    for cls in (LinearListwise, PairNetwork):
        model = cls(l2=3.0, n_candidates=4).fit(inter, device="cpu", progress=False)
        retriever = EASE(l2=3.0, recency=model.recency).fit(inter, progress=False)
        known = (inter.user_counts() > 0).nonzero().squeeze(1)
        ours, _ = model.recommend(known, 8, exclude=inter)
        theirs, _ = retriever.recommend(known, 8, exclude=inter)
        for a, b in zip(ours.tolist(), theirs.tolist(), strict=True):
            assert set(a[:4]) == set(b[:4])
            assert a[4:] == b[4:]


def test_counts_keep_their_type():
    model = LinearListwise(l2=3.0, n_candidates=4).fit(some_events(), device="cpu", progress=False)
    before = {name: tensor.clone() for name, tensor in model.tables.state_dict().items()}
    for name, tensor in model.half().tables.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_the_linear_model_learns_what_decides():
    """Whoever chose an item of a pair chooses the other one next; which is popular says nothing."""
    rng, rows = np.random.default_rng(0), []
    for user in range(60):
        pairs = rng.permutation(8)[:4]
        rows += [(user, 2 * p + side, 10 * k + side) for k, p in enumerate(pairs) for side in (0, 1)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    inter = Interactions.from_frame(frame, user_ids=range(60), item_ids=range(16))
    for cls in (LinearListwise, PairNetwork):
        model = cls(l2=5.0, n_candidates=15, epochs=20, last=1, batch_size=16)
        model.fit(inter, device="cpu", progress=False)
        best = model.score_histories([[0, 1, 6], [9, 8, 2], [5]])
        for row, seen in enumerate(([0, 1, 6], [9, 8, 2], [5])):
            best[row, seen] = -torch.inf
        assert best.argmax(1).tolist() == [7, 3, 4]


def test_the_network_is_small_and_pools_the_history_that_there_is():
    model = PairNetwork()
    net = model.make()
    assert sum(p.numel() for p in net.parameters()) < 7700
    features, pairs = torch.randn(2, 5, 7), torch.randn(2, 4, 5, 6)
    present = torch.tensor([[True, True, False, False], [False] * 4])
    found = net(features, pairs, present)
    other = pairs.clone()
    other[0, 2:] = 9.0  # what is not there is not read
    torch.testing.assert_close(net(features, other, present)[0], found[0])
    swapped = pairs[:, [1, 0, 2, 3]]
    torch.testing.assert_close(net(features, swapped, present)[0], found[0])  # the place is a scalar
    assert found.isfinite().all()
    with pytest.raises(ValueError, match="dim=10 cannot be shared evenly among n_heads=4"):
        PairNetwork(dim=10)
    assert isinstance(net, _Pooled)
