"""Four ways to join what several modalities say of an item, each a module with one call.

Shapes: B users, N items, M modalities, d features of a token, H attention heads.
"""

import torch
from torch import Tensor, nn

from recsys_lib.attention import CrossAttention, EncoderBlock

__all__ = ["FUSIONS", "CrossFusion", "EarlyFusion", "GatedFusion", "LateFusion"]


class LateFusion(nn.Module):
    """Each modality scores by itself; the scores are added: s = sum_m u_m . e_m.

    Arguments as for all fusions: dim, and what they share with the others they do not read.
    """

    def __init__(self, dim: int, n_modalities: int, n_heads: int) -> None:
        super().__init__()

    def forward(self, users: Tensor, tokens: Tensor, present: Tensor) -> Tensor:
        """Users (B, M, d) meet items (N, M, d), whose modalities are present, (N, M) bool: (B, N)."""
        return users.flatten(1) @ tokens.flatten(1).mT  # (B, N)


class EarlyFusion(nn.Module):
    """The item's tokens look at one another before anybody looks at the item: s = (sum_m u_m) . v.

        v = mean of block(e_1 + kind_1, ..., e_M + kind_M)

    The block's two branches start at zero, so that v starts as the plain mean of the tokens.

    Args:
        dim: d, features of a token.
        n_modalities: M.
        n_heads: attention heads of the block.
    """

    def __init__(self, dim: int, n_modalities: int, n_heads: int) -> None:
        super().__init__()
        self.kind = nn.Parameter(torch.zeros(n_modalities, dim))
        self.block = EncoderBlock(dim, n_heads, 2 * dim)
        _zero(self.block.attention.output, self.block.feed_forward.down)

    def item(self, tokens: Tensor) -> Tensor:
        """One vector an item: (N, M, d) to (N, d)."""
        return self.block(tokens + self.kind).mean(dim=1)  # (N, d)

    def forward(self, users: Tensor, tokens: Tensor, present: Tensor) -> Tensor:
        """As ``LateFusion``: (B, M, d), (N, M, d), (N, M) to (B, N)."""
        return users.sum(dim=1) @ self.item(tokens).mT  # (B, N)


class GatedFusion(nn.Module):
    """A softmax says for each item how much each modality counts: s = (sum_m u_m) . v.

        v = sum_m g_m tanh(e_m),    g = softmax of W [tanh(e_1), ..., tanh(e_M), present] + b

    Over the modalities that are there; the others have gate 0. The gates start equal. A gate is a weight: how
    much a modality says is its weight times the length of what is weighed.

    Source: Arevalo, Solorio, Montes-y-Gomez, Gonzalez 2017, "Gated Multimodal Units for Information Fusion",
    section 3.1; a softmax in place of its sigmoid, so that the gates of any number of modalities sum to one.

    Args:
        dim: d, features of a token.
        n_modalities: M.
        n_heads: not read.
    """

    def __init__(self, dim: int, n_modalities: int, n_heads: int) -> None:
        super().__init__()
        self.gate = nn.Linear(n_modalities * (dim + 1), n_modalities)
        _zero(self.gate)

    def gates(self, tokens: Tensor, present: Tensor) -> Tensor:
        """How much each modality counts, for tokens (N, M, d) that are present, (N, M) bool: (N, M).

        A row sums to one, or to zero where nothing is present.
        """
        there = present.to(tokens.dtype)  # (N, M)
        seen = torch.tanh(tokens) * there[..., None]  # (N, M, d)
        logits = self.gate(torch.cat([seen.flatten(1), there], dim=1))  # (N, M)
        return _softmax(logits, present)  # (N, M)

    def forward(self, users: Tensor, tokens: Tensor, present: Tensor) -> Tensor:
        """As ``LateFusion``: (B, M, d), (N, M, d), (N, M) to (B, N)."""
        items = (self.gates(tokens, present)[..., None] * torch.tanh(tokens)).sum(dim=1)  # (N, d)
        return users.sum(dim=1) @ items.mT  # (B, N)


class CrossFusion(nn.Module):
    """The history looks at the item's modalities, and each person sees another item: s = h . sum_m e_m.

        u = sum_m u_m,    h = u + attention(u to e_1 + kind_1, ..., e_M + kind_M)

    h is ``attention.CrossAttention``, with what is missing shut out. A person has one query, and what it
    finds meets the item in a dot product: so each head needs one number of each token, and the found vectors
    of all pairs are never made. The output map starts at zero: the start is h = u, late fusion of sums.

    Args:
        dim: d, features of a token.
        n_modalities: M.
        n_heads: attention heads.
    """

    def __init__(self, dim: int, n_modalities: int, n_heads: int) -> None:
        super().__init__()
        self.kind = nn.Parameter(torch.zeros(n_modalities, dim))
        self.cross = CrossAttention(dim, n_heads)
        nn.init.normal_(self.kind, std=dim**-0.5)
        _zero(self.cross.attention.output)

    def weights(self, users: Tensor, tokens: Tensor, present: Tensor) -> Tensor:
        """Who looks at what, users (B, d) at tokens (N, M, d) that are present, (N, M): (M, H, B, N).

        The modalities come first: a softmax over the few numbers at the end of a row would take most of the
        time of training.
        """
        attention, heads = self.cross.attention, (self.cross.attention.n_heads, -1)
        q = attention.query(self.cross.norm(users)).unflatten(-1, heads)  # (B, H, d/H)
        k = attention.key(self.cross.context_norm(tokens + self.kind)).unflatten(-1, heads)  # (N, M, H, d/H)
        scores = torch.einsum("bhd,nmhd->mhbn", q / q.shape[-1] ** 0.5, k)  # (M, H, B, N)
        return _softmax(scores, present.mT[:, None, None], dim=0)  # (M, H, B, N)

    def forward(self, users: Tensor, tokens: Tensor, present: Tensor) -> Tensor:
        """As ``LateFusion``: (B, M, d), (N, M, d), (N, M) to (B, N)."""
        users, items = users.sum(dim=1), tokens.sum(dim=1)  # (B, d), (N, d)
        attention, heads = self.cross.attention, (self.cross.attention.n_heads, -1)
        values = attention.value(self.cross.context_norm(tokens + self.kind)).unflatten(-1, heads)
        asked = (items @ attention.output.weight).unflatten(-1, heads)  # (N, H, d/H)
        worth = torch.einsum("nhd,nmhd->mhn", asked, values)  # (M, H, N) of a token, if it is looked at
        found = (self.weights(users, tokens, present) * worth[:, :, None]).sum(dim=(0, 1))  # (B, N)
        return users @ items.mT + found + items @ attention.output.bias  # (B, N)


FUSIONS = {"late": LateFusion, "early": EarlyFusion, "gated": GatedFusion, "cross_attention": CrossFusion}


def _softmax(logits: Tensor, present: Tensor, dim: int = -1) -> Tensor:
    """A softmax over what is present; zero elsewhere, and everywhere where nothing is."""
    if bool(present.all()):
        return logits.softmax(dim)
    # Not minus infinity: where nothing is present, its gradient would be no number.
    shares = logits.masked_fill(~present, torch.finfo(logits.dtype).min).softmax(dim)
    return shares.masked_fill(~present, 0.0)


@torch.no_grad()
def _zero(*maps: nn.Linear) -> None:
    """Lets a branch start with nothing to say."""
    for made in maps:
        made.weight.zero_()
        if made.bias is not None:
            made.bias.zero_()
