"""Attention, from the weighted mean to a small transformer encoder.

Every piece fits one screen and builds on the piece above it: a weighted mean of values
(``scaled_dot_product_attention``), the masks that say who may look at whom, several such means side by
side (``MultiHeadAttention``), positions, the feed-forward layer, the block, the encoder.

Shapes: B sequences, H heads, T tokens (Tq queries, Tk keys), d features. The batch axis may be left out.

One meaning of a mask holds in the whole module, that of ``torch.nn.functional.scaled_dot_product_attention``:

- a boolean mask says who takes part: ``True`` may be looked at;
- a floating-point mask is added to the scores: 0 changes nothing, ``-inf`` shuts out;
- a mask and ``is_causal=True`` together: a key takes part only where both allow it (torch documents an error
  here, which only some of its kernels raise);
- a query that may look at no key at all gets a vector of zeros, and sends back a gradient of zeros.

``torch.nn.MultiheadAttention`` reads boolean masks the other way round: there ``True`` shuts out.

Sources: Vaswani et al. 2017, "Attention Is All You Need"; Devlin et al. 2019, "BERT: Pre-training of Deep
Bidirectional Transformers for Language Understanding"; Xiong et al. 2020, "On Layer Normalization in the
Transformer Architecture".
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, cast, overload

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "BlockStack",
    "CrossAttention",
    "EncoderBlock",
    "FeedForward",
    "MultiHeadAttention",
    "Trace",
    "TransformerEncoder",
    "attention_weights",
    "causal_mask",
    "combine_masks",
    "padding_mask",
    "present_tokens",
    "scaled_dot_product_attention",
    "sinusoidal_positions",
]


# --- attention ---------------------------------------------------------------------------------------------


def attention_weights(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None = None,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> Tensor:
    """How much each query looks at each key: ``softmax(q kᵀ / sqrt(d))``, Vaswani et al. 2017, equation 1.

    Half precision is computed in float32, so that the weights of a row still sum to one.

    Args:
        q: Queries, (..., Tq, d).
        k: Keys, (..., Tk, d).
        mask: Boolean (``True`` takes part) or floating-point (added); broadcasts to (..., Tq, Tk).
        is_causal: Query ``i`` sees keys ``0..i`` only.
        scale: What the dot products are multiplied by; ``1 / sqrt(d)`` when not given.

    Returns:
        Weights (..., Tq, Tk), float32 or wider. A row sums to one, or to zero where its query may look at
        nothing.

    Raises:
        ValueError: The features of ``q`` and ``k`` differ, or the mask does not fit.
        TypeError: The mask is neither boolean nor floating-point.
    """
    shape = _scores_shape(q, k)
    mask, fully_masked = _resolve_mask(mask, is_causal, shape, q)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    wide = torch.promote_types(q.dtype, torch.float32)

    scores = q.to(wide) @ k.to(wide).mT * scale  # (..., Tq, Tk)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -math.inf)
    elif mask is not None:
        scores = scores + mask
    weights = scores.softmax(-1)  # (..., Tq, Tk)
    if fully_masked is not None:
        weights = weights.masked_fill(fully_masked, 0.0)
    return weights


@overload
def scaled_dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = ...,
    is_causal: bool = ...,
    *,
    scale: float | None = ...,
    dropout: float = ...,
    fused: bool = ...,
    return_weights: Literal[False] = ...,
) -> Tensor: ...
@overload
def scaled_dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = ...,
    is_causal: bool = ...,
    *,
    scale: float | None = ...,
    dropout: float = ...,
    fused: bool = ...,
    return_weights: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def scaled_dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    fused: bool = True,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The mean of the values, weighted by ``attention_weights`` (Vaswani et al. 2017, equation 1).

    Two forms, equal in values and gradients: written out, which makes the (Tq, Tk) matrix of weights, and
    torch's fused kernel, which never holds that matrix as a whole.

    Args:
        q: Queries, (..., Tq, d).
        k: Keys, (..., Tk, d).
        v: Values, (..., Tk, e).
        mask: Boolean (``True`` takes part) or floating-point (added); broadcasts to (..., Tq, Tk).
        is_causal: Query ``i`` sees keys ``0..i`` only. Together with a mask, both must allow a key.
        scale: What the dot products are multiplied by; ``1 / sqrt(d)`` when not given.
        dropout: Share of the weights set to zero at random, whether training or not: the caller decides.
        fused: Use torch's kernel; ``False`` takes the written-out form.
        return_weights: Also return the weights, before dropout. Only the written-out form has them, so it is
            taken.

    Returns:
        (..., Tq, e) in the type of ``q``; with ``return_weights`` also the weights (..., Tq, Tk).

    Raises:
        ValueError: The shapes of ``q``, ``k``, ``v`` or the mask do not fit.
        TypeError: The mask is neither boolean nor floating-point.
    """
    shape = _scores_shape(q, k)
    if v.shape[-2:-1] != k.shape[-2:-1] or not _broadcasts(v.shape[:-2], shape[:-2]):
        raise ValueError(f"each key needs its value, got k of shape {tuple(k.shape)}, v of {tuple(v.shape)}")
    empty = not (q.numel() and k.numel())  # kernels of torch 2.11 end the process on an axis of length 0
    if return_weights or not fused or empty:
        weights = attention_weights(q, k, mask, is_causal, scale=scale)  # (..., Tq, Tk)
        mean = (functional.dropout(weights, dropout) @ v.to(weights.dtype)).to(q.dtype)  # (..., Tq, e)
        return (mean, weights) if return_weights else mean

    causal_only = is_causal and mask is None  # the kernel then skips the future without a mask being made
    mask, fully_masked = _resolve_mask(mask, is_causal and not causal_only, shape, q)
    # The kernels want four axes; with fewer, torch silently takes the slow form.
    n_axes = max(4, len(shape))
    q, k, v = (x[(None,) * (n_axes - x.dim())] for x in (q, k, v))
    if mask is not None:
        mask = mask[(None,) * (n_axes - mask.dim())]
    mean = functional.scaled_dot_product_attention(q, k, v, mask, dropout, causal_only, scale=scale)
    mean = mean.reshape(mean.shape[n_axes - len(shape) :])  # (..., Tq, e)
    return mean if fully_masked is None else mean.masked_fill(fully_masked, 0.0)


