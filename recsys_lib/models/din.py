"""Deep interest network: what is read of a history depends on the candidate."""

import torch
from torch import Tensor, nn

from recsys_lib.models.core.event_words import EventWords, Tokens, masked_mean
from recsys_lib.models.core.options import learned, option

__all__ = ["DIN"]


class DIN(EventWords):
    """Target attention: the candidate asks each event how much it matters, and the answers are added up.

        a_t = g([x_t, v, x_t * v, x_t - v]),   u = sum over t of a_t x_t
        s = MLP([u, v, u * v])

    v is the mean of the item's words and its number. g is a network of one hidden layer. As in the paper the
    a_t go through no softmax: a person with many events of a kind has a longer vector in its direction. The
    paper's activation (Dice) and its mini-batch-aware regularization are left out; the first layer of g takes
    x_t - v by way of its linear map, U x_t + V v + W (x_t * v), which is the same set of functions.

    Source: Zhou et al. 2018, "Deep Interest Network for Click-Through Rate Prediction", section 4.3.
    """

    hidden: int = option("features inside g", default=16, at_least=1)

    from_event: nn.Linear = learned("U")
    from_item: nn.Linear = learned("V and a bias")
    from_product: nn.Linear = learned("W")
    out: nn.Linear = learned("the last layer of g")
    top: nn.Module = learned("the MLP")

    def build(self) -> None:
        """Makes g and the MLP."""
        super().build()
        d = self.dim
        self.from_event, self.from_product = (nn.Linear(d, self.hidden, bias=False) for _ in range(2))
        self.from_item, self.out = nn.Linear(d, self.hidden), nn.Linear(self.hidden, 1)
        self.top = nn.Sequential(nn.Linear(3 * d, 2 * d), nn.GELU(), nn.Linear(2 * d, 1))

    def weights(self, events: Tokens, v: Tensor) -> Tensor:
        """The a_t, zero at padding: events (B, 1, T, d) and candidates v (B or 1, C, d) to (B, C, T)."""
        # W (x * v) is a product of x with a matrix of each candidate, so x * v is never held.
        crossed = v[..., None, :] * self.from_product.weight  # (B or 1, C, h, d)
        asked = self.from_event(events.x) + events.x @ crossed.mT  # (B, C, T, h)
        a = self.out(nn.functional.gelu(asked + self.from_item(v)[..., None, :])).squeeze(-1)  # (B, C, T)
        return a * events.present

    def meet(self, events: Tokens, words: Tokens) -> Tensor:
        """Reads the history as the candidate asks, and scores: (B, C)."""
        v = masked_mean(words.x, words.present)  # (B or 1, C, d)
        u = (self.weights(events, v)[..., None, :] @ events.x).squeeze(-2)  # (B, C, d)
        u, v = torch.broadcast_tensors(u, v)  # (B, C, d) each
        return self.top(torch.cat([u, v, u * v], dim=-1)).squeeze(-1)
