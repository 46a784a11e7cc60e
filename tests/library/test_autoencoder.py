import math

import pandas as pd
import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from recsys_lib.data import Interactions
from recsys_lib.models import MultDAE, MultVAE
from recsys_lib.models.autoencoder import _divergences

VAE = {"dim": 4, "hidden": 8, "learning_rate": 0.02, "anneal_steps": 40}


def events(seed: int = 0, n_users: int = 30, n_items: int = 12) -> Interactions:
    """Two groups of users, each with items of its own, of which everyone has about two thirds."""
    chosen = torch.rand(n_users, n_items, generator=torch.Generator().manual_seed(seed)) < 0.65
    own = (torch.arange(n_users)[:, None] % 2) == (torch.arange(n_items) % 2)
    users, items = (chosen & own).nonzero(as_tuple=True)
    frame = pd.DataFrame({"user_id": users.numpy(), "item_id": items.numpy()})
    frame["rating"], frame["timestamp"] = 5.0, range(len(frame))
    return Interactions.from_frame(frame, user_ids=range(n_users), item_ids=range(n_items))


def dense(inter: Interactions) -> torch.Tensor:
    x = torch.zeros(inter.n_users, inter.n_items)
    x[inter.users, inter.items] = 1.0
    return x


def plain(model: MultDAE | MultVAE, x: torch.Tensor) -> torch.Tensor:
    """The scores by dense layers of torch, (B, n_items)."""
    first = torch.tanh(nn.functional.normalize(x, dim=1) @ model.item_rows + model.first_bias)
    if isinstance(model, MultVAE):
        mean = first @ model.to_code.weight[: model.dim].mT + model.to_code.bias[: model.dim]
        first = torch.tanh(mean @ model.from_code.weight.mT + model.from_code.bias)
    return first @ model.output.weight.mT + model.output.bias


@pytest.fixture(params=["dae", "vae"])
def model(request):
    if request.param == "dae":
        return MultDAE(dim=4, epochs=60, learning_rate=0.02)
    return MultVAE(epochs=60, **VAE)


def test_scores_are_those_of_dense_layers(model):
    inter = events()
    model.fit(inter, device="cpu", progress=False)
    torch.testing.assert_close(model.score(torch.arange(30)), plain(model, dense(inter)).detach())


