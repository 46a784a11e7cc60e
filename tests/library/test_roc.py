"""DeLong's interval, against the bootstrap and a double loop."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from recsys_lib.roc import placements, roc_auc


@pytest.fixture
def sample():
    g = torch.Generator().manual_seed(0)
    positive = torch.arange(140) < 60
    scores = torch.randn(140, generator=g) + 0.7 * positive
    return scores, positive, scores + torch.randn(140, generator=g)


def test_the_area_is_scikit_learn_s_with_ties_too(sample):
    scores, positive, _ = sample
    for x in (scores, scores.round()):
        assert roc_auc(x, positive).estimate.value == pytest.approx(roc_auc_score(positive, x))


def test_the_interval_is_that_of_the_definition_and_close_to_the_bootstrap_s(sample):
    scores, positive, _ = sample
    x, y = scores[positive].double(), scores[~positive].double()
    psi = (x[:, None] > y).double() + 0.5 * (x[:, None] == y)
    error = (psi.mean(1).var() / len(x) + psi.mean(0).var() / len(y)).sqrt().item()
    got = roc_auc(scores, positive)
    assert got.estimate.high - got.estimate.value == pytest.approx(1.959964 * error, rel=1e-5)
    g = torch.Generator().manual_seed(1)
    draws = [
        psi[torch.randint(len(x), (len(x),), generator=g)][
            :, torch.randint(len(y), (len(y),), generator=g)
        ].mean()
        for _ in range(2000)
    ]
    assert torch.stack(draws).std().item() == pytest.approx(error, rel=0.1)


def test_two_numbers_of_the_same_people_are_compared_in_pairs(sample):
    scores, positive, noisy = sample
    gap = roc_auc(scores, positive, noisy).over_chance
    alone = [roc_auc(x, positive) for x in (scores, noisy)]
    assert gap.mean == pytest.approx(alone[0].estimate.value - alone[1].estimate.value)
    apart = sum((x.over_chance.high - x.over_chance.mean) ** 2 for x in alone) ** 0.5
    assert 0 < gap.high - gap.mean < apart  # they go together, so the difference is surer
    same = roc_auc(scores, positive, scores).over_chance
    assert (same.mean, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_groups_that_do_not_overlap_and_groups_that_are_alike():
    positive = torch.tensor([True, True, False, False])
    apart = roc_auc(torch.tensor([3.0, 4.0, 1.0, 2.0]), positive)
    assert apart.estimate == (1.0, 1.0, 1.0)
    assert apart.over_chance.clear
    assert f"{roc_auc(torch.zeros(4), positive):.2f}".startswith("0.50")


def test_what_cannot_be_compared_is_refused():
    two = torch.tensor([True, False, False])
    with pytest.raises(ValueError, match="two or more of each group"):
        roc_auc(torch.rand(3), two)
    with pytest.raises(ValueError, match="scores"):
        placements(torch.tensor([1.0, torch.nan, 2.0]), two)
    with pytest.raises(ValueError, match="bool"):
        placements(torch.rand(3), two.long())