def _scores_shape(q: Tensor, k: Tensor) -> torch.Size:
    """The shape of ``q @ k.mT``, or an error that says what does not fit."""
    if q.dim() < 2 or k.dim() < 2:
        raise ValueError(f"q and k need at least the axes (T, d), got {tuple(q.shape)} and {tuple(k.shape)}")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q and k need equally many features, got {q.shape[-1]} and {k.shape[-1]}")
    try:
        leading = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2])
    except RuntimeError as error:
        raise ValueError(f"q of shape {tuple(q.shape)} and k of shape {tuple(k.shape)} do not fit") from error
    return torch.Size((*leading, q.shape[-2], k.shape[-2]))


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether a tensor of this shape can be repeated to the other without changing it."""
    padded = (1,) * (len(to) - len(shape)) + tuple(shape)
    return len(padded) == len(to) and all(a in (1, b) for a, b in zip(padded, to, strict=True))


def _resolve_mask(
    mask: Tensor | None, is_causal: bool, shape: torch.Size, q: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Fold ``is_causal`` into the mask and find the queries that may look at nothing.

    A softmax over nothing is 0/0, in its gradient too. So these queries are let look at everything, and the
    caller zeroes their result. No kernel ever meets such a row, whatever it would make of it.

    Returns:
        The mask, opened in the rows that allowed nothing, and (..., Tq, 1), True for these rows.
    """
    if mask is not None:
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise TypeError(
                f"a mask is boolean (True takes part) or floating-point (added), got {mask.dtype}; "
                "for a tokenizer's mask of ones and zeros use padding_mask"
            )
        if not _broadcasts(mask.shape, shape):
            raise ValueError(
                f"a mask of shape {tuple(mask.shape)} does not broadcast to the shape of the scores, "
                f"(..., queries, keys) = {tuple(shape)}"
            )
        if mask.is_floating_point():
            mask = mask.to(q.dtype)
    if is_causal:
        mask = combine_masks(mask, causal_mask(shape[-2], shape[-1], device=q.device))
    if mask is None:
        return None, None
    if mask.dtype == torch.bool:
        fully_masked = ~mask.any(-1, keepdim=True)  # (..., Tq, 1)
        return mask | fully_masked, fully_masked
    fully_masked = (mask == -math.inf).all(-1, keepdim=True)  # (..., Tq, 1)
    return mask.masked_fill(fully_masked, 0.0), fully_masked


