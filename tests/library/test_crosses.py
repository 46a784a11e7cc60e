"""Interaction layers against loops, numpy and scikit-learn."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.preprocessing import PolynomialFeatures

from recsys_lib.crosses import (
    CrossNetwork,
    FactorizationMachine,
    InnerProducts,
    OuterProducts,
    pairs_of_fields,
)

B, F, D = 5, 4, 3


@pytest.fixture
def e(device) -> torch.Tensor:
    """(B, F, D) float64 where the device has it."""
    generator = torch.Generator().manual_seed(0)
    e = torch.randn(B, F, D, generator=generator, dtype=torch.float64)
    return e.float().to(device) if device.type == "mps" else e.to(device)


def like(layer, e):
    """The layer in the type and on the device of its input."""
    return layer.to(e)


def test_the_factorization_machine_is_the_double_loop(e):
    wanted = torch.stack([sum(row[f] @ row[g] for f in range(F) for g in range(f + 1, F)) for row in e])
    found = FactorizationMachine()(e)
    assert found.shape == (B, 1)
    torch.testing.assert_close(found[:, 0], wanted)


def test_the_factorization_machine_is_a_polynomial_of_its_features():
    """scikit-learn lists the products of two features; their weights are products of the vectors."""
    rng = np.random.default_rng(1)
    x, v = rng.normal(size=(B, F)), rng.normal(size=(F, D))
    polynomial = PolynomialFeatures(degree=2, interaction_only=True, include_bias=False)
    products = polynomial.fit_transform(x)[:, F:]  # (B, P)
    pairs = [np.flatnonzero(row) for row in polynomial.powers_[F:]]
    wanted = products @ [v[f] @ v[g] for f, g in pairs]
    found = FactorizationMachine()(torch.from_numpy(x[:, :, None] * v))
    np.testing.assert_allclose(found[:, 0].numpy(), wanted)


def test_inner_products_are_those_of_a_loop(e):
    found = InnerProducts(F)(e)
    wanted = [[row[f] @ row[g] for f, g in itertools.combinations(range(F), 2)] for row in e]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=e.dtype, device=e.device))
    torch.testing.assert_close(found.sum(dim=1, keepdim=True), FactorizationMachine()(e))


@pytest.mark.parametrize("rank", [None, 2])
def test_outer_products_are_read_by_their_matrices(e, rank):
    layer = like(OuterProducts(F, D, rank), e)
    with torch.no_grad():
        found = layer(e)
    for place, (f, g) in enumerate(itertools.combinations(range(F), 2)):
        w = layer.left[place] if rank is None else layer.left[place] @ layer.right[place].mT
        outer = e[:, f, :, None] * e[:, g, None, :]  # (B, D, D)
        torch.testing.assert_close(found[:, place], (outer * w).sum(dim=(1, 2)).detach())


def test_outer_products_with_unit_matrices_are_inner_products(e):
    layer = like(OuterProducts(F, D), e)
    layer.left.data[:] = torch.eye(D)
    torch.testing.assert_close(layer(e), InnerProducts(F)(e))


@pytest.mark.parametrize("rank", [None, 2])
def test_cross_layers_are_the_formula(e, rank):
    layer = like(CrossNetwork(F, D, n_layers=3, rank=rank), e)
    x0 = x = e.cpu().numpy().reshape(B, -1)
    for one in layer.layers:
        if rank is None:
            w, b = (p.detach().cpu().numpy() for p in (one.weight, one.bias))
        else:
            v, u, b = (p.detach().cpu().numpy() for p in (one[0].weight, one[1].weight, one[1].bias))
            w = u @ v
        x = x0 * (x @ w.T + b) + x
    np.testing.assert_allclose(layer(e).detach().cpu().numpy(), x, rtol=1e-5)


def test_cross_layers_raise_the_degree_by_one_each(e):
    """Without biases l layers are a polynomial of degree l + 1 in a scale of the input."""
    for n_layers in (1, 2, 3):
        layer = CrossNetwork(F, D, n_layers).double()
        for one in layer.layers:
            torch.nn.init.zeros_(one.bias)
        scales = np.arange(1, n_layers + 4)
        with torch.no_grad():
            values = [float(layer(scale * e.cpu().double())[0, 0]) for scale in scales]
        leading = np.polyfit(scales, values, n_layers + 1)
        assert abs(np.polyval(leading, scales) - values).max() < 1e-8 * max(map(abs, values))
        assert abs(np.diff(values, n_layers + 1)).max() > 1e-12  # and no less
        assert abs(np.diff(values, n_layers + 2)).max() < 1e-8 * max(map(abs, values))


@pytest.mark.parametrize(
    ("layer", "n_outputs"),
    [
        (FactorizationMachine(), 1),
        (InnerProducts(F), 6),
        (OuterProducts(F, D), 6),
        (OuterProducts(F, D, 1), 6),
        (CrossNetwork(F, D), F * D),
    ],
)
def test_the_outputs_are_as_many_as_announced(layer, n_outputs):
    assert layer.n_outputs == n_outputs
    assert layer(torch.zeros(2, F, D)).shape == (2, n_outputs)


def test_one_field_has_no_pairs():
    one = torch.ones(2, 1, D)
    assert [len(side) for side in pairs_of_fields(1)] == [0, 0]
    assert FactorizationMachine()(one).tolist() == [[0.0], [0.0]]
    assert InnerProducts(1)(one).shape == (2, 0)
    assert OuterProducts(1, D)(one).shape == (2, 0)
