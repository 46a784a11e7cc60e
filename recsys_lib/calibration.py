"""Are probabilities what they say? Log-loss, Brier score, calibration, and temperature scaling.

All functions take probabilities or logits of yes-or-no events, and labels of 0 and 1. Results are float64
where the device has it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from recsys_lib.arguments import whole_number

__all__ = [
    "Reliability",
    "brier_score",
    "expected_calibration_error",
    "log_loss",
    "reliability",
    "temperature_of",
]


def log_loss(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The mean negative log-likelihood of the labels: -mean [y log p + (1 - y) log(1 - p)].

    A probability of 0 for what happened makes it infinite, as it should be.

    Args:
        probabilities: (N,) in [0, 1], that the label is 1.
        labels: (N,) 0 or 1.

    Returns:
        () at least 0. Always saying the share of ones gives that share's entropy.

    Raises:
        ValueError: shapes that differ, nothing at all, or values out of range.

    Source: Good 1952, "Rational Decisions", section 7.
    """
    probabilities, labels = _checked(probabilities, labels)
    said = torch.where(labels > 0, probabilities, 1 - probabilities)  # (N,)
    return -said.log().mean()


def brier_score(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The mean squared error of the probabilities: mean (p - y)^2, from 0 to 1.

    Always saying the share of ones, q, scores q (1 - q). Arguments as for ``log_loss``; returns ().

    Source: Brier 1950, "Verification of Forecasts Expressed in Terms of Probability", for one class of two:
    half of the value of eq. 2.
    """
    probabilities, labels = _checked(probabilities, labels)
    return (probabilities - labels).square().mean()


class Reliability(NamedTuple):
    """What a calibration curve draws: a bin a row, empty bins left out.

    Attributes:
        predicted: (b,) mean probability of the bin's events.
        observed: (b,) share of them that happened.
        n_events: (b,) int64, how many they are.
    """

    predicted: Tensor
    observed: Tensor
    n_events: Tensor


def reliability(
    probabilities: Tensor, labels: Tensor, n_bins: int = 15, *, equal_counts: bool = False
) -> Reliability:
    """Events in bins of like probability: what was said there, and what came.

    Args:
        probabilities: (N,) in [0, 1].
        labels: (N,) 0 or 1.
        n_bins: bins of equal width over [0, 1].
        equal_counts: bins with (nearly) equally many events in place of equal width. Equal probabilities stay
            in one bin.

    Raises:
        ValueError: as ``log_loss``, or no bin.
    """
    probabilities, labels = _checked(probabilities, labels)
    n_bins = whole_number(n_bins, "n_bins", at_least=1)
    if equal_counts:
        _, group = probabilities.unique(return_inverse=True)  # (N,) number of its value
        times = group.bincount()  # (V,)
        # A value goes where the middle of its events falls.
        middle = times.cumsum(0) - times / 2  # (V,)
        place = (middle * n_bins / len(labels)).long().clamp(max=n_bins - 1)[group]  # (N,)
    else:
        place = (probabilities * n_bins).long().clamp(max=n_bins - 1)  # (N,)
    count = place.bincount(minlength=n_bins)  # (n_bins,)
    there = count > 0  # (n_bins,)
    said, came = (place.bincount(weights=x, minlength=n_bins)[there] for x in (probabilities, labels))
    return Reliability(said / count[there], came / count[there], count[there])


def expected_calibration_error(
    probabilities: Tensor, labels: Tensor, n_bins: int = 15, *, equal_counts: bool = False
) -> Tensor:
    """How far probabilities are from what came, in the mean over bins, weighted by their events.

        ECE = sum_b (n_b / N) |observed_b - predicted_b|

    It depends on the bins: with more of them noise counts as error. A constant equal to the share of ones has
    an error of zero, so read it beside the log-loss. Arguments as for ``reliability``; returns () in [0, 1].

    Source: Naeini, Cooper, Hauskrecht 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning";
    Guo, Pleiss, Sun, Weinberger 2017, "On Calibration of Modern Neural Networks", eq. 3.
    """
    bins = reliability(probabilities, labels, n_bins, equal_counts=equal_counts)
    return ((bins.observed - bins.predicted).abs() * bins.n_events).sum() / bins.n_events.sum()


def temperature_of(logits: Tensor, labels: Tensor) -> float:
    """The temperature T that makes sigma(logits / T) likeliest; choose it on events that trained nothing.

    One number, so the order of the events stays, and with it every ranking metric. Above 1 the model was too
    sure of itself. The log-likelihood is concave in 1 / T, so its best value is found by halving.

    Args:
        logits: (N,).
        labels: (N,) 0 or 1.

    Raises:
        ValueError: shapes that differ, values out of range, or no best temperature above zero: labels that
            the logits tell apart without error, or that go against them.

    Source: Guo, Pleiss, Sun, Weinberger 2017, "On Calibration of Modern Neural Networks", section 4.2.
    """
    if not bool(logits.isfinite().all()):
        raise ValueError("logits must be finite")
    logits, labels = _checked(logits, labels, probabilities=False)

    def slope(inverse: float) -> float:
        """The derivative of the log-likelihood by 1 / T."""
        return float((logits * (labels - (logits * inverse).sigmoid())).sum())

    if slope(0.0) <= 0:
        raise ValueError("the labels go against the logits, or do not depend on them: no temperature helps")
    if bool((logits * (2 * labels - 1) >= 0).all()):
        raise ValueError("the logits tell all labels apart: the likelihood only grows as T nears 0")
    high = 1.0
    while slope(high) > 0:
        high *= 2
    low = 0.0
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return 2 / (low + high)


def _checked(values: Tensor, labels: Tensor, *, probabilities: bool = True) -> tuple[Tensor, Tensor]:
    """Both (N,) in the widest floating type of the device."""
    if values.ndim != 1 or labels.shape != values.shape or not len(values):
        raise ValueError(
            "expected probabilities or logits (N,) and labels (N,) with N of 1 or more, got "
            f"{tuple(values.shape)} and {tuple(labels.shape)}"
        )
    dtype = torch.float32 if values.device.type == "mps" else torch.float64
    if probabilities and not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError("probabilities must lie in [0, 1]; for logits take their sigmoid first")
    labels = labels.to(values.device)
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError("labels must be 0 or 1")
    return values.to(dtype), labels.to(dtype)
