"""Shorter forms of vectors: eight bits a number, one bit a number, fewer numbers, a byte for several.

A vector of d float32 numbers takes 4 d bytes. Each form here says how many bytes it takes, how far it may be
off, and what the dot product with a query in full precision is; the query is one vector, and costs nothing.

========================  ==================  ============================================
form                      bytes a vector      what may be off
========================  ==================  ============================================
float16                   2 d                 2^-11 of each number
``int8``, by vector       d + 4               half a step, the vector's largest over 127
``int8``, by dimension    d                   half a step, the dimension's largest over 127
``binary``                d / 8               everything but the signs
``quantized``, 8 bits     d                   half a step, the dimension's range over 254
``quantized``, 1 bit      d / 8               all but the side of the dimension's mean
``truncated`` to w        4 w                 the product of what was cut off
``product_codes``         n_bytes             what FAISS's codebooks leave
========================  ==================  ============================================

``int8`` and ``binary`` keep the origin, and so the dot product; ``quantized`` keeps the center and the spread
of each dimension, for vectors that lie far from the origin.

Shapes: N vectors of d numbers, B queries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from recsys_lib.arguments import refuse_not_finite, whole_number

__all__ = [
    "Binary",
    "Int8",
    "Quantized",
    "binary",
    "hamming",
    "int8",
    "matryoshka_loss",
    "prefix_widths",
    "product_codes",
    "quantized",
    "truncated",
    "truncation_bound",
]

Scope: TypeAlias = Literal["vector", "dimension", "table"]

_LARGEST = 127  # of the 256 values -128 is left out, so that a number and its negative are alike
_BLOCK = 2**22  # numbers held at once where bits are compared


@dataclass(frozen=True)
class Int8:
    """Vectors in whole numbers from -127 to 127, and what one step of them is worth.

    Attributes:
        codes: (N, d) int8.
        scale: (N, 1), (1, d) or (1, 1) float32, as it was taken by vector, by dimension or of the table.
    """

    codes: Tensor
    scale: Tensor

    @property
    def bytes_a_vector(self) -> float:
        """Of the codes, and of the share in the scales."""
        return self.codes.shape[1] + 4 * self.scale.numel() / max(1, len(self.codes))

    def restored(self) -> Tensor:
        """The vectors again, (N, d) float32; each number is off by half a step, ``scale / 2``, at most."""
        return self.codes.float() * self.scale

    def dot(self, queries: Tensor) -> Tensor:
        """Dot products with queries (B, d): (B, N) float32.

        Scales by dimension are multiplied into the query, those by vector into the result, so that between
        the two stand the codes as they are.
        """
        queries = queries.float()  # (B, d)
        if self.scale.shape[1] > 1:
            return (queries * self.scale) @ self.codes.float().mT  # (B, N)
        return queries @ self.codes.float().mT * self.scale.mT  # (B, N)

    def bound(self, queries: Tensor) -> Tensor:
        """By how much a dot product can be off at most, (B, N): half a step for each number of the query."""
        steps = self.scale.expand(len(self.codes), self.codes.shape[1]) / 2  # (N, d)
        return queries.float().abs() @ steps.mT  # (B, N)


def int8(vectors: Tensor, by: Scope = "vector") -> Int8:
    """Symmetric linear quantization: each number becomes the nearest multiple of a step.

        step = max |x| / 127,   code = round(x / step)

    The largest is taken of each vector, or of each dimension over all vectors. Of the whole table it is
    taken for comparison alone: one large number then makes the steps of all others coarse.

    Args:
        vectors: (N, d), finite.
        by: ``"vector"``, ``"dimension"`` or ``"table"``.

    Raises:
        ValueError: not a table of finite numbers, or an unknown ``by``.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", section 2.1, with a zero point of zero.
    """
    x = _table(vectors).float()  # (N, d)
    if by not in ("vector", "dimension", "table"):
        raise ValueError(f'by must be "vector", "dimension" or "table", got {by!r}')
    size = x.abs()  # (N, d)
    if not size.numel():
        largest = size.new_zeros(len(x) if by == "vector" else 1, x.shape[1] if by == "dimension" else 1)
    elif by == "table":
        largest = size.max().view(1, 1)  # (1, 1)
    else:
        largest = size.amax(dim=1 if by == "vector" else 0, keepdim=True)  # (N, 1) or (1, d)
    tiny = torch.finfo(torch.float32).tiny  # a step below it would be flushed to zero
    scale = torch.where(largest > 0, (largest / _LARGEST).clamp(min=tiny), torch.ones_like(largest))
    codes = (x / scale).round().clamp(-_LARGEST, _LARGEST).to(torch.int8)  # (N, d)
    return Int8(codes, scale)


@dataclass(frozen=True)
class Binary:
    """Vectors of which the signs are kept: a one where a number is above zero.

    Attributes:
        codes: (N, ceil(d / 8)) uint8, eight signs a byte, the first one in the lowest bit, as FAISS reads
            them.
        dim: d.
    """

    codes: Tensor
    dim: int

    @property
    def bytes_a_vector(self) -> float:
        """Of the codes."""
        return float(self.codes.shape[1])

    def restored(self) -> Tensor:
        """The signs, (N, d) float32 of 1 and -1, over the root of d: vectors of length one."""
        return _signs(self.codes, self.dim) / self.dim**0.5

    def dot(self, queries: Tensor) -> Tensor:
        """Dot products of queries (B, d) in full precision with the signs: (B, N) float32.

        Only the vectors are rounded, not the query (an asymmetric comparison), which costs no memory.
        """
        return queries.float() @ self.restored().mT  # (B, N)


def binary(vectors: Tensor) -> Binary:
    """Keeps the sign of each number.

    Of two vectors whose directions are those of random numbers, the share of signs that differ is their
    angle over pi (Charikar 2002, "Similarity Estimation Techniques from Rounding Algorithms", section 3, with
    random hyperplanes in place of the axes).

    Args:
        vectors: (N, d), finite.

    Raises:
        ValueError: not a table of finite numbers.
    """
    above = _table(vectors).float() > 0  # (N, d)
    return Binary(_packed(above), above.shape[1])


def hamming(a: Binary, b: Binary) -> Tensor:
    """In how many signs the rows of two tables differ: (B, N) int64.

    For vectors of plus and minus one the dot product is d - 2 of these.

    Raises:
        ValueError: vectors of unequal length.
    """
    if a.dim != b.dim:
        raise ValueError(f"signs of {a.dim} numbers cannot be compared with signs of {b.dim}")
    ones = torch.tensor([bin(x).count("1") for x in range(256)], device=a.codes.device)  # (256,)
    step = max(1, _BLOCK // max(1, b.codes.numel()))
    parts = [
        ones[(part[:, None] ^ b.codes).long()].sum(dim=2)  # (b, N)
        for part in a.codes.split(step)
    ]
    return torch.cat(parts)  # (B, N)


@dataclass(frozen=True, eq=False)
class Quantized:
    """Vectors in a byte or a bit for each dimension.

    Attributes:
        codes: with 8 bits (N, d) int8; with one (N, ceil(d / 8)) uint8, eight dimensions a byte, the first in
            the lowest bit.
        center: (d,) float32, what a code of 0, or the middle of the two bits, stands for.
        scale: (d,) float32, what a step of the code is worth: one for each dimension.
        bits: 8 or 1.
    """

    codes: Tensor
    center: Tensor
    scale: Tensor
    bits: int

    @property
    def n_bytes(self) -> int:
        """Of the codes; center and scale take 8 d bytes more, however many vectors there are."""
        return self.codes.numel()

    def vectors(self) -> Tensor:
        """What the codes stand for: (N, d) float32, near the vectors they were made from."""
        if self.bits == 8:
            return self.center + self.codes * self.scale  # (N, d)
        return self.center + _signs(self.codes, len(self.scale)) * self.scale

    def encode(self, x: Tensor) -> "Quantized":
        """New vectors (M, d) by the same center and scale; what lies outside goes to the end."""
        rows = _double(_table(x))  # (M, d)
        if rows.shape[1] != len(self.scale):
            raise ValueError(f"x must be (N, {len(self.scale)}), got {tuple(x.shape)}")
        center, scale = self.center.to(rows.device), self.scale.to(rows.device)  # (d,)
        codes = _codes(rows, center, scale, self.bits).to(self.center.device)
        return Quantized(codes, self.center, self.scale, self.bits)


def quantized(x: Tensor, bits: int = 8) -> Quantized:
    """Vectors in a quarter, or a thirty-second, of the memory.

    With 8 bits each dimension is cut into 255 even steps from its lowest to its highest value, so the error
    is at most half a step. With one bit a dimension is either above its mean or not, and stands for the mean
    plus or minus the mean distance from it, which is the best value for both signs.

    Args:
        x: (N, d), a row or more.
        bits: 8 or 1.

    Raises:
        ValueError: for other shapes or bits, or NaN or infinity.
    """
    if bits not in (1, 8):
        raise ValueError(f"bits must be 8 or 1, got {bits!r}")
    rows = _double(_table(x, at_least=1))  # (N, d)
    if bits == 8:
        low, high = rows.amin(dim=0), rows.amax(dim=0)  # (d,)
        center, scale = (low + high) / 2, (high - low) / 254  # (d,)
    else:
        center = rows.mean(dim=0)  # (d,)
        scale = (rows - center).abs().mean(dim=0)  # (d,)
    center, scale = center.float(), scale.float()  # (d,)
    codes = _codes(rows, center, scale, bits)  # where the rows are: x's own device may have no float64
    return Quantized(codes.to(x.device), center.to(x.device), scale.to(x.device), bits)


def _codes(rows: Tensor, center: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The codes of rows (N, d), see ``Quantized``."""
    centered = rows - center  # (N, d)
    if bits == 8:
        steps = centered / torch.where(scale > 0, scale, 1)  # (N, d)
        return steps.round().clamp(-127, 127).to(torch.int8)
    return _packed(centered > 0)