# --- masks -------------------------------------------------------------------------------------------------


def causal_mask(
    n_queries: int, n_keys: int | None = None, *, device: torch.device | str | None = None
) -> Tensor:
    """The present and the past: (Tq, Tk), True where key ``j`` is not after query ``i``, ``j <= i``."""
    n_keys = n_queries if n_keys is None else n_keys
    return torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril()  # (Tq, Tk)


def present_tokens(lengths: Tensor, length: int) -> Tensor:
    """From the lengths (B,) of right-padded sequences to (B, T), True where there is a token."""
    return torch.arange(length, device=lengths.device) < lengths.unsqueeze(-1)  # (B, T)


def padding_mask(present: Tensor, queries: Tensor | None = None) -> Tensor:
    """Real tokens only: from (B, Tk), True or 1 at a token, to (B, 1, 1, Tk) for all heads and queries.

    A tokenizer's ``attention_mask`` can be passed as it is. The two axes in the middle matter: a bare (B, T)
    would be read as (Tq, Tk), and would even fit where B equals T.

    Args:
        present: (B, Tk) of the keys; more axes may stand in front.
        queries: (B, Tq) of the queries, where they are another sequence than the keys. A query that is
            padding then looks at nothing. Without it such a query looks at the keys like any other.

    Returns:
        (B, 1, 1, Tk) bool; with ``queries`` (B, 1, Tq, Tk).
    """
    mask = present.bool()[..., None, None, :]  # (B, 1, 1, Tk)
    return mask if queries is None else mask & queries.bool()[..., None, :, None]


def combine_masks(*masks: Tensor | None) -> Tensor | None:
    """A key takes part where every mask allows it; ``None`` allows everything.

    Boolean masks stay boolean. Where one is floating-point, boolean ones become 0 and ``-inf``, and all are
    added.
    """
    given = [mask for mask in masks if mask is not None]
    if not given:
        return None
    combined = given[0]
    for mask in given[1:]:
        if combined.dtype == mask.dtype == torch.bool:
            combined = combined & mask
        else:
            combined = _additive(combined, mask) + _additive(mask, combined)
    return combined


