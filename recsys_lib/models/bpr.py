"""Matrix factorization for implicit feedback, and its most famous case, BPR."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_lib.data import Interactions
from recsys_lib.devices import seed_generator
from recsys_lib.losses import bce_loss, bpr_loss, softmax_loss
from recsys_lib.models.base import Recommender
from recsys_lib.negatives import NegativeSampler
from recsys_lib.progress import progress_bar
from recsys_lib.training import EarlyStopping, batches

__all__ = ["BPR", "MatrixFactorization"]

_LOSSES = ("bpr", "bce", "softmax")
_NEGATIVES = ("uniform", "popularity", "hard")


class MatrixFactorization(Recommender):
    """A user is a vector, an item is a vector and a bias: s_ui = p_u . q_i + b_i.

    What the vectors learn is decided by the loss:

    - ``"bpr"``: a chosen item should outscore one that was not (``losses.bpr_loss``);
    - ``"bce"``: a chosen item is a one, a sampled other item a zero (``losses.bce_loss``);
    - ``"softmax"``: the chosen item against the whole catalog (``losses.softmax_loss``); needs no negatives.
      Every step then moves every item: ``l2=0.2, batch_size=512, epochs=12`` suit it better than the
      defaults.

    Negatives are never among the user's own positives. ``"uniform"`` draws any other item alike,
    ``"popularity"`` in proportion to (count + 1) ** 0.75, ``"hard"`` draws ``hard_pool`` of them uniformly
    and takes the one that the model now scores highest (Zhang, Chen, Wang, Yu 2013, "Optimizing Top-N
    Collaborative Filtering via Dynamic Negative Item Sampling").

    A user without events has the vector zero, so the answer is the ranking by item bias, which is close to
    popularity. A user who has every item has no negatives and takes no part in training, except with softmax.

    With a validation set, training stops when NDCG@10 on it has not grown for ``patience`` checks, and the
    best state is restored. ``best_epoch`` says when that was: the number of ``epochs`` for a refit on all
    data.

    Args:
        dim: length of the vectors.
        epochs: passes over the events, at most.
        learning_rate: of Adam.
        l2: weight of the squared norm of the vectors and biases that an example touches, as in the paper's
            regularized objective.
        batch_size: examples in a step.
        init_scale: standard deviation of the vectors at the start.
        loss: see above.
        negatives: see above.
        n_negatives: negatives drawn for each positive.
        hard_pool: candidates for each hard negative.
        patience: checks without improvement before training stops; used with a validation set.
        check_every: epochs between checks.
        seed: of everything random.
        device: ``"auto"``, or the name of a device.

    Attributes:
        history: one dictionary an epoch: its number, the loss, and NDCG@10 where it was checked.
        best_epoch: the epoch whose state was kept.
    """

    user_factors: nn.Parameter  # (n_users, dim)
    item_factors: nn.Parameter  # (n_items, dim)
    item_bias: nn.Parameter  # (n_items,)

    def __init__(
        self,
        dim: int = 64,
        epochs: int = 50,
        learning_rate: float = 0.01,
        l2: float = 0.01,
        batch_size: int = 2048,
        init_scale: float = 0.1,
        loss: str = "bpr",
        negatives: str = "uniform",
        n_negatives: int = 4,
        hard_pool: int = 8,
        patience: int = 5,
        check_every: int = 4,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        super().__init__()
        at_least_one = {
            "dim": dim,
            "epochs": epochs,
            "batch_size": batch_size,
            "n_negatives": n_negatives,
            "hard_pool": hard_pool,
            "patience": patience,
            "check_every": check_every,
        }
        for name, number in at_least_one.items():
            if number < 1:
                raise ValueError(f"{name} must be 1 or more, got {number}")
        if not learning_rate > 0 or not l2 >= 0 or not init_scale > 0:
            raise ValueError("learning_rate and init_scale must be above zero, l2 0 or more")
        if loss not in _LOSSES:
            raise ValueError(f"loss must be one of {', '.join(_LOSSES)}, got {loss!r}")
        if negatives not in _NEGATIVES:
            raise ValueError(f"negatives must be one of {', '.join(_NEGATIVES)}, got {negatives!r}")
        self.dim, self.epochs, self.learning_rate, self.l2 = dim, epochs, learning_rate, l2
        self.batch_size, self.init_scale, self.loss, self.negatives = batch_size, init_scale, loss, negatives
        self.n_negatives, self.hard_pool = n_negatives, hard_pool
        self.patience, self.check_every, self.seed = patience, check_every, seed
        self.history: list[dict[str, float]] = []
        self.best_epoch = 0

    def build(self) -> None:
        """Makes the vectors; their values come from ``_fit`` or from a file."""
        self.user_factors = nn.Parameter(torch.zeros(self.n_users, self.dim))
        self.item_factors = nn.Parameter(torch.zeros(self.n_items, self.dim))
        self.item_bias = nn.Parameter(torch.zeros(self.n_items))

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        device = self._training_device(interactions)
        events = interactions.to(device)
        self.build()
        self.to(device)
        generator = seed_generator(self.seed, device)
        crow, items = events.csr()  # (n_users + 1,), (E,): an event repeated is one positive
        users = torch.repeat_interleave(torch.arange(self.n_users, device=device), crow.diff())  # (E,)
        with torch.no_grad():
            self.user_factors.normal_(0.0, self.init_scale, generator=generator)
            self.item_factors.normal_(0.0, self.init_scale, generator=generator)
            self.user_factors[crow.diff() == 0] = 0.0

        kind = "popularity" if self.negatives == "popularity" else "uniform"
        sampler = NegativeSampler(crow, items, self.n_items, kind)
        if self.loss != "softmax":
            trainable = crow.diff()[users] < self.n_items  # (E,)
            users, items = users[trainable], items[trainable]
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate, fused=device.type != "mps")
        stopping = EarlyStopping(self.patience)
        self.history, self.best_epoch = [], self.epochs
        for epoch in progress_bar(range(1, self.epochs + 1), type(self).__name__, enabled=progress):
            total = torch.zeros((), device=device)
            for batch in batches(len(users), self.batch_size, generator):
                optimizer.zero_grad(set_to_none=True)
                loss = self._loss(users[batch], items[batch], sampler, generator)
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(batch)
            entry = {"epoch": float(epoch), "loss": float(total) / max(len(users), 1)}
            self.history.append(entry)
            if validation is not None and (epoch % self.check_every == 0 or epoch == self.epochs):
                entry["ndcg@10"] = self.validation_ndcg(validation, interactions)
                if stopping.step(entry["ndcg@10"], epoch, self):
                    break
        if validation is not None:
            stopping.restore(self)
            self.best_epoch = stopping.best_step

    def _loss(
        self, users: Tensor, items: Tensor, sampler: NegativeSampler, generator: torch.Generator
    ) -> Tensor:
        """The loss of a batch of positives: users (B,), items (B,) -> ()."""
        p = functional.embedding(users, self.user_factors)  # (B, d)
        if self.loss == "softmax":
            scores = p @ self.item_factors.mT + self.item_bias  # (B, n_items)
            penalty = p.square().sum() + self.item_factors.square().sum() * (len(users) / self.n_items)
            return softmax_loss(scores, items) + 0.5 * self.l2 * penalty / len(users)
        if self.negatives == "hard":
            others = self._hard_negatives(p, users, sampler, generator)  # (B, K)
        else:
            others = sampler.sample(users, self.n_negatives, generator)  # (B, K)
        pair = torch.cat([items[:, None], others], dim=1)  # (B, 1 + K)
        q = functional.embedding(pair, self.item_factors)  # (B, 1 + K, d)
        bias = functional.embedding(pair, self.item_bias[:, None]).squeeze(2)  # (B, 1 + K)
        scores = (q * p[:, None, :]).sum(dim=2) + bias  # (B, 1 + K); three times as fast as a batched matmul
        loss = (bpr_loss if self.loss == "bpr" else bce_loss)(scores[:, 0], scores[:, 1:])
        penalty = p.square().sum() + q.square().sum() + bias.square().sum()
        return loss + 0.5 * self.l2 * penalty / len(users)

    def _hard_negatives(
        self, p: Tensor, users: Tensor, sampler: NegativeSampler, generator: torch.Generator
    ) -> Tensor:
        """For each negative wanted, the highest scored of ``hard_pool`` uniform ones: (B, K)."""
        with torch.no_grad():
            pool = sampler.sample(users, self.n_negatives * self.hard_pool, generator)  # (B, K P)
            q = functional.embedding(pool, self.item_factors)  # (B, K P, d)
            scores = (q * p[:, None, :]).sum(dim=2) + self.item_bias[pool]  # (B, K P)
            best = scores.view(len(users), self.n_negatives, self.hard_pool).argmax(dim=2, keepdim=True)
            return (
                pool.view(len(users), self.n_negatives, self.hard_pool).gather(2, best).squeeze(2)
            )  # (B, K)

    def _score(self, users: Tensor) -> Tensor:
        return self.user_factors[users] @ self.item_factors.mT + self.item_bias  # (B, n_items)


class BPR(MatrixFactorization):
    """Matrix factorization learned by Bayesian personalized ranking: ``MatrixFactorization`` with that loss.

    Args:
        dim: as for ``MatrixFactorization``, like all that follow.
        epochs: see there.
        learning_rate: see there.
        l2: see there.
        batch_size: see there.
        init_scale: see there.
        negatives: ``"uniform"`` as in the paper, ``"popularity"`` or ``"hard"``.
        n_negatives: the paper draws one; four cost a little more time and score higher.
        hard_pool: see there.
        patience: see there.
        check_every: see there.
        seed: see there.
        device: see there.

    Source: Rendle, Freudenthaler, Gantner, Schmidt-Thieme 2009, "BPR: Bayesian Personalized Ranking from
    Implicit Feedback"; mini-batches and Adam take the place of its one triple at a time.
    """

    def __init__(
        self,
        dim: int = 64,
        epochs: int = 50,
        learning_rate: float = 0.01,
        l2: float = 0.01,
        batch_size: int = 2048,
        init_scale: float = 0.1,
        negatives: str = "uniform",
        n_negatives: int = 4,
        hard_pool: int = 8,
        patience: int = 5,
        check_every: int = 4,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        super().__init__(
            dim=dim,
            epochs=epochs,
            learning_rate=learning_rate,
            l2=l2,
            batch_size=batch_size,
            init_scale=init_scale,
            loss="bpr",
            negatives=negatives,
            n_negatives=n_negatives,
            hard_pool=hard_pool,
            patience=patience,
            check_every=check_every,
            seed=seed,
            device=device,
        )
