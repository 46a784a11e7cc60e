"""Rating prediction: biases and factors, with the uncertainty of each kept while they are learned."""

import torch
from torch import Tensor

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets
from recsys_lib.devices import seed_generator
from recsys_lib.models.core.biased_factors import BiasedFactors
from recsys_lib.models.core.options import data, option
from recsys_lib.training import passes

__all__ = ["BiasedMF"]

_SMALLEST_VARIANCE = 1e-4
_CELLS = 2**22  # of the square matrices that are solved at once, 16 MB


class BiasedMF(BiasedFactors):
    """Predicts a rating from a mean, two biases and the product of two vectors.

        r_ui = mu + b_u + b_i + p_u . q_i + noise

    Biases and vectors have normal priors, and are learned by alternating least squares that keep their
    uncertainty: given the items' means and covariances, the best normal distribution of each user's
    (p_u, b_u) is a ridge regression in closed form, and the other way round. Plain alternating least squares
    treat the vector of an item with two ratings as if it were known, and overfit; here it counts as much
    as it is known. The variances of priors and noise are learned as well, so there is no penalty to tune.

    With ``item_features`` the prior mean of (q_i, b_i) is not one for all items but a linear function of the
    item's features (a ridge regression, learned along): an item without ratings is then placed by its
    genre and year. Without features, and for users, the prior mean is the average. So users and items
    without ratings get the prior: the average bias and the average vector.

    ``predict`` gives expected ratings, within the range of those seen in ``fit``; ``score`` leaves them
    unbounded, so that a ranking tells apart what would all get the highest rating.

    Duplicate ratings count as separate observations. Fitting holds about three times
    (n_users + n_items) (dim + 2)^2 float32 numbers: 0.2 GB for 70,000 users and items with 12 features, 3 GB
    with 64.

    Source: the model is Koren, Bell, Volinsky 2009, "Matrix Factorization Techniques for Recommender
    Systems", eq. 4; the learning Lim and Teh 2007, "Variational Bayesian Approach to Movie Rating
    Prediction"; features as the prior after Agarwal and Chen 2009, "Regression-based Latent Factor Models".
    """

    dim: int = option("length of the vectors", default=12, at_least=1)
    epochs: int = option("alternations between users and items", default=50, at_least=1)
    feature_l2: float = option("ridge penalty of the regression on features", default=1.0, above=0)
    seed: int = option("of the vectors' random start", default=0)
    item_features: Tensor | None = data(
        "(n_items, n_features) numbers, kept with the learned state", default=None
    )

    def __post_init__(self) -> None:
        """Makes the features a buffer, so that they are saved and moved with the model."""
        super().__post_init__()
        features = self.item_features
        del self.item_features
        self.register_buffer("item_features", None if features is None else torch.as_tensor(features).float())

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        events, device = interactions, interactions.items.device
        self._check_rated(events)
        mean = events.ratings.mean()
        ratings = events.ratings - mean  # (E,)
        size = (self.n_users, self.n_items)
        by_user = _Observations(events.users, events.items, ratings, size)
        by_item = _Observations(events.items, events.users, ratings, size[::-1])

        # A rating is one product of two vectors: x_u = (p_u, b_u, 1) and y_i = (q_i, 1, b_i).
        d = self.dim
        users = _Side(self.n_users, d, free_bias=d, constant=d + 1, device=device)
        items = _Side(self.n_items, d, free_bias=d + 1, constant=d, device=device)
        generator = seed_generator(self.seed, device)
        items.mean[:, :d] = 0.1 * torch.randn(self.n_items, d, generator=generator, device=device)
        # The features' first column is the constant: without other features the prior mean is the average.
        user_features = torch.ones(self.n_users, 1, device=device)
        item_features = torch.cat(
            [torch.ones(self.n_items, 1, device=device), *self._checked_features()], dim=1
        )  # (n_items, 1 + f)

        noise = ratings.square().mean().clamp(min=_SMALLEST_VARIANCE)  # ()
        for _ in passes(self.epochs, "BiasedMF", max_seconds=self.max_seconds, progress=progress):
            users.update(by_user, items, noise)
            users.learn_prior(user_features, self.feature_l2)
            error = items.update(by_item, users, noise)
            items.learn_prior(item_features, self.feature_l2)
            noise = ((ratings.square().sum() + error) / len(ratings)).clamp(min=_SMALLEST_VARIANCE)

        self._keep("mean", mean)
        self._keep_range(events.ratings)
        self._keep("user_factors", users.mean[:, :d])
        self._keep("user_bias", users.mean[:, d])
        self._keep("item_factors", items.mean[:, :d])
        self._keep("item_bias", items.mean[:, d + 1])

    def _checked_features(self) -> list[Tensor]:
        features = self.item_features
        if features is None:
            return []
        if features.ndim != 2 or len(features) != self.n_items:
            raise ValueError(
                f"item_features must be ({self.n_items}, n_features), one row an item, "
                f"got {tuple(features.shape)}"
            )
        if not bool(features.isfinite().all()):
            raise ValueError("item_features must be finite; replace what is missing")
        return [features]