def _additive(mask: Tensor, other: Tensor) -> Tensor:
    """A mask to be added; a boolean one in the type of the other."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=other.dtype).masked_fill(~mask, -math.inf)


# --- several heads -----------------------------------------------------------------------------------------


class MultiHeadAttention(nn.Module):
    """``H`` attentions side by side (Vaswani et al. 2017, section 3.2.2).

    Each head reads all ``d`` features of a token; its own are the ``d / H`` features of query, key and value
    that it makes from them. One map makes those of all heads at once.

    Self-attention: ``attention(x)``. Cross-attention, where the keys and values come from elsewhere:
    ``attention(x, context)``.

    Args:
        dim: Features of the input and the output; a multiple of ``n_heads``.
        n_heads: Number of heads.
        context_dim: Features of the context in cross-attention; ``dim`` when not given.
        dropout: Share of the attention weights dropped in training.
        bias: Whether the four linear maps have a bias.
        fused: Use torch's fused kernel; see ``scaled_dot_product_attention``.

    Raises:
        ValueError: ``dim`` is not a multiple of ``n_heads``.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        *,
        context_dim: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        fused: bool = True,
    ) -> None:
        super().__init__()
        if n_heads < 1 or dim % n_heads:
            raise ValueError(f"dim={dim} cannot be shared evenly among n_heads={n_heads}")
        self.n_heads, self.dropout, self.fused = n_heads, dropout, fused
        self.query = nn.Linear(dim, dim, bias)
        self.key = nn.Linear(context_dim or dim, dim, bias)
        self.value = nn.Linear(context_dim or dim, dim, bias)
        self.output = nn.Linear(dim, dim, bias)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Let each token of ``x`` look at the context, or at ``x`` itself.

        The axes in front of (T, d) broadcast: x (U, 1, Tq, d) and a context (1, I, Tk, c) meet in all U x I
        pairs, while the linear maps of either are computed once.

        Args:
            x: (B, Tq, d) or (Tq, d), or with more axes in front.
            context: (B, Tk, c) or (Tk, c); ``x`` when not given.
            mask: (Tq, Tk) for all sequences, (B, Tq, Tk) for each, or anything that broadcasts to
                (B, H, Tq, Tk), such as the (B, 1, 1, Tk) of ``padding_mask``. Boolean (``True`` takes
                part) or floating-point (added).
            is_causal: Query ``i`` sees keys ``0..i`` only.

        Returns:
            (B, Tq, d) or (Tq, d).
        """
        context = x if context is None else context
        q, k, v = self._split(self.query(x)), self._split(self.key(context)), self._split(self.value(context))
        dropout = self.dropout if self.training else 0.0
        heads = scaled_dot_product_attention(
            q, k, v, self._per_head(mask, x), is_causal, dropout=dropout, fused=self.fused
        )  # (B, H, Tq, d/H)
        return self.output(heads.transpose(-3, -2).flatten(-2))  # (B, Tq, d)

    def weights(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Who looks at whom: (B, H, Tq, Tk), for the same arguments as ``forward``."""
        q = self._split(self.query(x))  # (B, H, Tq, d/H)
        k = self._split(self.key(x if context is None else context))  # (B, H, Tk, d/H)
        return attention_weights(q, k, self._per_head(mask, x), is_causal)  # (B, H, Tq, Tk)

    def pooled(self, x: Tensor, context: Tensor, shares: Tensor, mask: Tensor | None = None) -> Tensor:
        """What all queries find, summed by shares: ``(shares[..., None] * forward(...)).sum(-2)``.

        A sum of weighted means is a mean weighted by the sums, so that the (B, Tq, d) results are never made.

        Args:
            x: (B, Tq, d), as for ``forward``.
            context: (B, Tk, c).
            shares: (B, Tq), what each query counts.
            mask: as for ``forward``.

        Returns:
            (B, d)
        """
        v = self._split(self.value(context))  # (B, H, Tk, d/H)
        weights = self.weights(x, context, mask)  # (B, H, Tq, Tk)
        looked = shares[..., None, None, :].to(weights.dtype) @ weights  # (B, H, 1, Tk)
        heads = (looked @ v.to(weights.dtype)).to(x.dtype)  # (B, H, 1, d/H)
        found = functional.linear(heads.transpose(-3, -2).flatten(-2).squeeze(-2), self.output.weight)
        return found if self.output.bias is None else found + self.output.bias * shares.sum(-1, keepdim=True)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(-3, -2)  # (B, T, d) -> (B, H, T, d/H)

    @staticmethod
    def _per_head(mask: Tensor | None, x: Tensor) -> Tensor | None:
        """A mask with as many axes as ``x`` has none for the heads: (B, Tq, Tk) becomes (B, 1, Tq, Tk)."""
        return mask.unsqueeze(-3) if mask is not None and mask.dim() == x.dim() else mask


# --- positions ---------------------------------------------------------------------------------------------


def sinusoidal_positions(
    length: int, dim: int, *, base: float = 10_000.0, device: torch.device | str | None = None
) -> Tensor:
    """Positions as a clock with ``dim / 2`` hands, from fast to slow (Vaswani et al. 2017, section 3.5).

    ``PE(t, 2i) = sin(t / base^(2i/dim))`` and ``PE(t, 2i+1) = cos(t / base^(2i/dim))``.

    Returns:
        (length, dim), float32.

    Raises:
        ValueError: ``dim`` is odd, so that a sine would miss its cosine.
    """
    if dim % 2:
        raise ValueError(f"sinusoidal positions come in pairs of sine and cosine: dim={dim} must be even")
    # float64 keeps the fast hands exact far along the sequence. Some devices lack it, so the CPU does this.
    t = torch.arange(length, dtype=torch.float64, device="cpu")  # (T,)
    frequencies = base ** (-torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)  # (d/2,)
    angles = t[:, None] * frequencies  # (T, d/2)
    table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)  # (T, d), sine and cosine in turn
    return table.to(device=device or torch.get_default_device(), dtype=torch.float32)  # (T, d)


