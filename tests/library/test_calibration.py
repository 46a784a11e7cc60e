import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as theirs
from sklearn.calibration import calibration_curve

from recsys_lib.calibration import (
    brier_score,
    expected_calibration_error,
    log_loss,
    reliability,
    temperature_of,
)

quick = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)


def events(seed, n=200):
    """Probabilities that are right by construction, (N,), and what came, (N,)."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(n, generator=generator, dtype=torch.float64)
    return p, (torch.rand(n, generator=generator, dtype=torch.float64) < p).long()


@quick
@given(seeds)
def test_log_loss_and_brier_are_those_of_scikit_learn(seed):
    p, y = events(seed)
    assert log_loss(p, y).item() == pytest.approx(theirs.log_loss(y.numpy(), p.numpy(), labels=[0, 1]))
    assert brier_score(p, y).item() == pytest.approx(theirs.brier_score_loss(y.numpy(), p.numpy()))


@quick
@given(seeds)
def test_the_curve_is_that_of_scikit_learn(seed):
    p, y = events(seed)
    ours = reliability(p, y, 10)
    came, said = calibration_curve(y.numpy(), p.numpy(), n_bins=10)
    np.testing.assert_allclose(ours.observed, came)
    np.testing.assert_allclose(ours.predicted, said)
    assert int(ours.n_events.sum()) == len(p)


def test_values_by_hand():
    p, y = torch.tensor([0.8, 0.8, 0.2, 0.4]), torch.tensor([1, 0, 0, 1])
    assert log_loss(p, y).item() == pytest.approx(-math.log(0.8 * 0.2 * 0.8 * 0.4) / 4)
    assert brier_score(p, y).item() == pytest.approx((0.04 + 0.64 + 0.04 + 0.36) / 4)
    # Two bins: [0, .5) says .3 and half came; [.5, 1] says .8 and half came.
    bins = reliability(p, y, 2)
    torch.testing.assert_close(
        bins.predicted, torch.tensor([0.3, 0.8], dtype=torch.float64), atol=1e-6, rtol=0
    )
    assert bins.observed.tolist() == [0.5, 0.5]
    assert bins.n_events.tolist() == [2, 2]
    assert expected_calibration_error(p, y, 2).item() == pytest.approx((0.2 + 0.3) / 2)


def test_a_certain_error_costs_everything_and_certainty_that_is_right_nothing():
    assert log_loss(torch.tensor([0.0, 0.5]), torch.tensor([1, 1])).item() == math.inf
    assert log_loss(torch.tensor([0.0, 1.0]), torch.tensor([0, 1])).item() == 0.0
    # A probability of 1 belongs to the last bin.
    assert reliability(torch.tensor([1.0]), torch.tensor([1]), 4).n_events.tolist() == [1]


def test_the_share_of_ones_is_calibrated_and_still_no_forecast():
    _, y = events(0, 4000)
    q = y.double().mean()
    constant = torch.full(y.shape, float(q), dtype=torch.float64)
    assert expected_calibration_error(constant, y).item() == pytest.approx(0.0, abs=1e-12)
    assert brier_score(constant, y).item() == pytest.approx(float(q * (1 - q)))
    assert log_loss(constant, y).item() == pytest.approx(-float(q * q.log() + (1 - q) * (1 - q).log()))


def test_true_probabilities_are_calibrated_and_sharpened_ones_are_not():
    p, y = events(1, 50_000)
    sharp = torch.sigmoid(torch.logit(p) * 3)
    assert expected_calibration_error(p, y).item() < 0.01
    assert expected_calibration_error(sharp, y).item() > 0.1


def test_bins_of_equal_counts_hold_equally_many_and_split_no_value():
    p, y = events(2, 1000)
    assert reliability(p, y, 10, equal_counts=True).n_events.tolist() == [100] * 10
    tied = torch.tensor([0.1] * 7 + [0.5, 0.6, 0.7])
    bins = reliability(tied, torch.ones(10), 5, equal_counts=True)
    assert bins.n_events.max() == 7
    assert bins.n_events.sum() == 10
    assert (bins.predicted.diff() > 0).all()


@quick
@given(seeds, st.floats(0.2, 5.0))
def test_the_temperature_undoes_what_was_multiplied(seed, factor):
    p, y = events(seed, 5000)
    logits = torch.logit(p).clamp(-30, 30)
    found = temperature_of(logits * factor, y)
    assert found == pytest.approx(temperature_of(logits, y) * factor, rel=1e-6)
    assert found / factor == pytest.approx(1.0, abs=0.2)


def test_no_other_temperature_is_likelier():
    p, y = events(3)
    logits = 2.5 * torch.logit(p)
    best = temperature_of(logits, y)
    least = log_loss((logits / best).sigmoid(), y)
    assert all(least < log_loss((logits / (best * by)).sigmoid(), y) for by in (0.9, 0.99, 1.01, 1.1))


def test_wrong_input_is_named():
    p, y = torch.tensor([0.2, 0.8]), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="take their sigmoid first"):
        log_loss(torch.tensor([-2.0, 3.0]), y)
    with pytest.raises(ValueError, match="take their sigmoid first"):
        brier_score(torch.tensor([torch.nan, 0.5]), y)
    with pytest.raises(ValueError, match="labels must be 0 or 1"):
        brier_score(p, torch.tensor([1, 5]))
    with pytest.raises(ValueError, match="of 1 or more"):
        log_loss(p, y[:1])
    with pytest.raises(ValueError, match="of 1 or more"):
        log_loss(p[:0], y[:0])
    with pytest.raises(ValueError, match="n_bins must be at least 1"):
        reliability(p, y, 0)
    with pytest.raises(ValueError, match="against the logits"):
        temperature_of(torch.tensor([1.0, -1.0]), y)
    with pytest.raises(ValueError, match="tell all labels apart"):
        temperature_of(torch.tensor([-1.0, 1.0]), y)
    with pytest.raises(ValueError, match="must be finite"):
        temperature_of(torch.tensor([-torch.inf, 1.0]), y)