def test_a_step_minimizes_the_multinomial_likelihood_written_out():
    inter = events()
    model = MultDAE(dim=4, epochs=1, dropout=0.0, l2=0.01).fit(inter, device="cpu", progress=False)
    model.train()
    examples = model.prepare(inter, torch.Generator())
    ((loss, n),) = model.losses(examples, torch.Generator())
    x = dense(inter)
    shares = plain(model, x).log_softmax(1)
    weights = model.item_rows.square().sum() + model.output.weight.square().sum()
    expected = -(x * shares).sum(1).mean() + 0.01 * weights
    assert n == 30
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(
        torch.autograd.grad(loss, list(model.parameters()), retain_graph=True),
        torch.autograd.grad(expected, list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_divergence_is_torchs():
    torch.manual_seed(0)
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
    theirs = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(_divergences(mean, log_variance), theirs)


def test_the_weight_of_the_divergence_grows_to_beta_and_no_further():
    model = MultVAE(dim=2, hidden=3, beta=0.5, anneal_steps=4, epochs=1)
    model.fit(events(), device="cpu", progress=False)
    model.prepare(events(), torch.Generator())
    first = torch.rand(6, 3)
    kl = _divergences(*model.to_code(first).chunk(2, dim=1)).sum(1).mean()
    found = [(model.coded(first, torch.Generator())[1] / kl).item() for _ in range(7)]
    assert found == pytest.approx([0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5], abs=1e-6)


def test_a_draw_of_the_code_has_the_mean_and_the_variance_that_are_said():
    model = MultVAE(dim=2, hidden=3, epochs=1).fit(events(), device="cpu", progress=False)
    first = torch.rand(1, 3).expand(200_000, 3)
    draws, _ = model.coded(first, torch.Generator().manual_seed(0))
    mean, log_variance = model.to_code(first[:1]).chunk(2, dim=1)
    torch.testing.assert_close(draws.mean(0), mean[0], atol=0.02, rtol=0)
    torch.testing.assert_close(draws.var(0), log_variance[0].exp(), atol=0, rtol=0.03)
    torch.testing.assert_close(model.code(first[:1]), mean)


def test_too_large_a_weight_makes_the_posterior_collapse():
    inter = events()
    kept = MultVAE(epochs=80, beta=0.05, **VAE).fit(inter, device="cpu", progress=False)
    gone = MultVAE(epochs=80, beta=30.0, **VAE | {"anneal_steps": 0})
    gone.fit(inter, device="cpu", progress=False)
    assert kept.code_information().shape == (4,)
    assert float(kept.code_information().sum()) > 1.0
    assert float(gone.code_information().sum()) < 0.05
    # Nobody is told apart any more: all get nearly one list.
    spread = [m.score(torch.arange(30)).log_softmax(1).std(0).mean() for m in (kept, gone)]
    assert spread[1] < 0.1 * spread[0]


def test_it_learns_who_likes_what_and_serves_strangers(model):
    inter = events()
    model.fit(inter, device="cpu", progress=False)
    even, odd = model.score_histories([[0, 2, 4], [1, 3, 5]])
    assert even[[6, 8, 10]].min() > even[[7, 9, 11]].max()
    assert odd[[7, 9, 11]].min() > odd[[6, 8, 10]].max()


def test_the_vectors_of_people_and_items(model):
    inter = events()
    model.fit(inter, device="cpu", progress=False)
    codes = model.encode([[0, 2, 4], [], [1]])
    assert codes.shape == (3, 4)
    torch.testing.assert_close(codes[0], model.encode([[4, 0, 2]])[0])
    decoded = model.decode(codes) @ model.item_vectors.mT + model.output.bias
    torch.testing.assert_close(decoded.detach(), model.score_histories([[0, 2, 4], [], [1]]))
    with pytest.raises(IndexError, match="12"):
        model.encode([[12]])


def test_recency_weighs_the_input():
    inter = events()
    model = MultVAE(epochs=20, recency=1.0, **VAE).fit(inter, device="cpu", progress=False)
    x = torch.zeros(1, 12)
    x[0, [0, 2, 4]] = torch.tensor([1 / 3, 1 / 2, 1.0])  # oldest first
    torch.testing.assert_close(model.score_histories([[0, 2, 4]]), plain(model, x).detach())
    stamps = [[5, 5, 9]]
    x[0, [0, 2]] = 1 / 2  # tied, with one event after both
    torch.testing.assert_close(model.score_histories([[0, 2, 4]], stamps), plain(model, x).detach())
    torch.testing.assert_close(model.encode([[0, 2, 4]], stamps).shape, torch.Size([1, 4]))


def test_dropping_the_input_is_what_keeps_it_from_copying():
    # Without it the code has room to say "these very items"; with it every item must speak for the others.
    inter = events(n_items=12)
    options = {"dim": 12, "epochs": 400, "learning_rate": 0.02, "l2": 0.0}
    copied = MultDAE(dropout=0.0, **options).fit(inter, device="cpu", progress=False)
    denoised = MultDAE(dropout=0.5, **options).fit(inter, device="cpu", progress=False)
    x = dense(inter).bool()
    own = (torch.arange(30)[:, None] % 2) == (torch.arange(12) % 2)

    def given_to_what_is_missing(model):
        return float(model.score(torch.arange(30)).softmax(1)[own & ~x].sum() / 30)

    assert given_to_what_is_missing(denoised) > 2 * given_to_what_is_missing(copied)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="dropout"):
        MultDAE(dropout=1.0)
    with pytest.raises(ValueError, match="beta"):
        MultVAE(beta=-0.1)
    with pytest.raises(ValueError, match="hidden"):
        MultVAE(hidden=0)
    assert math.isclose(MultVAE().beta, 0.2)
