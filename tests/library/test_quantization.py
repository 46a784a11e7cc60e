"""Shorter forms of vectors: how far they may be off, and that others make the same of them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from recsys_lib.quantization import (
    binary,
    hamming,
    int8,
    matryoshka_loss,
    prefix_widths,
    product_codes,
    quantized,
    truncated,
    truncation_bound,
)

faiss = pytest.importorskip("faiss")

SCOPES = ("vector", "dimension", "table")


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def far(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """Correlated, far from the origin."""
    mix = normal(d, d, seed) * torch.arange(1.0, d + 1)
    return normal(n, d, seed + 1000) @ mix + 20


@st.composite
def tables(draw) -> torch.Tensor:
    n, d, seed = draw(st.integers(1, 9)), draw(st.integers(1, 19)), draw(st.integers(0, 999))
    sizes = 10.0 ** torch.randint(-6, 7, (n, 1), generator=torch.Generator().manual_seed(seed))
    x = normal(n, d, seed) * sizes
    x[draw(st.integers(0, n - 1))] *= draw(st.sampled_from([0.0, 1.0]))
    return x


@settings(max_examples=60, deadline=None)
@given(tables(), st.sampled_from(SCOPES))
def test_int8_is_off_by_half_a_step_at_most(x, by):
    short = int8(x, by)
    assert short.codes.dtype == torch.int8
    assert short.codes.min() >= -127
    slack = 1 + 1e-5  # of float32
    assert ((short.restored() - x).abs() <= short.scale / 2 * slack).all()
    queries = normal(3, x.shape[1], 7)
    off = (short.dot(queries).double() - queries.double() @ x.double().mT).abs()
    allowed = short.bound(queries).double()
    assert (off <= allowed * slack + 1e-5 * (queries.abs() @ x.abs().mT)).all()
    # The largest number of what shares a scale uses the last code, so no step is wasted.
    if by == "table" and bool(x.any()):
        assert short.codes.abs().max() == 127


def test_int8_by_hand():
    short = int8(torch.tensor([[0.5, -1.27, 0.004], [2.54, 0.0, 1.0]]))
    assert short.codes.tolist() == [[50, -127, 0], [127, 0, 50]]
    torch.testing.assert_close(short.scale, torch.tensor([[0.01], [0.02]]))
    assert short.bytes_a_vector == 3 + 4
    by_dimension = int8(torch.tensor([[1.27, 0.0], [-0.3, 2.54]]), "dimension")
    assert by_dimension.codes.tolist() == [[127, 0], [-30, 127]]
    assert by_dimension.bytes_a_vector == 2 + 4 * 2 / 2


def test_one_scale_of_the_table_spoils_small_vectors():
    x = torch.cat([normal(20, 16), 1000 * normal(1, 16, 1)])
    error = {by: (int8(x, by).restored() - x)[:20].norm() / x[:20].norm() for by in SCOPES}
    assert error["vector"] < 0.01 < 0.5 < error["table"]


def test_faiss_computes_the_same_products_of_the_codes():
    x, queries = normal(50, 16), normal(5, 16, 1)
    short = int8(x, "dimension")
    index = faiss.IndexScalarQuantizer(
        16, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT
    )
    index.add(short.codes.float().numpy())  # codes of its own, one to one
    scores, found = index.search((queries * short.scale).numpy(), 50)
    torch.testing.assert_close(
        short.dot(queries).gather(1, torch.from_numpy(found)), torch.from_numpy(scores), rtol=1e-4, atol=1e-4
    )


def test_int8_ranks_as_well_as_faiss_with_eight_bits():
    x, queries = normal(2000, 32), normal(40, 32, 1)
    exact = (queries @ x.mT).topk(10).indices

    def recall(found):
        return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), found, strict=True)])

    index = faiss.IndexScalarQuantizer(32, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    index.train(x.numpy())
    index.add(x.numpy())
    theirs = recall(index.search(queries.numpy(), 10)[1].tolist())
    for by in ("vector", "dimension"):
        assert recall(int8(x, by).dot(queries).topk(10).indices.tolist()) >= theirs - 0.03


@settings(max_examples=60, deadline=None)
@given(tables())
def test_signs_are_those_of_numpy(x):
    short, d = binary(x), x.shape[1]
    expected = np.packbits(x.numpy() > 0, axis=1, bitorder="little")
    assert np.array_equal(short.codes.numpy(), expected)
    assert short.bytes_a_vector == -(-d // 8)
    signs = torch.where(x > 0, 1.0, -1.0)
    torch.testing.assert_close(short.restored(), signs / d**0.5)
    apart = hamming(short, short)
    torch.testing.assert_close((d - 2 * apart).float(), signs @ signs.mT)
    queries = normal(2, d, 3)
    torch.testing.assert_close(short.dot(queries), queries @ signs.mT / d**0.5, rtol=1e-4, atol=1e-5)


def test_faiss_counts_the_same_signs():
    x, y = binary(normal(40, 64)), binary(normal(3, 64, 1))
    index = faiss.IndexBinaryFlat(64)
    index.add(x.codes.numpy())
    distances, found = index.search(y.codes.numpy(), 40)
    assert torch.equal(hamming(y, x).gather(1, torch.from_numpy(found)), torch.from_numpy(distances).long())


def test_the_share_of_signs_that_differ_is_the_angle():
    x, y = normal(1, 40_000), normal(1, 40_000, 1)
    for mix in (0.0, 0.5, 1.0, 2.0):
        other = x + mix * y
        angle = torch.arccos(torch.nn.functional.cosine_similarity(x, other).clamp(-1, 1))
        share = hamming(binary(x), binary(other)).item() / 40_000
        assert abs(share - angle.item() / torch.pi) < 0.01


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 12))
def test_truncation_is_off_by_what_was_cut_at_most(seed, width):
    x, queries = normal(6, 12, seed), normal(4, 12, seed + 1)
    cut = truncated(queries, width, normalize=False) @ truncated(x, width, normalize=False).mT
    off = (cut - queries @ x.mT).abs()
    assert (off <= truncation_bound(queries, x, width) + 1e-4).all()
    torch.testing.assert_close(truncated(x, width).norm(dim=1), torch.ones(6))


def test_truncated_by_hand():
    x = torch.tensor([[3.0, 4.0, 12.0], [0.0, 0.0, 1.0]])
    assert torch.allclose(truncated(x, 2), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    assert torch.allclose(truncated(x, 3).norm(dim=1), torch.ones(2))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 20), d=st.integers(1, 20), seed=st.integers(0, 999))
def test_a_byte_is_at_most_half_a_step_away(n, d, seed):
    x = far(n, d, seed)
    small = quantized(x)
    assert small.codes.dtype == torch.int8
    assert small.n_bytes == n * d
    step = (x.amax(0) - x.amin(0)) / 254
    assert ((small.vectors() - x).abs() <= step / 2 + 1e-4).all()
    again = small.encode(x)
    assert torch.equal(again.codes, small.codes)


def test_each_dimension_has_its_own_scale():
    x = torch.tensor([[0.001, 1000.0], [-0.001, -1000.0], [0.0005, 0.0]])
    assert torch.allclose(quantized(x).vectors(), x, rtol=0.01)
    constant = torch.tensor([[2.0, 1.0], [2.0, 3.0]])
    assert torch.equal(quantized(constant).vectors()[:, 0], constant[:, 0])
    outside = quantized(constant).encode(torch.tensor([[2.0, 99.0]]))
    assert float(outside.vectors()[0, 1]) == pytest.approx(3.0)


class NoDoubleMoves(TorchFunctionMode):
    """Refuses to move float64 to a named device: MPS has no such numbers."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.to and args[0].dtype == torch.float64:
            assert not any(isinstance(x, (str, torch.device)) for x in (*args, *(kwargs or {}).values()))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bits", [8, 1])
