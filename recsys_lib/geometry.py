"""The shape of a cloud of vectors: how narrow its cone is, its axes, and what undoes it.

Vectors of language models point in similar directions, so that any two texts seem alike. Here is how that is
measured, and how it is undone (centering, whitening, removing the top components). Alignment and uniformity
say what a contrastive loss has reached. Hubs are in ``similarity.hubness``, shorter forms of vectors in
``quantization``.

All functions take rows (N, d) and compute in float64; results are in the type of the input, on its device. A
vector that holds NaN or infinity is refused, and the error names its row.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from recsys_lib.arguments import refuse_not_finite, whole_number
from recsys_lib.similarity import normalize

__all__ = [
    "Whitening",
    "alignment",
    "all_but_the_top",
    "explained_variance",
    "mean_cosine",
    "uniformity",
]

_PAIRS = 2**22  # whose distances are held at once


def mean_cosine(x: Tensor) -> float:
    """The anisotropy: the mean cosine of all pairs of distinct rows, exactly, without making the pairs.

    With unit vectors u_i, of which n are not zero, the sum over pairs is that of the whole square without its
    diagonal:

        (|sum_i u_i|^2 - n) / (N (N - 1))

    About 0 where directions are spread evenly, 1 where all vectors point the same way, and never below
    -1 / (N - 1). As in ``similarity.cosine``, a zero vector has cosine 0 with everything. Ethayarajh (2019),
    How Contextual are Contextualized Word Representations?, takes a sample of pairs; these are all.

    Args:
        x: (N, d), two rows or more.

    Raises:
        ValueError: for other shapes, or NaN or infinity.
    """
    x = _rows(x, "x", at_least=2)
    unit = normalize(x)  # (N, d)
    n = len(unit)
    return float((unit.sum(dim=0).square().sum() - unit.square().sum()) / (n * (n - 1)))


def alignment(a: Tensor, b: Tensor) -> float:
    """The mean squared distance of vectors that belong together, at length one: 2 - 2 cosine, from 0 to 4.

    Args:
        a: (N, d), one row or more.
        b: (N, d); row n belongs to row n of ``a``.

    Raises:
        ValueError: shapes that differ, NaN or infinity.

    Source: Wang and Isola 2020, "Understanding Contrastive Representation Learning through Alignment and
    Uniformity on the Hypersphere", eq. 4 with alpha of 2.
    """
    a, b = _rows(a, "a", at_least=1), _rows(b, "b", at_least=1)
    if a.shape != b.shape:
        raise ValueError(f"expected pairs of one shape (N, d), got {tuple(a.shape)} and {tuple(b.shape)}")
    return float((normalize(a) - normalize(b)).square().sum(dim=1).mean())


def uniformity(x: Tensor, t: float = 2.0) -> float:
    """The logarithm of the mean of exp(-t |u_i - u_j|^2) over all pairs of distinct rows, at length one.

    Zero where all vectors are one; the more evenly they are spread, the lower. Computed in blocks of pairs.

    Args:
        x: (N, d), two rows or more.
        t: above 0.

    Raises:
        ValueError: for other shapes, NaN or infinity, or a ``t`` that is not above zero.

    Source: Wang and Isola 2020, as for ``alignment``, eq. 5.
    """
    if not t > 0:
        raise ValueError(f"t must be above 0, got {t}")
    unit = normalize(_rows(x, "x", at_least=2))  # (N, d)
    total = unit.new_zeros(())
    for block in unit.split(max(1, _PAIRS // len(unit))):
        squares = 2 - 2 * block @ unit.mT  # (b, N) |u - v|^2 of unit vectors
        total += (-t * squares).exp().sum()
    itself = (-t * (2 - 2 * unit.square().sum(dim=1))).exp().sum()  # of each row with itself
    n = len(unit)
    return float(((total - itself) / (n * (n - 1))).log())


def explained_variance(x: Tensor) -> Tensor:
    """The share of the variance along each principal axis, largest first: (d,), sums to 1.

    Args:
        x: (N, d), two rows or more.

    Returns:
        (d,); all zero where all rows are equal.
    """
    variance = Whitening.fit(x, dims=x.shape[-1] if x.ndim else None).variance  # (d,)
    total = variance.sum()
    return (variance / torch.where(total > 0, total, 1)).to(_type(x))


@dataclass(frozen=True, eq=False)
class Whitening:
    """A map that centers vectors, turns them to their principal axes, and evens out how much they vary.

        z_f = (x - mean) . v_f * variance_f^(-power / 2)

    With power 1 every axis varies alike and none is correlated with another; with 0.5, half-whitened, axes
    keep a part of their weight: what varies most is often what matters most, and the last axes are often
    noise. With power 0 the vectors are only centered and turned: cosines are those of centered vectors. Su,
    Cao, Liu and Ou (2021), Whitening Sentence Representations for Better Semantics and Faster Retrieval, has
    power 1.

    Axes along which nothing varies, as where vectors are fewer than dimensions, have a factor of 0: they come
    out as 0 rather than as noise.

    Attributes:
        mean: (d,) float64.
        axes: (d, k) float64, the kept principal axes, those of the largest variance first; a zero where
            there is no variance left, if vectors are fewer than dimensions.
        variance: (k,) float64, along them; 0 where it is no more than rounding.
        power: how much of it is evened out, from 0 to 1.
    """

    mean: Tensor
    axes: Tensor
    variance: Tensor
    power: float

    @classmethod
    def fit(cls, x: Tensor, power: float = 1.0, dims: int | None = None, drop: int = 0) -> Self:
        """Finds mean and axes.

        Args:
            x: (N, d) vectors, such as of all items; two or more.
            power: how much of the variance is evened out: 1 whitens, 0 centers alone.
            dims: axes kept, of those that are not dropped; by default all, or as many as there are vectors.
            drop: top axes that are removed, as ``all_but_the_top`` does.

        Raises:
            TypeError: ``dims`` or ``drop`` is no whole number.
            ValueError: for other shapes, NaN or infinity, or a number out of range.
        """
        given = _type(x)
        x = _rows(x, "x", at_least=2)
        if not 0 <= power <= 1:
            raise ValueError(f"power must be from 0 (center) to 1 (whiten), got {power}")
        n, d = x.shape
        drop = whole_number(drop, "drop", at_least=0)
        most = d - drop
        dims = min(most, max(1, n - drop)) if dims is None else whole_number(dims, "dims", at_least=1)
        if not 1 <= dims <= most:
            raise ValueError(f"dims must be from 1 to {most}, got {dims} of {d} with {drop} dropped")
        mean = x.mean(dim=0)  # (d,)
        centered = x - mean  # (N, d)
        # Of X'X and XX' the smaller one is taken apart. Vectors have no more axes than they are, and the axis
        # that belongs to the vector u of XX' is X' u / sqrt(N variance).
        few = n < d
        product = centered @ centered.mT if few else centered.mT @ centered  # (m, m)
        variance, axes = torch.linalg.eigh(product / n)  # (m,), (m, m), smallest first
        variance, axes = variance.flip(0), axes.flip(1)
        # What the input's own rounding makes vary, and that of the decomposition, is nothing.
        rounding = (4 * torch.finfo(given).eps) ** 2 * x.square().sum(dim=1).mean()  # ()
        least = torch.maximum(rounding, d * torch.finfo(x.dtype).eps * variance[0])  # ()
        variance = torch.where(variance > least, variance, 0)
        if few:
            length = torch.where(variance > 0, n * variance, 1).sqrt()  # (m,)
            axes = centered.mT @ axes * (variance > 0) / length  # (d, m)
        # An axis has no direction of its own; the sign of its largest entry settles one.
        largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))  # (1, m)
        axes = axes * torch.where(largest < 0, -1.0, 1.0).to(axes.dtype)
        missing = max(0, drop + dims - len(variance))
        axes, variance = functional.pad(axes, (0, missing)), functional.pad(variance, (0, missing))
        kept = slice(drop, drop + dims)
        return cls(mean, axes[:, kept].contiguous(), variance[kept], float(power))

    @property
    def factors(self) -> Tensor:
        """(k,) what each axis is multiplied with."""
        varies = self.variance > 0  # (k,)
        scale = torch.where(varies, self.variance, 1) ** (-self.power / 2)  # (k,)
        return torch.where(varies, scale, 0)

    def __call__(self, x: Tensor) -> Tensor:
        """Maps vectors (N, d), those of ``fit`` or new ones: (N, k)."""
        given, device = _type(x), x.device
        rows = _rows(x, "x")
        if rows.shape[1] != len(self.mean):
            raise ValueError(f"x must be (N, {len(self.mean)}), got {tuple(x.shape)}")
        rows = (rows.to(self.mean.device) - self.mean) @ (self.axes * self.factors)  # (N, k)
        return rows.to(dtype=given).to(device)


def all_but_the_top(x: Tensor, k: int | None = None) -> Tensor:
    """Vectors without their mean and without their k top principal components.

        x - mean - sum over f <= k of ((x - mean) . v_f) v_f

    The directions that all vectors share say little of what each means; in word vectors they say how frequent
    the word is. Mu and Viswanath (2018), All-but-the-Top: Simple and Effective Postprocessing for Word
    Representations, algorithm 1, which advises d / 100 components.

    Args:
        x: (N, d), two rows or more.
        k: components to remove, from 0 to d; by default d / 100, rounded, and one at least.

    Returns:
        (N, d), in the axes of the input.
    """
    given, device = _type(x), x.device
    d = x.shape[-1] if x.ndim else 0
    k = max(1, round(d / 100)) if k is None else whole_number(k, "k", at_least=0)
    if k > d:
        raise ValueError(f"k must be from 0 to {d}, the dimensions; got {k}")
    rows = _rows(x, "x", at_least=2)
    whitening = Whitening.fit(x, power=0)
    centered = rows - whitening.mean  # (N, d)
    top = whitening.axes[:, :k]  # (d, k)
    return (centered - (centered @ top) @ top.mT).to(dtype=given).to(device)


def _type(x: Tensor) -> torch.dtype:
    """The type of results."""
    return x.dtype if x.is_floating_point() else torch.float32


def _rows(x: Tensor, name: str, at_least: int = 0) -> Tensor:
    """Checked rows (N, d) in float64; where a device has none, on the CPU."""
    if x.ndim != 2 or not x.shape[1] or len(x) < at_least:
        rows = f"N of {at_least} or more" if at_least else "N rows"
        raise ValueError(f"{name} must be (N, d), {rows}; got shape {tuple(x.shape)}")
    refuse_not_finite(x, name)
    return x.detach().to("cpu" if x.device.type == "mps" else x.device).double()
