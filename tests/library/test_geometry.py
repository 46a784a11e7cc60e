"""The shape of clouds of vectors: against brute force, numpy, and clouds whose shape is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_lib.geometry import (
    Whitening,
    alignment,
    all_but_the_top,
    explained_variance,
    mean_cosine,
    uniformity,
)
from recsys_lib.similarity import cosine


def cloud(n=200, d=6, seed=0, device="cpu"):
    """Correlated, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator) * torch.arange(1.0, d + 1)
    return (torch.randn(n, d, generator=generator) @ mix + 20).to(device)


# ----------------------------------------------------------------------------------------- anisotropy


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 30), d=st.integers(1, 8), seed=st.integers(0, 999), shift=st.floats(-3, 3))
def test_anisotropy_is_the_mean_over_pairs(n, d, seed, shift):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift
    pairs = cosine(x.double(), x.double())[~torch.eye(n, dtype=torch.bool)]
    assert mean_cosine(x) == pytest.approx(float(pairs.mean()), abs=1e-9)


def test_anisotropy_of_known_clouds():
    assert mean_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0]])) == 0
    assert mean_cosine(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])) == -1
    assert mean_cosine(torch.ones(5, 3)) == pytest.approx(1)
    assert mean_cosine(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])) == pytest.approx(1 / 3)
    spread = torch.randn(4000, 50, generator=torch.Generator().manual_seed(0))
    assert abs(mean_cosine(spread)) < 0.002
    assert mean_cosine(spread + 1) == pytest.approx(0.5, abs=0.01)  # |mean|^2 / (|mean|^2 + variance)


def test_float64_inside():
    """Among a million float32 additions the digits of a mean near 0 would be lost."""
    x = torch.randn(3000, 4, generator=torch.Generator().manual_seed(1)) + 1e4
    exact = x.double().numpy()
    unit = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    expected = (np.square(unit.sum(0)).sum() - len(x)) / (len(x) * (len(x) - 1))
    assert 1 - mean_cosine(x) == pytest.approx(1 - expected, rel=1e-6)


# ------------------------------------------------------------------------------------------ whitening


def test_whitened_vectors_have_the_identity_as_covariance(device):
    x = cloud(device=device)
    z = Whitening.fit(x)(x)
    assert z.device == x.device
    assert z.dtype == torch.float32
    assert torch.allclose(z.mean(0), torch.zeros_like(z[0]), atol=1e-5)
    covariance = z.mT @ z / len(z)
    assert torch.allclose(covariance, torch.eye(6, device=device), atol=1e-4)


def test_power_is_between_centering_and_whitening():
    x = cloud()
    variance = torch.linalg.eigvalsh(torch.cov(x.double().mT, correction=0)).flip(0)
    for power in (0.0, 0.25, 0.5, 1.0):
        z = Whitening.fit(x.double(), power)(x.double())
        assert torch.allclose(z.square().mean(0), variance ** (1 - power))
    centered = x.double() - x.double().mean(0)
    only = Whitening.fit(x.double(), 0.0)(x.double())
    assert torch.allclose(cosine(only, only), cosine(centered, centered))


def test_truncated_axes_are_those_of_the_largest_variance():
    x = cloud().double()
    full, two = Whitening.fit(x, 0.5), Whitening.fit(x, 0.5, dims=2)
    assert torch.equal(two(x), full(x)[:, :2])
    shares = explained_variance(x)
    assert float(shares.sum()) == pytest.approx(1)
    assert bool((shares.diff() <= 0).all())
    left = x - x.mean(0) - (x - x.mean(0)) @ two.axes @ two.axes.mT
    lost = left.square().sum() / (x - x.mean(0)).square().sum()
    assert float(lost) == pytest.approx(float(shares[2:].sum()))