def test_what_is_computed_in_float64_stays_where_it_is(bits):
    x = far(20, 5)
    with NoDoubleMoves():
        short = quantized(x, bits)
        again = short.encode(x)
    assert torch.equal(short.codes, again.codes)
    with NoDoubleMoves(), pytest.raises(AssertionError):
        x.double().to(x.device)


def test_bits_by_hand():
    x = torch.tensor([[1.0, 0.0, 5.0], [3.0, 0.0, 1.0]])  # means 2, 0, 3; mean distances 1, 0, 2
    small = quantized(x, bits=1)
    assert small.codes.tolist() == [[0b100], [0b001]]
    assert torch.equal(small.vectors(), x)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 20), d=st.integers(1, 20), seed=st.integers(0, 999))
def test_bits_are_those_of_numpy(n, d, seed):
    x = far(n, d, seed)
    small = quantized(x, bits=1)
    above = (x.double() > x.double().mean(0).float()).numpy()
    assert np.array_equal(small.codes.numpy(), np.packbits(above, axis=1, bitorder="little"))
    assert small.codes.shape == (n, math.ceil(d / 8))
    assert torch.equal(small.vectors() > small.center, torch.from_numpy(above) & (small.scale > 0))


def test_matryoshka_is_the_mean_over_prefixes():
    assert prefix_widths(64, 8) == [8, 16, 32, 64]
    assert prefix_widths(20, 8) == [8, 16, 20]
    assert prefix_widths(5, 5) == [5]
    x = normal(4, 6).requires_grad_()
    loss = matryoshka_loss(lambda w: x[:, :w].square().sum(), [2, 6])
    loss.backward()
    # The first two numbers are in both prefixes, the others in one.
    torch.testing.assert_close(x.grad, x.detach() * torch.tensor([2.0, 2, 1, 1, 1, 1]))


