"""How alike are two things? Dot product, cosine, distance, and what becomes of them in many dimensions.

All pairwise functions take rows (M, d) and (N, d) and return (M, N). Half-precision inputs are computed in
float32 and the result is returned in their type. A vector that holds NaN or infinity is like nothing at all:
it is refused, and the error names its row.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from recsys_lib.arguments import refuse_not_finite, whole_number

__all__ = [
    "biased_dot",
    "cosine",
    "dot",
    "euclidean",
    "hubness",
    "k_occurrence",
    "normalize",
    "pair_products",
    "tfidf",
    "top_neighbors",
]

# ---------------------------------------------------------------------------------------------- pairwise


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Dot product a . b = sum_f a_f b_f = |a| |b| cos(a, b): the angle's cosine, times both lengths.

    It is not a measure of the angle alone, nor a metric: the vector most similar to a need not be a
    itself, but may be a longer one.

    Args:
        a: (M, d).
        b: (N, d).

    Returns:
        (M, N).
    """
    a, b, dtype = _pair(a, b)
    return (a @ b.mT).to(dtype)  # (M, N)


def pair_products(p: Tensor, q: Tensor, pairs: Tensor) -> Tensor:
    """Dot products of each row of p with some rows of q, without the other rows. It has no gradient.

    Args:
        p: (B, d).
        q: (N, d).
        pairs: (B, K) int64, the rows of q wanted for each row of p.

    Returns:
        (B, K).
    """
    if p.device.type != "cpu" or pairs.shape[1] > len(q):
        return (q[pairs] * p[:, None]).sum(dim=2)  # (B, K)
    # Each product where a sparse matrix has an entry: on a CPU this spares a copy of the rows, (B, K, d). A
    # matrix has no more entries in a row than columns.
    with warnings.catch_warnings():
        # What works here in the CSR format is long stable; torch says once that it is in beta.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        n, k = pairs.shape
        wanted = torch.sparse_csr_tensor(
            torch.arange(n + 1, device=p.device) * k,
            pairs.flatten(),
            torch.zeros(n * k, dtype=p.dtype, device=p.device),
            (n, len(q)),
            check_invariants=False,
        )
    return torch.sparse.sampled_addmm(wanted, p, q.mT).values().view(n, k)  # (B, K)