# --- the block and the encoder -----------------------------------------------------------------------------


class FeedForward(nn.Module):
    """Each token on its own: widen, bend, narrow (Vaswani et al. 2017, equation 2; there with ReLU).

    Args:
        dim: Features of the input and the output.
        hidden: Features in between; four times ``dim`` when not given.
        activation: "gelu" (BERT; the exact one, not the tanh approximation) or "relu".
    """

    def __init__(self, dim: int, hidden: int | None = None, activation: str = "gelu") -> None:
        super().__init__()
        activations = {"gelu": nn.GELU, "relu": nn.ReLU}
        if activation not in activations:
            raise ValueError(f"activation={activation!r} is not one of {sorted(activations)}")
        hidden = 4 * dim if hidden is None else hidden
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.activation = activations[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) to (..., d)."""
        return self.down(self.activation(self.up(x)))  # (..., d)


class EncoderBlock(nn.Module):
    """Look around, then think: attention and feed-forward, each added to what came in (the residual).

    Args:
        dim: Features of a token.
        n_heads: Number of attention heads.
        hidden: Features inside the feed-forward layer; four times ``dim`` when not given.
        norm: Where LayerNorm stands. "post": on the sum, as in Vaswani et al. 2017 and BERT. "pre": on what
            goes into the sublayer, which leaves the residual untouched and trains without warm-up (Xiong et
            al. 2020).
        dropout: Share of each sublayer's output dropped in training.
        attention_dropout: Share of the attention weights dropped in training; ``dropout`` when not given.
        activation: "gelu" or "relu".
        eps: What LayerNorm adds to the variance.
        fused: Use torch's fused attention kernel.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        hidden: int | None = None,
        *,
        norm: Literal["pre", "post"] = "pre",
        dropout: float = 0.0,
        attention_dropout: float | None = None,
        activation: str = "gelu",
        eps: float = 1e-5,
        fused: bool = True,
    ) -> None:
        super().__init__()
        if norm not in ("pre", "post"):
            raise ValueError(f"norm={norm!r} is neither 'pre' nor 'post'")
        self.pre = norm == "pre"
        attention_dropout = dropout if attention_dropout is None else attention_dropout
        self.attention = MultiHeadAttention(dim, n_heads, dropout=attention_dropout, fused=fused)
        self.feed_forward = FeedForward(dim, hidden, activation)
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, T, d) to (B, T, d); the mask as in ``MultiHeadAttention.forward``."""
        if self.pre:
            x = x + self.dropout(self.attention(self.attention_norm(x), None, mask, is_causal))  # (B, T, d)
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))  # (B, T, d)
        x = self.attention_norm(x + self.dropout(self.attention(x, None, mask, is_causal)))  # (B, T, d)
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))  # (B, T, d)

    def weights(self, x: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Who looks at whom in this block: (B, H, T, T), for the same arguments as ``forward``."""
        return self.attention.weights(self.attention_norm(x) if self.pre else x, None, mask, is_causal)


class CrossAttention(nn.Module):
    """One sequence looks at another; what it finds there is added (Vaswani et al. 2017, section 3.2.3).

        x + attention(LayerNorm(x), LayerNorm(context))

    The second sublayer of that paper's decoder block, normalized as by ``EncoderBlock`` with ``norm="pre"``.
    To a token that may look at nothing the bias of the output map is added, and nothing else.

    Args:
        dim: Features of a token, of both sequences.
        n_heads: Number of attention heads.
        dropout: Share of what was found that is dropped in training.
        eps: What LayerNorm adds to the variance.
        fused: Use torch's fused attention kernel.
    """

    def __init__(
        self, dim: int, n_heads: int, *, dropout: float = 0.0, eps: float = 1e-5, fused: bool = True
    ) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, n_heads, fused=fused)
        self.norm, self.context_norm = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Takes x (B, Tq, d), context (B, Tk, d); gives (B, Tq, d). See ``MultiHeadAttention.forward``."""
        return x + self.dropout(self.attention(self.norm(x), self.context_norm(context), mask))

    def pooled(self, x: Tensor, context: Tensor, shares: Tensor, mask: Tensor | None = None) -> Tensor:
        """The sum of the tokens of ``forward`` by shares (B, Tq), which are not made one by one: (B, d)."""
        found = self.attention.pooled(self.norm(x), self.context_norm(context), shares, mask)  # (B, d)
        return (shares[..., None, :].to(x.dtype) @ x).squeeze(-2) + self.dropout(found)

    def weights(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Who looks at whom: (B, H, Tq, Tk), for the same arguments as ``forward``."""
        return self.attention.weights(self.norm(x), self.context_norm(context), mask)


