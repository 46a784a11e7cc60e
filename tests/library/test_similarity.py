"""Similarities against scikit-learn and SciPy, at the edges of the number range, and on another device."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from recsys_lib import similarity as s

quick = settings(max_examples=50, deadline=None)
shapes = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8))
# Down to 0 and up to where a square overflows; subnormal numbers have too few digits to compare.
numbers = st.floats(-(2.0**70), 2.0**70, width=32, allow_subnormal=False)


@st.composite
def pairs(draw: st.DrawFn, values: st.SearchStrategy[float] = numbers) -> tuple[Tensor, Tensor]:
    m, n, d = draw(shapes)
    draws = (draw(arrays(np.float32, (rows, d), elements=values)) for rows in (m, n))
    a, b = (torch.from_numpy(x) for x in draws)
    return a, b


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------- pairwise


@quick
@given(pairs())
def test_cosine_equals_scikit_learn_and_is_bounded(ab: tuple[Tensor, Tensor]) -> None:
    a, b = ab
    result = s.cosine(a, b)
    assert result.shape == (len(a), len(b))
    assert result.dtype == torch.float32
    assert (result.abs() <= 1).all()
    # scikit-learn takes very short vectors for zero: give it rows whose largest entry is 1.
    a, b = (x.double() / x.double().abs().amax(1, keepdim=True).clamp(min=1e-50) for x in ab)
    np.testing.assert_allclose(result, cosine_similarity(a, b), atol=1e-5)


@quick
@given(
    pairs(st.floats(-10, 10, width=32, allow_subnormal=False)), st.floats(1e-20, 1e20), st.floats(1e-20, 1e20)
)
def test_cosine_does_not_depend_on_lengths(ab: tuple[Tensor, Tensor], x: float, y: float) -> None:
    a, b = ab
    # Products below the normal range would lose digits; such entries count as 0.
    a, b = (torch.where((v * z).abs() < 1e-30, 0, v) for v, z in ((a, x), (b, y)))
    torch.testing.assert_close(s.cosine(a * x, b * y), s.cosine(a, b), atol=1e-5, rtol=0)


def test_cosine_of_a_zero_vector_is_zero_with_a_finite_gradient() -> None:
    a = torch.tensor([[0.0, 0.0], [1e-38, 0.0], [3.0, 4.0]], requires_grad=True)
    b = torch.tensor([[1.0, 1.0], [0.0, 0.0]], requires_grad=True)
    result = s.cosine(a, b)
    assert result[0].tolist() == [0, 0]
    assert result[:, 1].tolist() == [0, 0, 0]
    result.sum().backward()
    assert a.grad is not None
    assert a.grad[0].tolist() == [0, 0]
    assert a.grad[2].isfinite().all()
    assert b.grad is not None
    assert b.grad.isfinite().all()


def test_cosine_stays_within_its_bounds_where_rounding_would_leave_them() -> None:
    x = randn(3000, 7)
    assert s.dot(s.normalize(x), s.normalize(x)).max() > 1
    assert s.cosine(x, x).max() == 1
    assert s.cosine(x, -x).min() == -1


def test_cosine_eps_is_the_length_below_which_a_vector_has_no_direction() -> None:
    a = torch.tensor([[0.3, 0.4], [0.6, 0.8]])
    assert s.cosine(a, a, eps=0.6).tolist() == [[0, 0], [0, pytest.approx(1)]]


def test_cosine_gradient_is_right() -> None:
    a, b = (randn(3, 4, seed=i).double().requires_grad_() for i in range(2))
    assert torch.autograd.gradcheck(s.cosine, (a, b))
    assert torch.autograd.gradcheck(lambda x: s.normalize(x, 0.5), (a,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_safe(dtype: torch.dtype) -> None:
    # Squares of these overflow float16; so does the sum of the products.
    a, b = (randn(5, 64, seed=i) * 3000 for i in range(2))
    exact = s.cosine(a.to(dtype).float(), b.to(dtype).float())
    result = s.cosine(a.to(dtype), b.to(dtype))
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), exact, atol=0.01, rtol=0)
    assert s.normalize(a.to(dtype)).dtype == dtype
    torch.testing.assert_close(s.normalize(a.to(dtype)).float().norm(dim=1), torch.ones(5), atol=0.01, rtol=0)
    assert s.euclidean(a.to(dtype) / 1000, b.to(dtype) / 1000).isfinite().all()


@quick
@given(pairs(st.floats(-100, 100, width=32)))
def test_dot_and_euclidean_equal_their_definitions(ab: tuple[Tensor, Tensor]) -> None:
    a, b = ab
    np.testing.assert_allclose(s.dot(a, b), a.double() @ b.double().T, atol=0.1, rtol=1e-4)
    np.testing.assert_allclose(s.euclidean(a, b), cdist(a, b), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(s.euclidean(a, b), torch.cdist(a, b), atol=0.2, rtol=1e-4)
    torch.testing.assert_close(s.euclidean(a, a).diagonal(), torch.zeros(len(a)), atol=0, rtol=0)


def test_euclidean_keeps_its_digits_for_close_vectors() -> None:
    a = torch.full((30, 3), 1000.0)
    assert s.euclidean(a, a + 0.001).max() == pytest.approx(0.001 * 3**0.5, rel=0.1)


def test_distance_and_cosine_agree_between_unit_vectors() -> None:
    a, b = (s.normalize(randn(6, 5, seed=i)) for i in range(2))
    torch.testing.assert_close(s.euclidean(a, b) ** 2, 2 - 2 * s.cosine(a, b), atol=1e-5, rtol=0)


def test_biased_dot_by_hand() -> None:
    p, q = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    result = s.biased_dot(p, q, torch.tensor([0.5]), torch.tensor([-1.0, 2.0]), 3.5)
    assert result.tolist() == [[3.5 + 0.5 - 1 + 11, 3.5 + 0.5 + 2 + 2]]
    with pytest.raises(ValueError, match="one a vector"):
        s.biased_dot(p, q, torch.zeros(2), torch.zeros(2))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_normalize_is_a_dial_from_dot_to_cosine(power: float) -> None:
    x = randn(6, 5)
    length = x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(s.normalize(x, power), x / length**power)
    assert s.normalize(torch.zeros(1, 3), power).tolist() == [[0, 0, 0]]
    assert s.normalize(torch.tensor([[3, 4]])).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]


@pytest.mark.parametrize("function", [s.dot, s.cosine, s.euclidean])
def test_pairwise_functions_refuse_other_shapes(function: object) -> None:
    for a, b in ((torch.zeros(3), torch.zeros(2, 3)), (torch.zeros(2, 3), torch.zeros(2, 4))):
        with pytest.raises(ValueError, match=r"rows \(M, d\) and \(N, d\)"):
            function(a, b)  # type: ignore[operator]


@pytest.mark.parametrize("function", [s.dot, s.cosine, s.euclidean])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("hole", "name"), [(torch.nan, "NaN"), (torch.inf, "infinity"), (-torch.inf, "infinity")]
)
def test_a_vector_with_a_hole_is_refused_by_its_row(
    function: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, hole: float, name: str
) -> None:
    whole, broken = randn(5, 4).to(dtype), randn(5, 4).to(dtype)
    broken[3, 2] = hole
    with pytest.raises(ValueError, match=f"row 3 of a holds {name}"):
        function(broken, whole)
    with pytest.raises(ValueError, match=f"row 3 of b holds {name}"):
        function(whole.requires_grad_(), broken)
    with pytest.raises(ValueError, match=f"row 3 of x holds {name}"):
        s.normalize(broken)
    ones = torch.ones(5, dtype=dtype)
    for change in ({"p": broken}, {"q": broken}, {"user_bias": broken[:, 2]}, {"item_bias": broken[:, 2]}):
        given = {"p": whole, "q": whole, "user_bias": ones, "item_bias": ones} | change
        with pytest.raises(ValueError, match=f"row 3 of {next(iter(change))} holds {name}"):
            s.biased_dot(**given)


def test_large_numbers_are_no_holes() -> None:
    x = torch.tensor([[1e38, 2e38, 2e38, 0], [-2e38, -1e38, 2e38, 0]])  # whose sum overflows
    torch.testing.assert_close(s.cosine(x, x), torch.eye(2), atol=1e-6, rtol=0)


def test_results_live_on_the_device_of_the_inputs() -> None:
    a, b = torch.empty(3, 4, device="meta"), torch.empty(5, 4, device="meta")
    for result in (
        s.dot(a, b),
        s.cosine(a, b),
        s.euclidean(a, b),
        s.biased_dot(a, b, a[:, 0], b[:, 0], a[0, 0]),
    ):
        assert result.device.type == "meta"
        assert result.shape == (3, 5)
    assert s.normalize(a).device.type == "meta"
    assert s.top_neighbors(b, 2)[0].shape == (5, 2)
    assert s.top_neighbors(torch.empty(5, 5, device="meta"), 2, None)[0].shape == (5, 2)

    # And the other way round: nothing is made on the default device.
    x, counts = randn(6, 4), torch.randint(3, (6, 4), generator=torch.Generator().manual_seed(0))
    expected = s.tfidf(counts), *s.top_neighbors(x, 2)
    with torch.device("meta"):
        got = s.tfidf(counts), *s.top_neighbors(x, 2)
        assert s.hubness(got[1]) == s.hubness(expected[1])
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)


# -------------------------------------------------------------------------------------------------- text


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@quick
@given(
    counts=arrays(np.int64, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.integers(0, 4)),
    smooth=st.booleans(),
    sublinear=st.booleans(),
    normalized=st.booleans(),
    layout=st.sampled_from([torch.strided, torch.sparse_coo, torch.sparse_csr]),
)
def test_tfidf_equals_scikit_learn(
    counts: np.ndarray, smooth: bool, sublinear: bool, normalized: bool, layout: torch.layout
) -> None:
    if not smooth:  # scikit-learn divides by 0 for terms without documents
        counts = counts[:, counts.any(axis=0)]
        if not counts.size:
            return
    theirs = TfidfTransformer(smooth_idf=smooth, sublinear_tf=sublinear, norm="l2" if normalized else None)
    expected = theirs.fit_transform(scipy.sparse.csr_matrix(counts)).toarray()
    given = torch.from_numpy(counts).double()
    if layout != torch.strided:
        given = given.to_sparse(layout=layout)
    result = s.tfidf(given, smooth=smooth, sublinear=sublinear, normalized=normalized)
    assert result.layout == layout
    np.testing.assert_allclose(result.to_dense(), expected, atol=1e-9)


def test_tfidf_does_not_count_a_stored_zero_as_a_document() -> None:
    counts = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    stored = torch.sparse_coo_tensor(
        [[0, 0, 1, 1], [0, 1, 0, 1]], counts.flatten(), (2, 2), check_invariants=True
    )
    torch.testing.assert_close(s.tfidf(stored).to_dense(), s.tfidf(counts))


def test_tfidf_takes_counts_as_integers_and_refuses_negative_ones() -> None:
    assert s.tfidf(torch.tensor([[1, 0], [2, 3]])).dtype == torch.float32
    with pytest.raises(ValueError, match="negative"):
        s.tfidf(torch.tensor([[-1.0]]))
    with pytest.raises(ValueError, match=r"\(N, V\)"):
        s.tfidf(torch.zeros(3))
    for hole in (torch.nan, torch.inf):
        counts = torch.ones(4, 3)
        counts[2, 1] = hole
        for layout in (counts, counts.to_sparse()):
            with pytest.raises(ValueError, match="document 2 holds NaN or infinity"):
                s.tfidf(layout)


# --------------------------------------------------------------------------------------------- neighbors


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_top_neighbors_equal_scikit_learn(batch_size: int) -> None:
    x = randn(40, 6)
    neighbors, values = s.top_neighbors(x, 5, batch_size=batch_size)
    distances, expected = NearestNeighbors(metric="cosine").fit(x).kneighbors(n_neighbors=5)
    assert neighbors.tolist() == expected.tolist()
    np.testing.assert_allclose(values, 1 - distances, atol=1e-5)

    nearest, _ = s.top_neighbors(x, 5, lambda a, b: -s.euclidean(a, b), batch_size=batch_size)
    assert nearest.tolist() == NearestNeighbors().fit(x).kneighbors(n_neighbors=5)[1].tolist()


def test_top_neighbors_of_a_given_similarity() -> None:
    x = randn(10, 4)
    given = s.cosine(x, x)
    before = given.clone()
    assert torch.equal(s.top_neighbors(given, 3, None)[0], s.top_neighbors(x, 3)[0])
    assert torch.equal(given, before)
    with pytest.raises(ValueError, match=r"\(N, N\)"):
        s.top_neighbors(x, 3, None)
    with pytest.raises(ValueError, match="between 1 and 9"):
        s.top_neighbors(x, 10)


@pytest.mark.parametrize("similarity", [s.cosine, s.dot, lambda a, b: a @ b.mT, None])
@pytest.mark.parametrize("batch_size", [2, 100])
def test_a_row_of_nan_is_nobodys_neighbor(
    similarity: Callable[[Tensor, Tensor], Tensor] | None, batch_size: int
) -> None:
    x = randn(7, 7)
    x[5] = torch.nan
    # Compared with others, row 5 makes the first row NaN too, unless it is refused as a vector.
    message = (
        "row 5 of x holds NaN" if similarity in (s.cosine, s.dot) else r"row \d are NaN for \d of 7 rows"
    )
    with pytest.raises(ValueError, match=message):
        s.top_neighbors(x, 2, similarity, batch_size=batch_size)


def test_given_similarities_may_be_infinite_and_need_none_of_a_row_to_itself() -> None:
    given = torch.tensor([[torch.nan, torch.inf, -torch.inf], [3.0, torch.nan, 2.0], [0.0, 1.0, torch.nan]])
    neighbors, values = s.top_neighbors(given, 2, None)
    assert neighbors.tolist() == [[1, -1], [0, 2], [1, 0]]  # -1 is none, rather than row 0 itself
    assert s.k_occurrence(neighbors).tolist() == [2, 2, 1]
    assert values[0].tolist() == [torch.inf, -torch.inf]
    given[1, 2] = torch.nan
    with pytest.raises(ValueError, match="similarities of row 1 are NaN for 1 of 3 rows"):
        s.top_neighbors(given, 2, None)


def test_top_neighbors_count_in_whole_numbers() -> None:
    x = randn(6, 4)
    assert torch.equal(s.top_neighbors(x, np.int64(2))[0], s.top_neighbors(x, 2)[0])
    for k in (2.0, True):
        with pytest.raises(TypeError, match="k must be a whole number"):
            s.top_neighbors(x, k)
    with pytest.raises(TypeError, match=r"batch_size must be a whole number, got 2\.5"):
        s.top_neighbors(x, 2, batch_size=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        s.top_neighbors(x, 2, batch_size=0)


def test_hubness_equals_scipy_and_grows_with_dimension() -> None:
    low, high = (s.top_neighbors(randn(400, d), 10, lambda a, b: -s.euclidean(a, b))[0] for d in (3, 100))
    for neighbors in (low, high):
        counts = s.k_occurrence(neighbors)
        assert counts.tolist() == [(neighbors == i).sum().item() for i in range(400)]
        assert s.hubness(neighbors) == pytest.approx(stats.skew(counts.numpy()), abs=1e-9)
    assert s.hubness(high) > 1 + s.hubness(low)


def test_k_occurrence_in_known_cases() -> None:
    ring = torch.stack([torch.arange(1, 6) % 5], dim=1)
    assert s.k_occurrence(ring).tolist() == [1] * 5
    assert s.hubness(ring) == 0
    assert s.k_occurrence(torch.tensor([[0, -1], [0, 3]]), n=6).tolist() == [2, 0, 0, 1, 0, 0]