def cosine(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """Cosine a . b / (|a| |b|), in [-1, 1]: the angle alone. Lengths do not matter.

    A zero vector has no direction; its cosine with everything is 0, and so is its gradient.

    Args:
        a: (M, d).
        b: (N, d).
        eps: vectors no longer than this count as zero vectors.

    Returns:
        (M, N).
    """
    a, b, dtype = _pair(a, b)
    unit_a = torch.where(_length(a) > eps, normalize(a), 0)  # (M, d)
    unit_b = torch.where(_length(b) > eps, normalize(b), 0)  # (N, d)
    return (unit_a @ unit_b.mT).clamp(-1, 1).to(dtype)  # (M, N); rounding can pass 1


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean |a - b| = sqrt(|a|^2 + |b|^2 - 2 a . b): a distance, so smaller is more alike.

    Between unit vectors it orders pairs as the cosine does: |a - b|^2 = 2 - 2 cos(a, b). Computed from the
    differences themselves; the expanded form loses all digits where a and b are close.

    Args:
        a: (M, d).
        b: (N, d).

    Returns:
        (M, N), at least 0.
    """
    a, b, dtype = _pair(a, b)
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").to(dtype)  # (M, N)


def biased_dot(
    p: Tensor, q: Tensor, user_bias: Tensor, item_bias: Tensor, mean: Tensor | float = 0.0
) -> Tensor:
    """Rating mu + b_u + b_i + p_u . q_i, as a biased factor model predicts it.

    The biases take up what does not depend on the pair: some users rate high, some items are liked by all.
    Koren, Bell and Volinsky (2009), Matrix factorization techniques for recommender systems, equation 4.

    Args:
        p: (M, d) user vectors.
        q: (N, d) item vectors.
        user_bias: (M,).
        item_bias: (N,).
        mean: scalar mu, the mean of all ratings.

    Returns:
        (M, N).
    """
    if user_bias.shape != p.shape[:1] or item_bias.shape != q.shape[:1]:
        raise ValueError(
            f"biases must be ({len(p)},) and ({len(q)},), one a vector; "
            f"got {tuple(user_bias.shape)} and {tuple(item_bias.shape)}"
        )
    for name, given in {"p": p, "q": q, "user_bias": user_bias, "item_bias": item_bias}.items():
        refuse_not_finite(given, name)
    return mean + user_bias[:, None] + item_bias[None, :] + dot(p, q)  # (M, N)


def normalize(x: Tensor, power: float = 1.0) -> Tensor:
    """Rows x / |x|^power: a dial between the dot product (0) and the cosine (1).

    With powers in between, a dot product keeps a part of what length means: |a|^(1 - power) of it. Where
    vectors of popular items are long, that part is popularity.

    Args:
        x: (M, d).
        power: how much of the length is divided out.

    Returns:
        (M, d). A zero row stays zero.
    """
    refuse_not_finite(x, "x")
    wide = _wide(x)
    length = _length(wide)  # (M, 1)
    scaled = wide / torch.where(length > 0, length, 1) ** power  # (M, d)
    return scaled.to(x.dtype) if x.is_floating_point() else scaled


def _length(x: Tensor) -> Tensor:
    """(M, d) -> (M, 1) Euclidean lengths."""
    # Entries are scaled to at most 1 before they are squared: no square overflows, none vanishes.
    largest = x.detach().abs().amax(dim=-1, keepdim=True)  # (M, 1)
    scale = torch.where(largest > 0, largest, 1)  # (M, 1)
    return scale * torch.linalg.vector_norm(x / scale, dim=-1, keepdim=True)


def _wide(x: Tensor) -> Tensor:
    """Half precision and integers in float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, torch.dtype]:
    """Both in one type to compute in, and the type to return."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"needs rows (M, d) and (N, d), got {tuple(a.shape)} and {tuple(b.shape)}; "
            "a single vector is x[None]"
        )
    refuse_not_finite(a, "a")
    refuse_not_finite(b, "b")
    dtype = torch.promote_types(a.dtype, b.dtype)
    dtype = dtype if dtype.is_floating_point else torch.float32
    a, b = _wide(a.to(dtype)), _wide(b.to(dtype))
    return a, b, dtype


# -------------------------------------------------------------------------------------------------- text


def tfidf(counts: Tensor, *, smooth: bool = True, sublinear: bool = False, normalized: bool = True) -> Tensor:
    """Term frequency times inverse document frequency: a word counts for more where it is rare.

        idf_t = ln((1 + N) / (1 + df_t)) + 1,   w_dt = tf_dt idf_t,   then each row is scaled to length 1

    with df_t the number of documents that have the term. These are scikit-learn's definitions
    (``TfidfTransformer``). Spärck Jones (1972), A statistical interpretation of term specificity.

    Args:
        counts: (N, V) how often each of N documents has each of V terms; dense or sparse.
        smooth: the 1s inside the logarithm, as if one more document had every term. Without them
            idf_t = ln(N / df_t) + 1.
        sublinear: 1 + ln(tf) in place of tf.
        normalized: scale rows to length 1, so that a dot product of two is their cosine.

    Returns:
        (N, V) in the layout of ``counts``, floating.
    """
    if counts.ndim != 2:
        raise ValueError(f"counts must be (N, V), got shape {tuple(counts.shape)}")
    n_documents, n_terms = counts.shape
    sparse = _wide(counts).to_sparse_coo().coalesce()
    (document, term), tf = sparse.indices(), sparse.values()  # (E,), (E,), (E,)
    if (tf < 0).any():
        raise ValueError("counts must not be negative")
    wrong = document[~tf.isfinite()]  # (W,)
    if len(wrong):
        raise ValueError(f"counts must be finite, but document {int(wrong[0])} holds NaN or infinity")
    df = term[tf > 0].bincount(minlength=n_terms).to(tf.dtype)  # (V,)
    # A term without documents has no entry to weigh; the clamp only keeps its idf finite.
    ratio = (1 + n_documents) / (1 + df) if smooth else n_documents / df.clamp(min=1)
    idf = ratio.log() + 1  # (V,)
    if sublinear:
        tf = torch.where(tf > 0, 1 + tf.log(), 0)
    weight = tf * idf[term]  # (E,)
    if normalized:
        squares = weight.new_zeros(n_documents).index_add_(0, document, weight.square())  # (N,)
        weight = weight / torch.where(squares > 0, squares, 1).sqrt()[document]
    result = torch.sparse_coo_tensor(
        sparse.indices(),
        weight,
        counts.shape,
        device=counts.device,
        is_coalesced=True,
        check_invariants=False,
    )
    if counts.layout == torch.strided:
        return result.to_dense()
    return result if counts.layout == torch.sparse_coo else result.to_sparse(layout=counts.layout)


# --------------------------------------------------------------------------------------------- neighbors


def top_neighbors(
    x: Tensor,
    k: int,
    similarity: Callable[[Tensor, Tensor], Tensor] | None = cosine,
    *,
    batch_size: int = 1024,
) -> tuple[Tensor, Tensor]:
    """The k most similar other rows of every row.

    Args:
        x: (N, d) vectors; or, with ``similarity=None``, the (N, N) similarities themselves.
        k: neighbors, 1 <= k < N.
        similarity: of rows (M, d) and (N, d) to (M, N), higher is more alike.
        batch_size: rows compared at once, so that memory is batch_size x N.

    Returns:
        neighbors: (N, k) int64, the most similar first; never the row itself, nor one of similarity ``-inf``:
            -1 stands in the places that are left.
        values: (N, k) their similarities.

    Raises:
        TypeError: ``k`` or ``batch_size`` is no whole number.
        ValueError: for a k out of range, wrong shapes, or a similarity that is NaN (naming the row).
    """
    k, batch_size = whole_number(k, "k"), whole_number(batch_size, "batch_size", at_least=1)
    n = len(x)
    if x.ndim != 2 or (similarity is None and x.shape[1] != n):
        wanted = "(N, d)" if similarity is not None else "(N, N)"
        raise ValueError(f"x must be {wanted}, got shape {tuple(x.shape)}")
    if not 1 <= k < n:
        raise ValueError(f"k must be between 1 and {n - 1}, the other rows; got {k}")
    if similarity in (cosine, dot):  # which would name the row by its place in a block
        refuse_not_finite(x, "x")
    best = []
    for rows in torch.arange(n, device=x.device).split(batch_size):
        block = x[rows] if similarity is None else similarity(x[rows], x)  # (b, N)
        itself = torch.arange(n, device=x.device) == rows[:, None]  # (b, N)
        block = block.masked_fill(itself, -torch.inf)  # (b, N)
        _refuse_nan(block, rows)
        values, neighbors = block.topk(k)  # (b, k)
        best.append((neighbors.masked_fill(values == -torch.inf, -1), values))
    neighbors, values = (torch.cat(parts) for parts in zip(*best, strict=True))  # (N, k)
    return neighbors, values


def _refuse_nan(block: Tensor, rows: Tensor) -> None:
    """NaN counts as the largest of numbers: it would be everybody's nearest neighbor."""
    if block.is_meta:
        return
    # NaN makes a row's sum NaN; so do infinities of both signs, which are allowed.
    for place in block.detach().sum(dim=1).isnan().nonzero().flatten().tolist():
        if n := int(block[place].isnan().sum()):
            raise ValueError(
                f"the similarities of row {int(rows[place])} are NaN for {n} of {block.shape[1]} rows: "
                "they cannot be ranked"
            )


def k_occurrence(neighbors: Tensor, n: int | None = None) -> Tensor:
    """N_k(i): in how many lists of nearest neighbors each point is.

    Args:
        neighbors: (M, k) int64, ``-1`` is no neighbor.
        n: number of points; M by default.

    Returns:
        (n,) int64. Its mean is k when every list is full and M = n.
    """
    return neighbors[neighbors >= 0].bincount(minlength=len(neighbors) if n is None else n)


def hubness(neighbors: Tensor, n: int | None = None) -> float:
    """Skewness of the k-occurrence: E[(N_k - mean)^3] / std^3.

    About 0 when every point is a neighbor of equally many. In many dimensions a few points, the hubs, become
    neighbors of nearly everything, and the skewness grows. Radovanović, Nanopoulos and Ivanović (2010), Hubs
    in space, equation 1.

    Args:
        neighbors: (M, k) int64.
        n: number of points; M by default.

    Returns:
        The skewness; 0 where all points occur equally often.
    """
    counts = k_occurrence(neighbors, n).cpu().double()  # (n,)
    deviation = counts - counts.mean()
    variance = deviation.square().mean()
    return float(deviation.pow(3).mean() / variance**1.5) if variance > 0 else 0.0
