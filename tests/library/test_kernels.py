"""Kernels of item features: right values, no unit, no center."""

import pytest
import torch

from recsys_lib.kernels import Features, sum_of_kernels


@pytest.fixture
def vectors(device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(9, 4, generator=generator, dtype=torch.float64).float().to(device)


def centered(kernel: torch.Tensor) -> torch.Tensor:
    """By the matrix that takes means out, and with a mean diagonal of 1."""
    out = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device) - 1 / len(kernel)
    kernel = out @ kernel @ out
    return kernel / kernel.diagonal().mean()


def test_a_linear_kernel_is_the_products_of_centered_rows(vectors):
    rows = (vectors - vectors.mean(0)).to(Features(vectors).kernel().dtype)
    assert torch.allclose(Features(vectors, unit=False).kernel(), centered(rows @ rows.mT), atol=1e-6)
    unit = rows / rows.norm(dim=1, keepdim=True)
    assert torch.allclose(Features(vectors).kernel(), centered(unit @ unit.mT), atol=1e-6)


@pytest.mark.parametrize("unit", [True, False])
def test_a_gaussian_kernel_is_that_of_scikit_learn(vectors, unit):
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    rows = (vectors - vectors.mean(0)).cpu().double()
    rows = rows / rows.norm(dim=1, keepdim=True) if unit else rows
    expected = torch.from_numpy(pairwise.rbf_kernel(rows.numpy(), gamma=1 / (2 * 0.8**2)))
    found = Features(vectors, unit=unit, width=0.8).kernel().cpu().double()
    assert torch.allclose(found, centered(expected), atol=1e-5)


def test_it_feels_neither_the_features_unit_nor_their_origin(vectors):
    years = vectors[:, 0]  # (9,) one feature needs no second dimension
    kernel = Features(years, unit=False).kernel()
    assert torch.allclose(kernel, Features(1900 + 10 * years[:, None], unit=False).kernel(), atol=1e-4)
    assert kernel.diagonal().mean().item() == pytest.approx(1, abs=1e-6)
    assert kernel.sum(0).abs().max() < 1e-5


def test_a_sum_weighs_its_parts(vectors):
    a, b = Features(vectors, weight=2.0), Features(vectors, width=0.5)
    none = Features(torch.full_like(vectors, float(3)), weight=0.0)
    total = sum_of_kernels([a, none, b])
    assert torch.allclose(total, 2 * a.kernel() + b.kernel())
    assert total.device.type == vectors.device.type


@pytest.mark.parametrize("width", [None, 1.0])
def test_equal_rows_tell_nothing(device, width):
    kernel = Features(torch.full((5, 3), 0.1, device=device), width=width).kernel()
    assert (kernel == 0).all()


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        (torch.zeros(2, 2, 2), {}, "a row an item"),
        (torch.zeros(0, 2), {}, "a row an item"),
        (torch.tensor([[1.0], [float("nan")]]), {}, "item 1"),
        (torch.ones(2, 1), {"weight": -1.0}, "weight"),
        (torch.ones(2, 1), {"weight": float("inf")}, "weight"),
        (torch.ones(2, 1), {"width": 0.0}, "width"),
    ],
)
def test_what_makes_no_sense_is_refused(values, options, words):
    with pytest.raises(ValueError, match=words):
        Features(values, **options)


def test_a_sum_needs_kinds_of_the_same_items():
    with pytest.raises(ValueError, match="none"):
        sum_of_kernels([])
    with pytest.raises(ValueError, match="same items"):
        sum_of_kernels([Features(torch.ones(2, 1)), Features(torch.ones(3, 1))])
    with pytest.raises(ValueError, match="above 0"):
        sum_of_kernels([Features(torch.ones(2, 1), weight=0.0)])