def test_new_vectors_are_mapped_by_what_was_fitted():
    x, new = cloud(), cloud(5, seed=3)
    whitening = Whitening.fit(x)
    assert torch.allclose(whitening(new), whitening(torch.cat([x, new]))[-5:], atol=1e-6)
    assert torch.allclose(whitening(x.mean(0, keepdim=True)), torch.zeros(1, 6), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_axes_that_do_not_vary_come_out_as_zero(dtype):
    few = cloud(4, 9).to(dtype)  # three axes at most
    assert Whitening.fit(few)(few).shape == (4, 4)
    z = Whitening.fit(few, dims=9)(few)
    assert z.dtype == dtype
    assert z.isfinite().all()
    assert (z[:, 3:] == 0).all()
    assert (z[:, :3].float().square().mean(0) - 1).abs().max() < 0.02
    equal = cloud(1, 9).to(dtype).expand(5, -1)
    assert (Whitening.fit(equal)(equal) == 0).all()
    assert (explained_variance(equal) == 0).all()
    assert mean_cosine(equal) == pytest.approx(1)


def test_fewer_vectors_than_dimensions_are_the_same_map(device):
    x = cloud(30, 50, device=device).double()
    for power in (0.0, 0.5, 1.0):
        found = Whitening.fit(x, power)
        assert found.axes.shape == (50, 30)
        kept = found.axes[:, :29]
        assert torch.allclose(kept.mT @ kept, torch.eye(29, device=device).double(), atol=1e-9)
        variance = torch.linalg.eigvalsh(torch.cov(x.mT, correction=0)).flip(0)  # (50,)
        assert torch.allclose(found.variance, variance[:30], atol=1e-9)
        z = found(x)
        assert torch.allclose(z.square().mean(0)[:29], variance[:29] ** (1 - power))
    centered = x - x.mean(0)
    plain = Whitening.fit(x, 0.0)
    assert torch.allclose(plain(x) @ plain(x).mT, centered @ centered.mT)
    assert torch.allclose(all_but_the_top(x, 50), torch.zeros_like(x), atol=1e-9)
    assert explained_variance(x).shape == (50,)


def test_removing_the_top_by_hand():
    """Points on a line along (1, 1), with a little across: the line goes, the little stays."""
    along = torch.tensor([[1.0, 1.0]]) * torch.tensor([[-3.0], [-1.0], [1.0], [3.0]])
    across = torch.tensor([[0.1, -0.1], [-0.1, 0.1], [-0.1, 0.1], [0.1, -0.1]])
    assert torch.allclose(all_but_the_top(along + across + 7, 1), across, atol=1e-5)
    assert torch.allclose(all_but_the_top(along + across + 7, 0), along + across, atol=1e-5)
    assert torch.allclose(all_but_the_top(along + across, 2), torch.zeros(4, 2), atol=1e-6)


def test_removing_the_top_two_ways():
    x = cloud().double()
    removed, dropped = all_but_the_top(x, 2), Whitening.fit(x, power=0, drop=2)(x)
    assert dropped.shape == (200, 4)
    assert torch.allclose(removed @ removed.mT, dropped @ dropped.mT)
    assert torch.equal(all_but_the_top(x), all_but_the_top(x, 1))  # d / 100, one at least
    assert mean_cosine(removed) < mean_cosine(x) / 10


# ---------------------------------------------------------------------------------------------- errors


def test_wrong_input_is_named():
    broken = cloud(4)
    broken[2, 1] = math.nan
    for ask in (mean_cosine, Whitening.fit, all_but_the_top, explained_variance):
        with pytest.raises(ValueError, match="row 2"):
            ask(broken)
        with pytest.raises(ValueError, match=r"must be \(N, d\)"):
            ask(torch.ones(3))
    for ask in (mean_cosine, Whitening.fit, all_but_the_top):
        with pytest.raises(ValueError, match="2 or more"):
            ask(torch.ones(1, 3))
    x = cloud()
    with pytest.raises(ValueError, match="power must be from 0"):
        Whitening.fit(x, 1.5)
    with pytest.raises(ValueError, match="dims must be from 1 to 4"):
        Whitening.fit(x, dims=5, drop=2)
    with pytest.raises(ValueError, match=r"must be \(N, 6\)"):
        Whitening.fit(x)(torch.ones(2, 5))
    with pytest.raises(ValueError, match="k must be from 0 to 6"):
        all_but_the_top(x, 7)


def test_alignment_and_uniformity_by_hand():
    a = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    b = torch.tensor([[0.0, 3.0], [0.0, 5.0]])
    assert alignment(a, b) == pytest.approx((2.0 + 0.0) / 2)  # at right angles, and the same
    assert uniformity(a) == pytest.approx(-4.0)  # one pair, at a squared distance of 2: exp(-2 * 2)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0.0, abs=1e-9)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(opposite, t=1.0) == pytest.approx(-4.0)
    assert alignment(opposite, opposite.flip(0)) == pytest.approx(4.0)


def test_uniformity_equals_the_sum_over_pairs(monkeypatch):
    x = torch.randn(23, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = torch.nn.functional.normalize(x, dim=1)
    expected = torch.pdist(unit).square().mul(-2).exp().mean().log()
    assert uniformity(x) == pytest.approx(float(expected), rel=1e-10)
    monkeypatch.setattr("recsys_lib.geometry._PAIRS", 50)
    assert uniformity(x) == pytest.approx(float(expected), rel=1e-10)


def test_alignment_and_uniformity_name_what_is_wrong():
    with pytest.raises(ValueError, match="of one shape"):
        alignment(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(ValueError, match="N of 2 or more"):
        uniformity(torch.ones(1, 3))
    with pytest.raises(ValueError, match="t must be above 0"):
        uniformity(torch.ones(2, 3), t=0.0)