def truncated(vectors: Tensor, width: int, normalize: bool = True) -> Tensor:
    """The first numbers of each vector: (N, width).

    They are worth more than any others only where training made them so: by ``matryoshka_loss``, or by a
    rotation onto principal axes.

    Args:
        vectors: (N, d).
        width: numbers that are kept.
        normalize: scale what is left to length one again, as a cosine needs.

    Raises:
        ValueError: a width that the vectors do not have.
    """
    if not 1 <= whole_number(width, "width") <= vectors.shape[1]:
        raise ValueError(f"width must be 1 to {vectors.shape[1]}, got {width}")
    kept = vectors[:, :width]  # (N, width)
    return functional.normalize(kept, dim=1) if normalize else kept


def truncation_bound(queries: Tensor, vectors: Tensor, width: int) -> Tensor:
    """By how much a dot product of what is left can be off at most, before normalizing: (B, N).

    It is off by the dot product of the parts that were cut off, which is at most the product of their
    lengths (Cauchy and Schwarz).
    """
    return queries[:, width:].norm(dim=1)[:, None] * vectors[:, width:].norm(dim=1)  # (B, N)


def prefix_widths(dim: int, smallest: int) -> list[int]:
    """The widths that are trained: from the smallest on, each twice the one before, up to all of them.

    Raises:
        ValueError: a smallest that is below 1 or above ``dim``.
    """
    if not 1 <= smallest <= dim:
        raise ValueError(f"the smallest width must be 1 to {dim}, got {smallest}")
    widths = []
    while smallest < dim:
        widths.append(smallest)
        smallest *= 2
    return [*widths, dim]


