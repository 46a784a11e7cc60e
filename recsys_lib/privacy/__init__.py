"""What a model gives away about the people in its data, what hiding it costs, and how to forget someone."""

from recsys_lib.privacy.forgetting import ease_weights, forget_in_ease, without_rows
from recsys_lib.privacy.membership import how_well_found, log_rank
from recsys_lib.privacy.noise import (
    clipped,
    gaussian_epsilon,
    gaussian_noise,
    noise_for,
    noisy_clipped_sum,
    noisy_counts,
    noisy_gram,
    subsampled_epsilon,
)
from recsys_lib.privacy.private_factors import PrivateFactors

__all__ = [
    "PrivateFactors",
    "clipped",
    "ease_weights",
    "forget_in_ease",
    "gaussian_epsilon",
    "gaussian_noise",
    "how_well_found",
    "log_rank",
    "noise_for",
    "noisy_clipped_sum",
    "noisy_counts",
    "noisy_gram",
    "subsampled_epsilon",
    "without_rows",
]
