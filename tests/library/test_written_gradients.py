"""Gradients that are written out, against autograd and against differences."""

import pandas as pd
import pytest
import torch

from recsys_lib.data import Interactions
from recsys_lib.losses import bce_loss, bce_slope, bpr_loss, bpr_slope
from recsys_lib.models import BPR, MatrixFactorization
from recsys_lib.models.core import written_gradients as module
from recsys_lib.negatives import NegativeSampler
from recsys_lib.similarity import pair_products


def events(seed: int = 0, n_users: int = 40, n_items: int = 30) -> Interactions:
    """About a fifth of all pairs; the last user has none."""
    chosen = torch.rand(n_users, n_items, generator=torch.Generator().manual_seed(seed)) < 0.2
    chosen[-1] = False
    users, items = chosen.nonzero(as_tuple=True)
    frame = pd.DataFrame({"user_id": users.numpy(), "item_id": items.numpy()})
    frame["rating"], frame["timestamp"] = 5.0, range(len(frame))
    return Interactions.from_frame(frame, user_ids=range(n_users), item_ids=range(n_items))


def made(inter: Interactions, device, **options) -> tuple[MatrixFactorization, object, torch.Generator]:
    """A model with random vectors and biases, its examples, a generator; in float64 if there is one."""
    model = MatrixFactorization(epochs=1, dim=5, **options).fit(inter, device=device, progress=False)
    generator = torch.Generator(device).manual_seed(1)
    examples = model.prepare(inter.to(device), generator)
    if device.type != "mps":
        model.double()
    with torch.no_grad():
        model.user_factors.normal_(generator=generator)
        model.item_factors.normal_(generator=generator)
        model.item_bias.normal_(generator=generator)
    return model, examples, generator


def check_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        atol = 1e-12 if one.dtype == torch.float64 else 1e-6
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


def value_and_gradients(model: MatrixFactorization, loss: torch.Tensor) -> list[torch.Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize(("loss", "slope"), [(bpr_loss, bpr_slope), (bce_loss, bce_slope)])
@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (6, 4)])
def test_slopes_are_the_derivative_by_the_scores(loss, slope, shape, device):
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(shape[0], 1 + shape[1], generator=generator, dtype=torch.float64)
    scores = scores.to(device).requires_grad_()
    (expected,) = torch.autograd.grad(loss(scores[:, 0], scores[:, 1:]), scores)
    torch.testing.assert_close(slope(scores[:, 0], scores[:, 1:]), expected)


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (4, 20), (0, 2), (5, 0)])
def test_products_of_some_pairs_are_those_of_all(shape, device):
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(shape[0], 4, generator=generator), torch.randn(9, 4, generator=generator)
    pairs = torch.randint(9, shape, generator=generator)  # in no order, and with repeats
    found = pair_products(p.to(device), q.to(device), pairs.to(device))
    torch.testing.assert_close(found.cpu(), (p @ q.mT).gather(1, pairs))


@pytest.mark.parametrize("loss", ["bpr", "bce"])
@pytest.mark.parametrize("at_once", [1024, 16])
def test_the_gradient_of_pairs_is_autograds(loss, at_once, device, monkeypatch):
    """Batches of one piece and of several, of unequal size; users and items come more than once."""
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    model, examples, _ = made(events(), device, loss=loss, l2=0.3, n_negatives=3)
    batch = torch.arange(53, device=device)
    users, items = examples.users[batch], examples.items[batch]
    found = []
    for gradient in ("autograd", "written"):
        model.gradient = gradient
        drawn = torch.Generator(device).manual_seed(5)
        found.append(value_and_gradients(model, model.objective(users, items, examples.sampler, drawn)))
    check_equal(*found)


def test_the_gradient_of_whole_users_is_autograds(device):
    model, examples, generator = made(events(), device, loss="softmax", l2=0.3)
    model.whole_users, model.batch_size = True, 60
    seen = []
    untouched = model.objective_of_users

    def watched(users, row, items):
        seen.append(users[row])
        found = value_and_gradients(model, untouched(users, row, items))
        expected = value_and_gradients(model, model.objective(users[row], items, examples.sampler, generator))
        check_equal(found, expected)
        return untouched(users, row, items)

    model.objective_of_users = watched
    sizes = [n for _, n in model.losses(examples, generator)]
    assert len(sizes) > 2
    assert sum(sizes) == len(examples.users)
    assert torch.equal(torch.cat(seen).sort().values, examples.users)  # each event once
    assert all(len(users.unique()) == len(users.unique_consecutive()) for users in seen)


def test_training_with_either_gradient_ends_in_the_same_place(device):
    inter = events()
    options = {"epochs": 6, "dim": 5, "batch_size": 32, "l2": 0.05}
    one, other = (
        BPR(gradient=gradient, **options).fit(inter, device=device, progress=False)
        for gradient in ("autograd", "written")
    )
    torch.testing.assert_close(one.item_factors, other.item_factors, rtol=0, atol=1e-4)
    assert [e["loss"] for e in one.log] == pytest.approx([e["loss"] for e in other.log], abs=1e-5)


def test_a_gradient_scales_with_what_comes_from_above(device):
    model, examples, _ = made(events(), device, loss="softmax")
    row = torch.zeros(2, dtype=torch.int64, device=device)
    loss = model.objective_of_users(examples.users[:1], row, examples.items[:2])
    once = torch.autograd.grad(loss, model.item_factors, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(3 * loss, model.item_factors)[0], 3 * once)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "bpr", "whole_users": True}, "needs loss"),
        ({"loss": "softmax", "gradient": "written"}, "for the losses of pairs"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MatrixFactorization(**options)


def test_whole_users_rank_as_well_as_events(movielens, device):
    from recsys_lib.data import leave_last_out
    from recsys_lib.evaluation import evaluate

    split = leave_last_out(movielens.interactions.positives(4.0), n=0.2)
    by_users = MatrixFactorization(
        loss="softmax", whole_users=True, l2=0.3, learning_rate=0.05, batch_size=4096, epochs=12
    )
    by_events = MatrixFactorization(loss="softmax", l2=0.2, learning_rate=0.01, batch_size=512, epochs=12)
    found = [
        evaluate(model.fit(split.train, device=device, progress=False), split.validation, seen=split.train)
        for model in (by_users, by_events)
    ]
    assert found[0].metrics["ndcg@10"] > 0.95 * found[1].metrics["ndcg@10"]


def test_a_table_of_answers_draws_what_the_search_draws(device, monkeypatch):
    crow, items = (t.to(device) for t in events().csr())
    users = torch.arange(39, device=device).repeat(20)
    drawn = []
    for cells in (2**22, 0):
        monkeypatch.setattr("recsys_lib.negatives._CELLS", cells)
        sampler = NegativeSampler(crow, items, 30)
        assert (sampler._others is None) == (cells == 0)
        drawn.append(sampler.sample(users, 7, torch.Generator(device).manual_seed(3)))
    assert torch.equal(*drawn)
    assert drawn[0].dtype == torch.int64