class BlockStack(nn.ModuleList):
    """Blocks one after another: the body of every encoder here.

    Args:
        n_layers: Number of blocks.
        dim: Features of a token.
        n_heads: Attention heads in each block.
        hidden: As in ``EncoderBlock``, like all that follow.
        **options: Those of ``EncoderBlock``.
    """

    def __init__(
        self, n_layers: int, dim: int, n_heads: int, hidden: int | None = None, **options: Any
    ) -> None:
        super().__init__(EncoderBlock(dim, n_heads, hidden, **options) for _ in range(n_layers))

    def forward(self, x: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, T, d) to (B, T, d); the mask as in ``MultiHeadAttention.forward``."""
        for block in self:
            x = block(x, mask, is_causal)  # (B, T, d)
        return x

    def trace(self, x: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> "Trace":
        """What went in, what each block gave, and who looked at whom, for the arguments of ``forward``."""
        hidden, weights = [x], []
        for block in cast(Iterable[EncoderBlock], self):
            weights.append(block.weights(x, mask, is_causal))  # (B, H, T, T)
            x = block(x, mask, is_causal)  # (B, T, d)
            hidden.append(x)
        return Trace(torch.stack(hidden), torch.stack(weights))


class Trace(NamedTuple):
    """Everything an encoder did with one batch."""

    hidden: Tensor
    """(L + 1, B, T, d): the embeddings, then what each block gave; the last is the encoder's output."""
    weights: Tensor
    """(L, B, H, Tq, Tk): how much query q of head h in block l looked at key k."""


