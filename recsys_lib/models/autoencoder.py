"""Autoencoders of histories: a person's items through a narrow code, and out again as scores of all items."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import DistinctEvents, offsets, row_of_each, take_rows
from recsys_lib.devices import in_float32
from recsys_lib.models.core.histories import RecencyWeighted
from recsys_lib.models.core.options import learned, option
from recsys_lib.models.core.trained import TrainedRecommender
from recsys_lib.training import batches

__all__ = ["MultDAE", "MultVAE"]


class Autoencoder(TrainedRecommender[DistinctEvents], RecencyWeighted):
    """What the two autoencoders share: the sparse input, the decoder, and the multinomial likelihood.

        x     = what the user chose, scaled to length one, of which a share is dropped in training
        first = tanh(sum_i x_i A_i + a)
        s     = O decoder(code(first)) + o                 scores of all items
        L     = mean over users of -sum_{i chosen} log softmax(s)_i

    Dropping items and asking for all of them is what keeps the network from copying its input. The softmax
    makes items compete for a limited probability, as they do for places in a list.

    A user is known by the history alone, so one that was never seen in training is served as well as any.
    Without events the input is zero and the answer is what the decoder makes of nothing, which is close to
    popularity. With ``recency`` or ``half_life_days`` older events count less in the input, in training too.

    Memory: a step holds ``batch_size`` x n_items scores; the input stays sparse.
    """

    dim: int = option("features of the code, a person's vector", default=128, at_least=1)
    hidden: int = option("features of the layers before and after the code", default=512, at_least=1)
    dropout: float = option("share of the input dropped in training", default=0.5, at_least=0, below=1)
    l2: float = option("weight of the squared weights, biases left out", default=0.0, at_least=0)
    batch_size: int = option("users in a step", default=128, at_least=1)
    epochs: int = option(default=55)

    item_rows: nn.Parameter = learned("(n_items, f) A")
    first_bias: nn.Parameter = learned("(f,) a")
    output: nn.Linear = learned("O and o, f' to n_items")

    @abstractmethod
    def code(self, first: Tensor) -> Tensor:
        """The code of B users, (B, dim), from what the first layer says of them, (B, f)."""

    @abstractmethod
    def decode(self, code: Tensor) -> Tensor:
        """What the last layer reads of codes (B, dim): (B, f')."""

    @abstractmethod
    def coded(self, first: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """As ``code``, in training: codes (B, dim), and what they add to the loss, ()."""

    # Learning.

    def _make(self, first: int, last: int) -> None:
        """The outer layers, for ``build``."""
        self.item_rows = nn.Parameter(torch.empty(self.n_items, first))
        self.first_bias = nn.Parameter(torch.zeros(first))
        self.output = nn.Linear(last, self.n_items)
        nn.init.xavier_normal_(self.item_rows)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def prepare(self, events: Interactions, generator: torch.Generator) -> DistinctEvents:
        """Keeps the histories; they are the examples as well."""
        return self._keep_histories(events)

    def losses(self, examples: DistinctEvents, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
        """One epoch over the users that have events, shuffled."""
        lengths = examples.crow.diff()  # (n_users,)
        users = lengths.nonzero().squeeze(1)  # (U,)
        for batch in batches(len(users), self.batch_size, generator):
            place, row = take_rows(examples.crow, users[batch])  # (E,), (E,)
            items, crow = examples.items[place], offsets(lengths[users[batch]])  # (E,), (B + 1,)
            x = _unit(self.history_weights[place], row, len(batch))  # (E,)
            kept = torch.rand(len(x), generator=generator, device=x.device) >= self.dropout  # (E,)
            codes, extra = self.coded(self._first(crow, items, x * kept / (1 - self.dropout)), generator)
            log_shares = self.output(self.decode(codes)).log_softmax(dim=1)  # (B, n_items)
            loss = -log_shares[row, items].sum() / len(batch) + extra
            if self.l2:
                loss = loss + self.l2 * sum(p.square().sum() for p in self.parameters() if p.ndim == 2)
            yield loss, len(batch)

    # Asking.

    def _first(self, crow: Tensor, items: Tensor, x: Tensor) -> Tensor:
        """The first layer of B users, whose inputs x (E,) stand one after another: (B, f)."""
        x = x.to(self.item_rows.dtype)  # (E,) a model may be turned to half precision
        total = functional.embedding_bag(
            items, self.item_rows, crow, mode="sum", per_sample_weights=x, include_last_offset=True
        )  # (B, f); the product of x and A without the zeros of x
        return torch.tanh(total + self.first_bias)

    def _codes(self, crow: Tensor, items: Tensor, weights: Tensor) -> Tensor:
        """Codes of B histories: (B, dim)."""
        return self.code(self._first(crow, items, _unit(weights, row_of_each(crow), len(crow) - 1)))

    def _score_histories(self, crow: Tensor, items: Tensor, weights: Tensor) -> Tensor:
        return self.output(self.decode(self._codes(crow, items, weights)))  # (B, n_items)

    @torch.no_grad()
    @in_float32()
    def encode(
        self,
        histories: Sequence[Tensor | Sequence[int]],
        timestamps: Sequence[Tensor | Sequence[int]] | None = None,
    ) -> Tensor:
        """A person's vector, from what the person did.

        Args:
            histories: B lists or tensors of item indices, each oldest first; may be empty.
            timestamps: as for ``score_histories``.

        Returns:
            (B, dim) float32 on the histories' device; for lists of numbers, on the model's.

        Raises:
            NotFittedError: before ``fit``.
            TypeError, ValueError, IndexError: histories that are no lists of known items.
        """
        crow, items, weights, device = self._read(histories, timestamps, "encode")
        return self._codes(crow, items, weights).to(device=device, dtype=torch.float32)

    @property
    def item_vectors(self) -> Tensor:
        """An item's vector, (n_items, f'): its row of the last layer."""
        self._check_fitted()
        return self.output.weight.detach()


class MultDAE(Autoencoder):
    """Denoising autoencoder with a multinomial likelihood: restores a history of which half is missing.

    One hidden layer, the code itself: ``hidden`` is not used.

        code = tanh(sum_i x_i A_i + a),   s = O code + o

    ``Autoencoder`` says what the input and the loss are. From the paper: the architecture, the dropout on
    the scaled input, the likelihood; its code has 200 features on data of a hundred thousand users.

    Source: Liang, Krishnan, Hoffman, Jebara 2018, "Variational Autoencoders for Collaborative Filtering",
    section 2.3 and appendix A.
    """

    l2: float = option(default=1e-3)
    epochs: int = option(default=80)

    def build(self) -> None:
        """Makes the two layers."""
        self._make(self.dim, self.dim)

    def code(self, first: Tensor) -> Tensor:
        """The first layer itself."""
        return first

    def decode(self, code: Tensor) -> Tensor:
        """The code itself."""
        return code

    def coded(self, first: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The same in training; adds nothing to the loss."""
        return first, first.new_zeros(())


class MultVAE(Autoencoder):
    """Variational autoencoder with a multinomial likelihood and a weight on its KL term.

        mu, log var = M tanh(sum_i x_i A_i + a) + m        of the code, normal with a diagonal covariance
        z           = mu + exp(log var / 2) eps            in training; mu when asked
        s           = O tanh(D z + d) + o
        L           = the loss of ``Autoencoder`` + beta KL(q(z | x) || N(0, I))
        KL          = 1/2 sum_f (var_f + mu_f^2 - 1 - log var_f)

    ``beta`` grows from zero in a straight line over ``anneal_steps`` steps. At one the loss bounds the
    likelihood; the paper finds that less recommends better. Where it is too large too early the code says
    nothing, and all users get the same list: the posterior has collapsed, and ``code_information`` is near
    zero.

    Source: Liang, Krishnan, Hoffman, Jebara 2018, "Variational Autoencoders for Collaborative Filtering",
    sections 2.1 and 2.2; annealing after Bowman et al. 2016, "Generating Sentences from a Continuous Space".
    """

    beta: float = option("largest weight of the KL term", default=0.2, at_least=0)
    anneal_steps: int = option("steps until it has that weight", default=300, at_least=0)

    to_code: nn.Linear = learned("M and m, hidden to 2 dim")
    from_code: nn.Linear = learned("D and d, dim to hidden")

    def build(self) -> None:
        """Makes the four layers."""
        self.to_code = nn.Linear(self.hidden, 2 * self.dim)
        self.from_code = nn.Linear(self.dim, self.hidden)
        self._make(self.hidden, self.hidden)

    def prepare(self, events: Interactions, generator: torch.Generator) -> DistinctEvents:
        """As of any autoencoder; the annealing begins anew."""
        self._taken = 0
        return super().prepare(events, generator)

    def code(self, first: Tensor) -> Tensor:
        """The mean of the code."""
        return self.to_code(first)[:, : self.dim]

    def decode(self, code: Tensor) -> Tensor:
        """One hidden layer."""
        return torch.tanh(self.from_code(code))  # (B, hidden)

    def coded(self, first: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A draw of the code, and the weighted KL term."""
        mean, log_variance = self.to_code(first).chunk(2, dim=1)  # (B, dim), (B, dim)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)  # (B, dim)
        share = min(1.0, self._taken / self.anneal_steps) if self.anneal_steps else 1.0
        self._taken += 1
        kl = _divergences(mean, log_variance).sum(dim=1).mean()  # ()
        return mean + (0.5 * log_variance).exp() * noise, self.beta * share * kl

    @torch.no_grad()
    @in_float32()
    def code_information(self) -> Tensor:
        """KL of each feature of the code, in nats, the mean over the users kept: (dim,).

        Features near zero say nothing of anyone; where all are, the posterior has collapsed.
        """
        self._check_fitted()
        crow = self.history_crow  # (n_users + 1,)
        x = _unit(self.history_weights, row_of_each(crow), self.n_users)  # (E,)
        mean, log_variance = self.to_code(self._first(crow, self.history_items, x)).chunk(2, dim=1)
        return _divergences(mean, log_variance)[crow.diff() > 0].mean(dim=0)


def _divergences(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log variance)) || N(0, 1)) of each feature, in nats: (B, d) and (B, d) to (B, d).

    Source: Kingma and Welling 2014, "Auto-Encoding Variational Bayes", appendix B.
    """
    return 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance)


def _unit(weights: Tensor, row: Tensor, n_rows: int) -> Tensor:
    """Weights (E,) of rows (E,), each row scaled to length one: (E,)."""
    squares = torch.zeros(n_rows, dtype=weights.dtype, device=weights.device)  # (B,)
    squares = squares.index_add_(0, row, weights.square())  # (B,)
    return weights / squares.sqrt()[row]