def test_more_bytes_of_product_codes_are_closer():
    x = normal(600, 16)
    errors = [(product_codes(x, n) - x).norm().item() for n in (1, 4, 16)]
    assert errors[0] > errors[1] > errors[2]
    torch.testing.assert_close(product_codes(x, 4), product_codes(x, 4))  # the seed settles it
    assert torch.equal(product_codes(x.double(), 4), product_codes(x, 4))


def test_what_cannot_be_shortened_is_refused():
    x = normal(3, 4)
    with pytest.raises(ValueError, match="row 1"):
        int8(torch.tensor([[1.0], [torch.nan]]))
    with pytest.raises(ValueError, match='by must be "vector", "dimension" or "table", got \'row\''):
        int8(x, "row")
    with pytest.raises(ValueError, match=r"vectors must be \(N, d\)"):
        binary(x[0])
    with pytest.raises(ValueError, match="signs of 4 numbers cannot be compared with signs of 2"):
        hamming(binary(x), binary(x[:, :2]))
    with pytest.raises(ValueError, match="width must be 1 to 4, got 5"):
        truncated(x, 5)
    with pytest.raises(TypeError, match="whole number"):
        truncated(x, 2.0)
    with pytest.raises(ValueError, match="bits must be 8 or 1"):
        quantized(x, bits=4)
    with pytest.raises(ValueError, match="row 1"):
        quantized(torch.tensor([[1.0], [torch.nan]]))
    with pytest.raises(ValueError, match=r"\(N, d\), 1 or more"):
        quantized(x[:0])
    with pytest.raises(ValueError, match="smallest width must be 1 to 4"):
        prefix_widths(4, 8)
    with pytest.raises(ValueError, match="must divide the width"):
        product_codes(x, 3)
    with pytest.raises(ValueError, match="needs as many vectors, got 3"):
        product_codes(x, 2)
    with pytest.raises(ValueError, match="a width to train"):
        matryoshka_loss(lambda w: x.sum(), [])
