import itertools

import pandas as pd
import pytest
import torch

from recsys_lib.data import Interactions
from recsys_lib.models import ALS

SMALL = {"dim": 3, "alpha": 0.2, "l2": 0.05, "nu": 0.7}


def events(seed: int = 0, n_users: int = 14, n_items: int = 9) -> Interactions:
    """About a third of all pairs, in a random order; the last user and the last item have none."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(n_users, n_items, generator=generator) < 0.35
    chosen[-1], chosen[:, -1] = False, False
    chosen[:-1, 0] = True
    users, items = chosen.nonzero(as_tuple=True)
    frame = pd.DataFrame({"user_id": users.numpy(), "item_id": items.numpy()})
    frame["rating"], frame["timestamp"] = 5.0, torch.randperm(len(frame), generator=generator).numpy()
    return Interactions.from_frame(frame, user_ids=range(n_users), item_ids=range(n_items))


def weighed(model: ALS, inter: Interactions) -> torch.Tensor:
    """The weights of what was chosen, (n_users, n_items) float64, zero elsewhere."""
    w = torch.zeros(inter.n_users, inter.n_items, dtype=torch.float64)
    users = torch.repeat_interleave(torch.arange(inter.n_users), model.history_crow.diff())
    w[users, model.history_items] = model.history_weights.double()
    return w


def loss(w: torch.Tensor, P: torch.Tensor, Q: torch.Tensor, alpha: float, l2: float, nu: float):
    """The objective over all cells, as the docstring writes it."""
    scores = P @ Q.mT
    fit = (w * (1 - scores) ** 2).sum() + alpha * (scores**2).sum()
    n_u, n_i = (w > 0).sum(1), (w > 0).sum(0)
    shrunk = ((n_u + alpha * w.shape[1]) ** nu * P.square().sum(1)).sum()
    return fit + l2 * (shrunk + ((n_i + alpha * w.shape[0]) ** nu * Q.square().sum(1)).sum())


def people(model: ALS, inter: Interactions) -> torch.Tensor:
    """The users' vectors, (n_users, d) float64, from the system of each written out."""
    w, Q = weighed(model, inter), model.item_factors.double()
    rows = []
    for u in range(inter.n_users):
        penalty = model.l2 * float((w[u] > 0).sum() + model.alpha * inter.n_items) ** model.nu
        system = model.alpha * Q.mT @ Q + penalty * torch.eye(model.dim, dtype=Q.dtype)
        target = torch.zeros(model.dim, dtype=Q.dtype)
        for i in w[u].nonzero().flatten().tolist():
            system += w[u, i] * torch.outer(Q[i], Q[i])
            target += w[u, i] * Q[i]
        rows.append(torch.linalg.inv(system) @ target)
    return torch.stack(rows)


@pytest.mark.parametrize("recency", [0.0, 0.8])
def test_scores_solve_each_users_system(recency):
    inter = events()
    model = ALS(recency=recency, **SMALL).fit(inter, device="cpu", progress=False)
    expected = people(model, inter) @ model.item_factors.double().mT
    found = model.score(torch.arange(inter.n_users)).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not found[-1].any()
    assert not found[:, -1].any()


@pytest.mark.parametrize("recency", [0.0, 0.8])
def test_in_the_end_no_vector_can_be_better(recency):
    inter = events()
    model = ALS(epochs=400, recency=recency, **SMALL).fit(inter, device="cpu", progress=False)
    P = people(model, inter).requires_grad_()
    Q = model.item_factors.double().requires_grad_()
    assert Q.abs().max() > 0.1  # not the trivial answer, everything zero
    value = loss(weighed(model, inter), P, Q, model.alpha, model.l2, model.nu)
    for gradient in torch.autograd.grad(value, [P, Q]):
        assert gradient.abs().max() < 1e-4


def test_every_epoch_lowers_the_objective():
    inter = events(1)
    values = []
    for epochs in range(1, 8):
        model = ALS(epochs=epochs, **SMALL).fit(inter, device="cpu", progress=False)
        Q = model.item_factors.double()
        values.append(
            float(loss(weighed(model, inter), people(model, inter), Q, model.alpha, model.l2, model.nu))
        )
    assert all(later < earlier for earlier, later in itertools.pairwise(values))


def test_a_stranger_with_a_users_history_gets_the_users_scores():
    inter = events()
    model = ALS(**SMALL).fit(inter, device="cpu", progress=False)
    crow, items = model.history_crow.tolist(), model.history_items
    histories = [items[crow[u] : crow[u + 1]] for u in range(inter.n_users)]
    torch.testing.assert_close(model.score_histories(histories), model.score(torch.arange(inter.n_users)))


def test_blocks_change_nothing(monkeypatch):
    inter = events()
    whole = ALS(**SMALL).fit(inter, device="cpu", progress=False)
    monkeypatch.setattr("recsys_lib.models.core.ridge._CELLS", 30)
    parts = ALS(**SMALL).fit(inter, device="cpu", progress=False)
    torch.testing.assert_close(parts.item_factors, whole.item_factors, rtol=1e-4, atol=1e-5)


def test_a_larger_alpha_pulls_what_was_not_chosen_closer_to_zero():
    inter = events()
    chosen = torch.zeros(inter.n_users, inter.n_items, dtype=torch.bool)
    chosen[inter.users, inter.items] = True
    sizes = []
    for alpha in (0.01, 0.1, 1.0):
        model = ALS(**SMALL | {"alpha": alpha}).fit(inter, device="cpu", progress=False)
        sizes.append(float(model.score(torch.arange(inter.n_users))[~chosen].square().mean()))
    assert sizes[0] > sizes[1] > sizes[2]


def test_wrong_options_are_named():
    for wrong in ({"alpha": 0.0}, {"l2": 0.0}, {"nu": 1.5}, {"dim": 0}, {"epochs": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ALS(**wrong)