class _Observations:
    """Ratings as two sparse matrices (n, m): how many there are of each pair, and their sum."""

    def __init__(self, rows: Tensor, columns: Tensor, ratings: Tensor, size: tuple[int, ...]) -> None:
        index = torch.stack([rows, columns])  # (2, E)
        ones = torch.ones_like(ratings)
        self.count = torch.sparse_coo_tensor(index, ones, size, check_invariants=False).coalesce()
        self.sum = torch.sparse_coo_tensor(index, ratings, size, check_invariants=False).coalesce()
        # Both have the same cells, in the order of their rows.
        self.crow = offsets(torch.bincount(self.count.indices()[0], minlength=size[0])).tolist()

    def rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The two matrices of some rows: (b, m), (b, m)."""
        cells = slice(self.crow[start], self.crow[stop])
        index = self.count.indices()[:, cells].clone()  # (2, E')
        index[0] -= start
        count, total = (
            torch.sparse_coo_tensor(
                index,
                matrix.values()[cells],
                (stop - start, matrix.shape[1]),
                is_coalesced=True,
                check_invariants=False,
            )
            for matrix in (self.count, self.sum)
        )
        return count, total


class _Side:
    """The normal distributions of all users, or of all items: n vectors of d + 2 entries, one constant."""

    def __init__(self, n: int, dim: int, free_bias: int, constant: int, device: torch.device) -> None:
        self.constant = constant
        self.free = torch.tensor([*range(dim), free_bias], device=device)  # (d + 1,) entries that are learned
        self.mean = torch.zeros(n, dim + 2, device=device)  # (n, d + 2)
        self.mean[:, constant] = 1.0
        self.covariance = torch.zeros(
            n, dim + 1, dim + 1, device=device
        )  # (n, d + 1, d + 1) of the free ones
        self.prior_mean = torch.zeros(n, dim + 1, device=device)  # (n, d + 1)
        # Wide at first. From a narrow one, and few ratings, the vectors shrink to zero before they have a
        # direction, and then the prior that is learned from them keeps them there.
        self.prior_variance = torch.ones(dim + 1, device=device)  # (d + 1,)

    def second_moment(self, rows: slice = slice(None)) -> Tensor:
        """E[x x'] = mean mean' + covariance, of all or of some: (n, d + 2, d + 2)."""
        mean = self.mean[rows]  # (n, d + 2)
        moment = mean[:, :, None] * mean[:, None, :]
        moment[:, self.free[:, None], self.free] += self.covariance[rows]
        return moment

    def update(self, observed: _Observations, other: "_Side", noise: Tensor) -> Tensor:
        """Sets every distribution to the best one given the other side's, a block of them at a time.

        Minimizing E[(r - x . y)^2] / noise + (x - prior)^2 / variance over the free entries of x is a ridge
        regression in which E[y y'] stands where y y' would.

        Returns:
            The expected squared error of all ratings, without its constant sum of r^2: ().
        """
        n, size = self.mean.shape
        others = other.second_moment().flatten(1)  # (m, (d + 2)^2)
        error = torch.zeros_like(noise)  # ()
        step = max(1, _CELLS // size**2)
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n))
            count, total = observed.rows(rows.start, rows.stop)  # (b, m), (b, m)
            moments = torch.sparse.mm(count, others).view(-1, size, size)
            sums = torch.sparse.mm(total, other.mean)  # (b, d + 2)
            free = self.free
            precision = moments[:, free[:, None], free] / noise + torch.diag(1 / self.prior_variance)
            # The constant entry is 1: what it explains is no longer to be explained.
            target = (sums[:, free] - moments[:, free, self.constant]) / noise  # (b, d + 1)
            target = target + self.prior_mean[rows] / self.prior_variance
            covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))  # (b, d + 1, d + 1)
            self.covariance[rows] = covariance
            self.mean[rows, free] = (covariance @ target[:, :, None]).squeeze(2)
            mean = self.mean[rows]  # (b, d + 2)
            error += (self.second_moment(rows) * moments).sum() - 2 * (mean * sums).sum()
        return error

    def learn_prior(self, features: Tensor, l2: float) -> None:
        """Sets the prior to what these distributions have in common: a mean by features, and one variance."""
        penalty = l2 * torch.eye(features.shape[1], device=features.device)  # (f, f)
        weights = torch.linalg.solve(features.mT @ features + penalty, features.mT @ self.mean[:, self.free])
        self.prior_mean = features @ weights  # (n, d + 1)
        spread = (self.mean[:, self.free] - self.prior_mean).square()  # (n, d + 1)
        variance = (spread + self.covariance.diagonal(dim1=1, dim2=2)).mean(dim=0)  # (d + 1,)
        self.prior_variance = variance.clamp(min=_SMALLEST_VARIANCE)
