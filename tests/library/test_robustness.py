"""False accounts, their signs, and explanations: right values, brute force, and what must not change."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch

from recsys_lib.data import Interactions
from recsys_lib.models import EASE, Popularity
from recsys_lib.robustness import (
    account_signs,
    counterfactual,
    fewest_to_fall_behind,
    hits,
    inject,
    overlap,
    score_drop,
    unusual,
)
from recsys_lib.roc import roc_auc


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def people():
    g = np.random.default_rng(0)
    fame = 1 / np.arange(1, 61)
    rows = [(u, i) for u in range(80) for i in g.choice(60, 9, replace=False, p=fame / fame.sum())]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id"])
    frame["timestamp"] = g.integers(10**9, 10**9 + 10**6, len(frame))
    frame["rating"] = g.choice([4.0, 5.0], len(frame))
    return Interactions.from_frame(frame, item_ids=range(60))


@pytest.mark.parametrize("kind", ["random", "bandwagon", "segment"])
def test_accounts_come_after_the_genuine_people_and_like_the_target(people, kind):
    both = inject(people, [50], kind, 6, 5, generator(), segment=[3, 7, 9, 11, 13, 50], pool=10)
    assert both.n_users == 86
    genuine = both[both.users < 80]
    for name in ("users", "items", "ratings", "timestamps"):
        assert torch.equal(getattr(genuine, name), getattr(people, name))
    assert both.user_ids[:80].equals(people.user_ids)
    assert both.user_ids.is_unique
    famous = set(people.item_counts().argsort(descending=True, stable=True)[:10].tolist())
    allowed = {"random": set(range(60)), "bandwagon": famous, "segment": {3, 7, 9, 11, 13}}[kind]
    for user in range(80, 86):
        mine = both.items[both.users == user].tolist()
        assert len(mine) == len(set(mine)) == 6
        assert 50 in mine
        assert set(mine) - {50} <= allowed
    assert (both.ratings[both.users >= 80] == 5.0).all()
    assert both.timestamps.min() >= people.timestamps.min()


def test_the_same_generator_gives_the_same_accounts_and_none_changes_nothing(people):
    one, two = (inject(people, [5], "random", 4, 8, generator(3)) for _ in range(2))
    assert torch.equal(one.items, two.items)
    assert not torch.equal(one.items, inject(people, [5], "random", 4, 8, generator(4)).items)
    assert inject(people, [5], "random", 0, 8, generator()) is people


def test_accounts_may_push_several_items_at_once(people):
    both = inject(people, [40, 50], "random", 3, 6, generator())
    mine = both.items[both.users >= 80].view(3, 8)
    assert (torch.isin(mine, torch.tensor([40, 50])).sum(1) == 2).all()


def test_ids_that_are_words_get_words(people):
    frame = people.to_frame().assign(user_id=lambda f: "u" + f["user_id"].astype(str))
    both = inject(Interactions.from_frame(frame), [5], "random", 2, 3, generator())
    assert both.user_ids[-2:].tolist() == ["account-0", "account-1"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "love"}, "kind must be one of random, bandwagon, segment"),
        ({"targets": [5, 60]}, "of the 60 items"),
        ({"targets": []}, "of the 60 items"),
        ({"kind": "segment", "segment": [1, 2]}, "filler=5 is more than the 2"),
        ({"n_accounts": -1}, "n_accounts"),
    ],
)
def test_attacks_that_cannot_be_are_refused(people, given, message):
    usual = {"targets": [5], "kind": "random", "n_accounts": 3, "filler": 5}
    with pytest.raises(ValueError, match=message):
        inject(people, **(usual | given), generator=generator())


def test_accounts_move_the_item_into_lists(people):
    target, k = 55, 5
    users = torch.arange(80)[~torch.isin(torch.arange(80), people.users[people.items == target])]
    before = hits(Popularity().fit(people, device="cpu"), [target, 0], people, users, k)
    both = inject(people, [target], "bandwagon", 70, 3, generator(), pool=10)
    after = hits(Popularity().fit(both, device="cpu"), [target], both, users, k)
    assert before.shape == (len(users), 2)
    assert before[:, 0].sum() == 0
    # The most liked film is in the list of whoever does not have it.
    assert torch.equal(before[:, 1] == 0, torch.isin(users, people.users[people.items == 0]))
    assert after.mean() == 1.0


def test_accounts_of_a_kind_are_alike_and_are_found(people):
    both = inject(people, [55], "bandwagon", 12, 9, generator(), pool=10)
    signs = account_signs(both, k=5)
    false = torch.arange(92) >= 80
    assert roc_auc(torch.tensor(signs["similarity"]), false).estimate.value > 0.9
    assert roc_auc(unusual(signs), false).estimate.value > 0.8


def test_the_signs_are_those_of_the_definition():
    rows = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (2, 2), (2, 3)]
    events = Interactions.from_frame(pd.DataFrame(rows, columns=["user_id", "item_id"]), user_ids=range(4))
    signs = account_signs(events, k=2)
    assert signs["similarity"].tolist() == pytest.approx([(1 + 6**-0.5) / 2, (1 + 6**-0.5) / 2, 6**-0.5, 0.0])
    assert signs["fame"].tolist() == pytest.approx([np.log(6) / 2, np.log(6) / 2, np.log(3) / 3, 0.0])
    assert signs["length"].tolist() == pytest.approx([np.log(2), np.log(2), np.log(3), 0.0])


def test_the_unusual_is_measured_from_the_median():
    values = pd.DataFrame({"a": [0.0, 1.0, 2.0, 3.0, 100.0], "b": [0.0] * 5})
    assert unusual(values).tolist() == pytest.approx([x / 1.4826 for x in (2, 1, 0, 1, 98)])


def linear(B):
    """Scores histories as EASE does."""

    def score(histories):
        return torch.stack([B[h].sum(0) if len(h) else torch.zeros(B.shape[1]) for h in histories])

    return score


def test_the_score_falls_by_what_the_deleted_events_gave():
    B = torch.randn(30, 30, generator=generator()).double()
    histories = [torch.tensor([1, 4, 9]), torch.tensor([2, 3])]
    items, gone = torch.tensor([7, 8]), [torch.tensor([0, 2]), torch.tensor([], dtype=torch.int64)]
    scores = linear(B)(histories)
    got = score_drop(linear(B), histories, items, gone)
    assert got[0].item() == pytest.approx(((B[1, 7] + B[9, 7]) / scores[0].std()).item())
    assert got[1].item() == 0.0


def test_overlap_counts_what_two_explanations_share():
    assert overlap([torch.tensor([1, 2, 3])], [torch.tensor([3, 9, 1])]).tolist() == pytest.approx([2 / 3])
    with pytest.raises(ValueError, match="one size"):
        overlap([torch.tensor([1])], [torch.tensor([1, 2])])


def is_out(B, history, places, item, k):
    keep = [place for place in range(len(history)) if place not in places]
    scores = B[history[keep]].sum(0)
    scores[[i for i in history.tolist() if i != item]] = -torch.inf
    return int((scores > scores[item]).sum()) >= k


@pytest.mark.parametrize("seed", range(6))
def test_a_counterfactual_puts_the_item_out_of_the_list_and_needs_each_of_its_events(seed):
    B = torch.randn(25, 25, generator=generator(seed)).double() + 0.2
    history = torch.tensor([0, 3, 6, 9, 12, 15, 18])
    scores = B[history].sum(0)
    scores[history] = -torch.inf
    item = int(scores.topk(3).indices[-1])
    found = counterfactual(linear(B), history, item, k=3)
    places = set(found.tolist())
    assert is_out(B, history, places, item, 3)
    assert not any(is_out(B, history, places - {p}, item, 3) for p in places)
    sizes = [n for n in range(1, 7) for c in combinations(range(7), n) if is_out(B, history, set(c), item, 3)]
    assert len(places) <= min(sizes) + 1  # greedy, so not always the smallest


def test_a_counterfactual_is_asked_of_an_item_in_the_list_and_may_not_be_found():
    B = torch.zeros(9, 9)
    B[:3, 5] = 1.0  # whatever is left, item 5 is first
    with pytest.raises(ValueError, match="not among the first 1"):
        counterfactual(linear(B), torch.tensor([0, 1, 2]), 7, k=1)
    assert counterfactual(linear(B), torch.tensor([0, 1, 2]), 5, k=1) is None


@pytest.mark.parametrize("seed", range(8))
def test_the_fewest_events_behind_a_rival_are_the_fewest_of_all_sets(seed):
    item, rival = torch.randn(2, 7, generator=generator(seed)).double()
    got = fewest_to_fall_behind(item, rival)

    def behind(places):
        keep = [p for p in range(7) if p not in places]
        return item[keep].sum() < rival[keep].sum()

    smallest = next((n for n in range(7) if any(behind(c) for c in combinations(range(7), n))), None)
    assert (None if got is None else len(got)) == smallest
    assert got is None or behind(got.tolist())


def test_ease_s_contributions_are_what_its_score_is_made_of(people):
    model = EASE(l2=5.0).fit(people, device="cpu")
    history = people.histories([4])[0]
    drop = score_drop(model.score_histories, [history], torch.tensor([30]), [torch.tensor([1])])
    scores = model.score_histories([history])[0].double()
    assert drop.item() == pytest.approx(
        (model.item_weights[history[1], 30].double() / scores.std()).item(), abs=1e-6
    )
