"""Differential privacy: clip what a person adds, add noise, and count what it gives away.

Everywhere here the unit is a person: two data sets are neighbors if one has a person more, with the whole
history. (epsilon, delta) means that no outcome is more than e^epsilon times as likely with the person as
without, but for a probability delta (Dwork, Kenthapadi, McSherry, Mironov, Naor 2006, "Our Data, Ourselves").
Seeds are as secret as the data: who knows the noise can take it off.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from recsys_lib.arguments import whole_number
from recsys_lib.data.ragged import row_of_each

__all__ = [
    "clipped",
    "gaussian_epsilon",
    "gaussian_noise",
    "noise_for",
    "noisy_clipped_sum",
    "noisy_counts",
    "noisy_gram",
    "subsampled_epsilon",
]

_ORDERS = (*range(2, 64), 80, 96, 128, 192, 256, 512)


# ------------------------------------------------------------------------------------------------ mechanisms


def clipped(gradients: Tensor, clip: float) -> Tensor:
    """Each person's gradient, made no longer than ``clip``: g min(1, clip / |g|).

    Args:
        gradients: (B, ...) one a person.
        clip: above 0.

    Returns:
        As ``gradients``; short ones are left as they are.
    """
    if not clip > 0:
        raise ValueError(f"clip must be above 0, got {clip}")
    norms = gradients.flatten(1).norm(dim=1)  # (B,)
    factor = (clip / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=1.0)  # (B,)
    return gradients * factor.view(-1, *[1] * (gradients.ndim - 1))


def noisy_clipped_sum(
    gradients: Tensor, clip: float, noise_multiplier: float, generator: torch.Generator
) -> Tensor:
    """The sum of people's clipped gradients, plus Gaussian noise of ``noise_multiplier * clip`` a coordinate.

    With one person more or less the sum moves by ``clip`` at most, so the noise hides who was there.

    Args:
        gradients: (B, ...) one a person, of all that the person has in the data.
        clip: the longest gradient that a person may have.
        noise_multiplier: sigma, in units of ``clip``; 0 adds none and promises nothing.
        generator: of the noise, on the gradients' device.

    Returns:
        (...) the sum. Divide by a number that does not depend on the data, such as the expected batch.

    Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", algorithm 1; by people in place of
    examples: McMahan, Ramage, Talwar, Zhang 2018, "Learning Differentially Private Recurrent Language
    Models".
    """
    if noise_multiplier < 0:
        raise ValueError(f"noise_multiplier must be 0 or more, got {noise_multiplier}")
    total = clipped(gradients, clip).sum(dim=0)  # (...)
    return total + _noise(total.shape, noise_multiplier * clip, total, generator)


def noisy_gram(
    crow: Tensor, items: Tensor, n_items: int, noise_multiplier: float, generator: torch.Generator
) -> Tensor:
    """X'X by the Gaussian mechanism, each person's row scaled to length one: what EASE may be made of.

    A person of n items adds 1 / n to each pair of them, at most 1 in all by Frobenius' norm; so noise of
    standard deviation ``noise_multiplier`` on the diagonal and above it, mirrored below, hides the person.

    Args:
        crow: (n_users + 1,) int64, where each person's items begin.
        items: (E,) int64, each person's distinct items.
        n_items: size of the catalog.
        noise_multiplier: sigma; ``gaussian_noise`` says which one an epsilon needs.
        generator: of the noise, on the CPU.

    Returns:
        (n_items, n_items) float64, symmetric; it need not be positive semidefinite.

    Source: Dwork, Talwar, Thakurta, Zhang 2014, "Analyze Gauss: Optimal Bounds for Privacy-Preserving
    Principal Component Analysis", algorithm 1.
    """
    matrix = _unit_rows(crow, items, n_items)  # (n_users, n_items)
    gram = matrix.mT @ matrix  # (n_items, n_items)
    upper = _noise(gram.shape, noise_multiplier, gram, generator).triu()  # (n_items, n_items)
    return gram + upper + upper.triu(1).mT


def noisy_counts(
    crow: Tensor, items: Tensor, n_items: int, noise_multiplier: float, generator: torch.Generator
) -> Tensor:
    """Popularity by the Gaussian mechanism: each person's row has length one, as in ``noisy_gram``.

    Returns:
        (n_items,) float64; a person of n items adds 1 / sqrt(n) to each of them.
    """
    counts = _unit_rows(crow, items, n_items).sum(dim=0)  # (n_items,)
    return counts + _noise(counts.shape, noise_multiplier, counts, generator)


def _unit_rows(crow: Tensor, items: Tensor, n_items: int) -> Tensor:
    """The binary matrix with rows of length one: (n_users, n_items) float64 on the CPU."""
    crow, items = crow.cpu(), items.cpu()
    row = row_of_each(crow)  # (E,)
    matrix = torch.zeros(len(crow) - 1, n_items, dtype=torch.float64)  # (n_users, n_items)
    matrix[row, items] = 1.0
    return matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1.0).sqrt()


def _noise(shape: torch.Size, std: float, like: Tensor, generator: torch.Generator) -> Tensor:
    return std * torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)


# ------------------------------------------------------------------------------------------------ accounting


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """The epsilon of one release with Gaussian noise, exactly: sensitivity 1, noise ``noise_multiplier``.

        delta = Phi(1 / (2 s) - eps s) - e^eps Phi(-1 / (2 s) - eps s)

    Args:
        noise_multiplier: s, standard deviation in units of what one person can move.
        delta: above 0 and below 1.

    Returns:
        The smallest epsilon; 0 where the noise hides a person but for ``delta`` alone.

    Source: Balle and Wang 2018, "Improving the Gaussian Mechanism for Differential Privacy", theorem 8.
    """
    _check(noise_multiplier, delta)

    def excess(epsilon: float) -> float:
        return _gaussian_delta(noise_multiplier, epsilon) - delta

    return 0.0 if excess(0.0) <= 0 else _root(excess, 1.0)


def gaussian_noise(epsilon: float, delta: float) -> float:
    """The smallest noise with which one Gaussian release has this epsilon: ``gaussian_epsilon`` backwards."""
    if not epsilon > 0:
        raise ValueError(f"epsilon must be above 0, got {epsilon}")
    _check(1.0, delta)
    return _root(lambda s: _gaussian_delta(s, epsilon) - delta, 1.0)


def subsampled_epsilon(
    noise_multiplier: float, sample_rate: float, steps: int, delta: float, orders: Iterable[int] = _ORDERS
) -> float:
    """The epsilon of training by clipped noisy sums, each over people who are drawn by independent coins.

    By Renyi's divergence of whole orders a, with q the sample rate and s the noise:

        RDP(a) = 1 / (a - 1) log sum_k C(a, k) (1 - q)^(a - k) q^k exp((k^2 - k) / (2 s^2))
        eps    = min over a of  steps RDP(a) + log((a - 1) / a) - (log delta + log a) / (a - 1)

    It is an upper bound, as each accountant's is.

    Args:
        noise_multiplier: s, in units of ``clip``.
        sample_rate: q, the chance with which each person takes part in a step, above 0 and at most 1.
        steps: how many.
        delta: above 0 and below 1.
        orders: whole numbers of 2 or more.

    Source: Mironov, Talwar, Zhang 2019, "Renyi Differential Privacy of the Sampled Gaussian Mechanism",
    section 3.3; the second line after Balle, Barthe, Gaboardi, Hsu, Sato 2020, "Hypothesis Testing
    Interpretations and Renyi Differential Privacy", theorem 21.
    """
    _check(noise_multiplier, delta)
    steps = whole_number(steps, "steps", at_least=0)
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate must be above 0 and at most 1, got {sample_rate}")
    if steps == 0:
        return 0.0
    bounds = [
        steps * _renyi(noise_multiplier, sample_rate, a)
        + math.log1p(-1 / a)
        - (math.log(delta) + math.log(a)) / (a - 1)
        for a in (whole_number(order, "orders", at_least=2) for order in orders)
    ]
    return max(0.0, min(bounds))


def noise_for(epsilon: float, sample_rate: float, steps: int, delta: float) -> float:
    """The noise with which training has this epsilon: ``subsampled_epsilon`` backwards."""
    if not epsilon > 0:
        raise ValueError(f"epsilon must be above 0, got {epsilon}")
    return _root(lambda s: subsampled_epsilon(s, sample_rate, steps, delta) - epsilon, 1.0)


def _gaussian_delta(s: float, epsilon: float) -> float:
    far = _phi(-1 / (2 * s) - epsilon * s)  # underflows before e^epsilon overflows
    return _phi(1 / (2 * s) - epsilon * s) - (math.exp(epsilon + math.log(far)) if far > 0 else 0.0)


def _phi(x: float) -> float:
    """The normal distribution function; by erfc, since 1 + erf has lost all digits at x = -9."""
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _renyi(s: float, q: float, a: int) -> float:
    """RDP of whole order a of one step."""
    if q == 1:
        return a / (2 * s**2)
    terms = [
        math.lgamma(a + 1) - math.lgamma(k + 1) - math.lgamma(a - k + 1)
        + (a - k) * math.log1p(-q) + k * math.log(q) + (k * k - k) / (2 * s**2)
        for k in range(a + 1)
    ]  # fmt: skip
    top = max(terms)
    return (top + math.log(sum(math.exp(term - top) for term in terms))) / (a - 1)


def _root(excess: Callable[[float], float], start: float) -> float:
    """Where a falling function crosses zero, from the side where it is below: by halving."""
    low = high = start
    while excess(high) > 0:
        high *= 2
        if high > 1e9:
            raise ValueError("no noise is enough for so small an epsilon; take fewer steps or a larger delta")
    while excess(low) <= 0 and low > 1e-9:
        low /= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


def _check(noise_multiplier: float, delta: float) -> None:
    if not noise_multiplier > 0:
        raise ValueError(
            f"noise_multiplier must be above 0, got {noise_multiplier}: without noise there is no epsilon"
        )
    if not 0 < delta < 1:
        raise ValueError(f"delta must be above 0 and below 1, got {delta}")