class TransformerEncoder(nn.Module):
    """Tokens in, one vector a token out: embeddings, then a stack of blocks.

    With ``norm="post"``, ``n_segments=2`` and ``eps=1e-12`` this is BERT without its pooler (Devlin et al.
    2019), and ``recsys_lib.text.from_bert_state`` loads published weights into it. With ``norm="pre"`` and
    ``is_causal=True`` it is the body of a GPT, or of a SASRec.

    Args:
        vocab_size: Number of different tokens (words, items).
        dim: Features of a token.
        n_layers: Number of blocks.
        n_heads: Attention heads in each block.
        hidden: Features inside the feed-forward layers; four times ``dim`` when not given.
        max_length: The longest sequence. Learned positions have a row for each place.
        n_segments: Kinds of segment (BERT's sentence A and B); 0 for none.
        positions: "learned", "sinusoidal" or "none". Without positions one order is like any other.
        norm: "post" or "pre", see ``EncoderBlock``. "post" also normalizes the embeddings, "pre" the
            output.
        dropout: Share dropped in training: of the embeddings, of each sublayer's output, of the attention
            weights.
        activation: "gelu" or "relu".
        eps: What LayerNorm adds to the variance.
        padding_id: The token that stands for no token; its embedding is zero and stays so in training.
        fused: Use torch's fused attention kernel.

    Weights start from a normal distribution of standard deviation 0.02, biases from zero, as in BERT.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        n_layers: int,
        n_heads: int,
        *,
        hidden: int | None = None,
        max_length: int = 512,
        n_segments: int = 0,
        positions: Literal["learned", "sinusoidal", "none"] = "learned",
        norm: Literal["pre", "post"] = "post",
        dropout: float = 0.0,
        activation: str = "gelu",
        eps: float = 1e-5,
        padding_id: int | None = None,
        fused: bool = True,
    ) -> None:
        super().__init__()
        if positions not in ("learned", "sinusoidal", "none"):
            raise ValueError(f"positions={positions!r} is not one of 'learned', 'sinusoidal', 'none'")
        self.max_length = max_length
        self.token_embedding = nn.Embedding(vocab_size, dim, padding_idx=padding_id)
        self.segment_embedding = nn.Embedding(n_segments, dim) if n_segments else None
        self.position_embedding = nn.Embedding(max_length, dim) if positions == "learned" else None
        sinusoids = sinusoidal_positions(max_length, dim) if positions == "sinusoidal" else None
        self.sinusoids: Tensor | None
        self.register_buffer("sinusoids", sinusoids, persistent=False)
        options = {"norm": norm, "dropout": dropout, "activation": activation, "eps": eps, "fused": fused}
        self.blocks = BlockStack(n_layers, dim, n_heads, hidden, **options)
        self.embedding_norm = nn.LayerNorm(dim, eps) if norm == "post" else nn.Identity()
        self.output_norm = nn.LayerNorm(dim, eps) if norm == "pre" else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.apply(_init_weights)

    def forward(
        self,
        ids: Tensor,
        present: Tensor | None = None,
        segments: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Encode a batch of token sequences.

        Args:
            ids: Token numbers, (B, T) or (T,), int64.
            present: True or 1 at a real token, the shape of ``ids`` (a tokenizer's ``attention_mask``); all 1
                when not given.
            segments: Which segment each token belongs to, the shape of ``ids``; all 0 when not given.
            mask: A further mask, as in ``MultiHeadAttention.forward``.
            is_causal: Each token sees itself and what came before.

        Returns:
            (B, T, d) or (T, d). Rows at padding are defined but mean nothing.

        Raises:
            ValueError: The sequence is longer than ``max_length``, or a shape does not fit.
        """
        mask = self._mask(ids, present, mask)
        x = self.blocks(self.embed(ids, segments), mask, is_causal)  # (B, T, d)
        return self.output_norm(x)  # (B, T, d)

    def embed(self, ids: Tensor, segments: Tensor | None = None) -> Tensor:
        """What goes into the first block: token plus segment plus position, (B, T, d)."""
        length = ids.shape[-1]
        if length > self.max_length:
            raise ValueError(
                f"a sequence of {length} tokens is longer than this encoder's max_length={self.max_length}; "
                "cut it, or make the encoder with a larger max_length"
            )
        x = self.token_embedding(ids)  # (B, T, d)
        if self.segment_embedding is not None:
            segments = torch.zeros_like(ids) if segments is None else segments  # (B, T)
            x = x + self.segment_embedding(segments)  # (B, T, d)
        elif segments is not None:
            raise ValueError("segments were given to an encoder made with n_segments=0")
        if self.position_embedding is not None:
            x = x + self.position_embedding.weight[:length]  # (B, T, d)
        elif self.sinusoids is not None:
            x = x + self.sinusoids[:length]  # (B, T, d)
        return self.dropout(self.embedding_norm(x))  # (B, T, d)

    @torch.no_grad()
    def trace(
        self,
        ids: Tensor,
        present: Tensor | None = None,
        segments: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Trace:
        """Keep the vectors after each block and the weights of every layer and head, to look at.

        Takes the arguments of ``forward``; makes no gradients. Call ``.eval()`` first to be rid of dropout.
        """
        mask = self._mask(ids, present, mask)
        hidden, weights = self.blocks.trace(self.embed(ids, segments), mask, is_causal)
        hidden[-1] = self.output_norm(hidden[-1])  # (B, T, d)
        return Trace(hidden, weights)

    @staticmethod
    def _mask(ids: Tensor, present: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """One mask of who is there and who may be looked at, with an axis for the heads."""
        if mask is not None and mask.dim() == ids.dim() + 1:
            mask = mask.unsqueeze(-3)  # (B, Tq, Tk) -> (B, 1, Tq, Tk)
        if present is None:
            return mask
        if present.shape != ids.shape:
            raise ValueError(f"present has the shape {tuple(present.shape)}, ids have {tuple(ids.shape)}")
        return combine_masks(padding_mask(present), mask)


def _init_weights(module: nn.Module) -> None:
    """Normal weights of standard deviation 0.02, zero biases, a zero embedding for padding."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