def matryoshka_loss(loss: Callable[[int], Tensor], widths: Sequence[int]) -> Tensor:
    """The mean of a loss over prefixes of the vectors, so that each prefix is a vector in its own right.

        L = 1 / |W| sum over w in W of loss(first w numbers)

    Args:
        loss: the loss () of the vectors cut to so many numbers.
        widths: W.

    Returns:
        ()

    Raises:
        ValueError: no widths.

    Source: Kusupati et al. 2022, "Matryoshka Representation Learning", eq. 1, with equal weights.
    """
    if not widths:
        raise ValueError("there must be a width to train")
    return torch.stack([loss(width) for width in widths]).mean()


def product_codes(vectors: Tensor, n_bytes: int, seed: int = 0) -> Tensor:
    """Vectors as product quantization gives them back, by FAISS: (N, d) float32.

    A vector is cut into ``n_bytes`` parts, and of each part the nearest of 256 learned codes is kept.
    ``retrieval.FaissIndex("pq")`` searches in such codes; this is for measuring what they lose.

    Args:
        vectors: (N, d), N of 256 or more; the codes are learned from them.
        n_bytes: bytes of a code; divides d.
        seed: of k-means.

    Raises:
        ImportError: FAISS is not installed.
        ValueError: too few vectors, or bytes that do not divide d.

    Source: Jégou, Douze, Schmid 2011, "Product Quantization for Nearest Neighbor Search", section II.
    """
    x = _table(vectors).float()  # (N, d)
    if n_bytes < 1 or x.shape[1] % n_bytes:
        raise ValueError(f"n_bytes must divide the width of the vectors, {x.shape[1]}; got {n_bytes}")
    if len(x) < 256:
        raise ValueError(f"product quantization learns 256 codes and needs as many vectors, got {len(x)}")
    quantizer = _faiss().ProductQuantizer(x.shape[1], n_bytes, 8)
    quantizer.cp.seed = seed
    quantizer.cp.min_points_per_centroid = 1  # FAISS would print a warning
    rows = x.cpu().contiguous().numpy()  # (N, d)
    quantizer.train(rows)
    restored = quantizer.decode(quantizer.compute_codes(rows))  # (N, d)
    return torch.from_numpy(restored).to(vectors.device)


