"""Exposure, groups and calibrated lists: by hand, and against all lists there are."""

import math
from itertools import permutations

import pytest
import torch

from recsys_lib.fairness import between_groups, calibrated, exposure, head_items, miscalibration, tastes


def test_the_head_is_the_fewest_items_with_half_of_the_events():
    assert head_items(torch.tensor([1, 6, 2, 1])).tolist() == [False, True, False, False]
    assert head_items(torch.tensor([3, 1, 3, 1])).tolist() == [True, False, True, False]


def test_exposure_weighs_places_as_ndcg_does():
    group = torch.tensor([True, False, True])
    got = exposure(torch.tensor([[0, 1, -1], [1, 2, 0], [-1, -1, -1]]), group)
    one, two, three = 1.0, 1 / math.log2(3), 0.5
    assert got.tolist() == pytest.approx([one / (one + two), (two + three) / (one + two + three), 0.0])


def test_two_groups_are_compared_with_their_own_variances():
    scipy = pytest.importorskip("scipy.stats")
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(300, generator=g), 3 * torch.randn(80, generator=g) + 0.5
    got = between_groups(a, b)
    want = scipy.ttest_ind(a.numpy(), b.numpy(), equal_var=False)
    low, high = want.confidence_interval()
    assert got.mean == pytest.approx(a.mean().item() - b.mean().item(), abs=1e-6)
    assert (got.low, got.high) == pytest.approx((low, high), abs=0.03)
    assert got.p_value == pytest.approx(want.pvalue, abs=0.02)
    with pytest.raises(ValueError, match="two or more"):
        between_groups(a, b[:1])


GENRES = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.0, 0.0]]).double()


def test_tastes_are_shares_of_genres():
    history = torch.tensor([[1.0, 1, 0, 1, 1, 0], [0.0, 0, 0, 0, 0, 1]])
    assert tastes(history, GENRES).tolist() == [[0.625, 0.375], [0.0, 0.0]]


def test_a_list_with_the_person_s_shares_is_calibrated_and_others_are_not():
    taste = torch.tensor([[0.5, 0.5]]).double()
    assert miscalibration(taste, torch.tensor([[0, 3]]), GENRES).item() == pytest.approx(0.0, abs=1e-12)
    got = miscalibration(taste, torch.tensor([[0, 1]]), GENRES, mix=0.01).item()
    assert got == pytest.approx(0.5 * math.log(0.5 / 0.995) + 0.5 * math.log(0.5 / 0.005))


def test_calibrated_lists_go_from_scores_to_tastes():
    items = torch.tensor([[0, 1, 2, 3, 4, -1]])
    scores = torch.tensor([[1.0, 0.9, 0.8, 0.1, 0.0, 0.0]]).double()
    taste = torch.tensor([[0.5, 0.5]]).double()
    assert calibrated(items, scores, taste, GENRES, 3, 0.0).tolist() == [[0, 1, 2]]
    four = items[:, :4], scores[:, :4]
    assert set(calibrated(*four, taste, GENRES, 2, 0.9)[0].tolist()) == {0, 3}
    assert calibrated(items, scores, taste, GENRES, 6, 0.5)[0, -1] == -1


def test_the_greedy_search_is_near_the_best_of_all_lists():
    g = torch.Generator().manual_seed(0)
    features = torch.rand(7, 3, generator=g).double()
    features /= features.sum(1, keepdim=True)
    for _ in range(5):
        scores = torch.rand(1, 7, generator=g).double().sort(descending=True).values
        taste = torch.rand(1, 3, generator=g).double()
        taste /= taste.sum()

        def worth(chosen, scores=scores, taste=taste):
            chosen = torch.tensor([chosen])
            return (
                0.5 * scores[0, chosen[0]].sum() - 0.5 * miscalibration(taste, chosen, features)[0]
            ).item()

        got = calibrated(torch.arange(7)[None], scores, taste, features, 3, 0.5)[0].tolist()
        best = max(worth(list(c)) for c in permutations(range(7), 3))
        assert worth(got) > 0.95 * best


def test_what_cannot_be_calibrated_is_refused():
    with pytest.raises(ValueError, match="at most 2"):
        calibrated(torch.tensor([[0, 1]]), torch.rand(1, 2), torch.rand(1, 2), GENRES, 3, 0.5)
