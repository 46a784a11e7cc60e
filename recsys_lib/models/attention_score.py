"""The attention score: a dot product for every pair of features, weighted by a softmax over the pairs."""

import torch
from torch import Tensor, nn

from recsys_lib.models.core.event_words import EventWords, Tokens
from recsys_lib.models.core.options import learned, option

__all__ = ["AttentionScore"]


class AttentionScore(EventWords):
    """Every feature of the user meets every feature of the item, and a softmax says which meetings count.

        alpha_ij = softmax over all pairs (i, j) of f(u_i, v_j)
        s = sum over i, j of alpha_ij u_i . v_j + b . mean_j v_j

    The features u_i are the user's events, the v_j the item's words and its number. f is a feed-forward
    network of one hidden layer, w . GELU(U u_i + V v_j + b). The second term of s is ours: what an item earns
    from everybody.
    """

    hidden: int = option("features inside f", default=16, at_least=1)

    from_events: nn.Linear = learned("U")
    from_words: nn.Linear = learned("V and b")
    out: nn.Linear = learned("w")
    bias: nn.Linear = learned("what an item earns from everybody")

    def build(self) -> None:
        """Makes f."""
        super().build()
        self.from_events = nn.Linear(self.dim, self.hidden, bias=False)
        self.from_words = nn.Linear(self.dim, self.hidden)
        self.out = nn.Linear(self.hidden, 1, bias=False)
        self.bias = nn.Linear(self.dim, 1)

    def weights(self, events: Tokens, words: Tokens) -> Tensor:
        """The alpha of each pair of event and word: (B, C, T, W), which sum to one over both."""
        u, v = self.from_events(events.x), self.from_words(words.x)  # (B, 1, T, h), (B or 1, C, W, h)
        logits = self.out(nn.functional.gelu(u[..., :, None, :] + v[..., None, :, :])).squeeze(-1)
        both = events.present[..., :, None] & words.present[..., None, :]  # (B, C, T, W)
        logits = logits.masked_fill(~both, torch.finfo(logits.dtype).min)  # (B, C, T, W)
        return logits.flatten(-2).softmax(dim=-1).unflatten(-1, logits.shape[-2:]) * both

    def meet(self, events: Tokens, words: Tokens) -> Tensor:
        """Sums the weighted dot products: (B, C)."""
        found = (self.weights(events, words) * (events.x @ words.x.mT)).sum(dim=(-2, -1))  # (B, C)
        there = words.present.unsqueeze(-1).to(words.x.dtype)  # (B or 1, C, W, 1)
        mean = (words.x * there).sum(dim=-2) / there.sum(dim=-2).clamp(min=1)  # (B or 1, C, d)
        return found + self.bias(mean).squeeze(-1)