def _packed(above: Tensor) -> Tensor:
    """Bits (N, d) bool in bytes: (N, ceil(d / 8)) uint8, the first in the lowest bit."""
    eights = functional.pad(above.long(), (0, -above.shape[1] % 8)).unflatten(1, (-1, 8))  # (N, d / 8, 8)
    return (eights << torch.arange(8, device=above.device)).sum(dim=2).to(torch.uint8)


def _signs(codes: Tensor, dim: int) -> Tensor:
    """What ``_packed`` packed: (N, dim) float32 of 1 and -1."""
    places = torch.arange(8, dtype=torch.uint8, device=codes.device)  # (8,)
    return 2.0 * (codes[:, :, None] >> places & 1).flatten(1)[:, :dim] - 1.0  # (N, dim)


def _table(vectors: Tensor, at_least: int = 0) -> Tensor:
    """(N, d), checked."""
    if vectors.ndim != 2 or not vectors.is_floating_point() or len(vectors) < at_least:
        raise ValueError(
            f"vectors must be (N, d), {at_least} or more of real numbers; got {tuple(vectors.shape)} of "
            f"{vectors.dtype}"
        )
    refuse_not_finite(vectors, "vectors")
    return vectors.detach()


def _double(x: Tensor) -> Tensor:
    """In float64; where a device has none, on the CPU."""
    return x.to("cpu" if x.device.type == "mps" else x.device).double()


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            'product quantization needs FAISS, which is not installed: pip install "recsys-lib[search]", '
            "or faiss-cpu"
        ) from error
    return faiss
