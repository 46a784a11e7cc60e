"""Membership, noise and forgetting: closed forms, other implementations, and refits."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from recsys_lib.data import Interactions
from recsys_lib.models import EASE
from recsys_lib.models.ease import gram_inverse
from recsys_lib.privacy import (
    PrivateFactors,
    clipped,
    ease_weights,
    forget_in_ease,
    gaussian_epsilon,
    gaussian_noise,
    how_well_found,
    log_rank,
    noise_for,
    noisy_clipped_sum,
    noisy_counts,
    noisy_gram,
    subsampled_epsilon,
    without_rows,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def events_of(matrix):
    users, items = np.nonzero(np.asarray(matrix))
    frame = pd.DataFrame({"user_id": users, "item_id": items, "timestamp": range(len(users))})
    return Interactions.from_frame(frame, user_ids=range(len(matrix)), item_ids=range(len(matrix[0])))


@pytest.fixture
def people():
    matrix = (torch.rand(40, 25, generator=generator()) < 0.3).long()
    matrix[:, 0] = 1
    return events_of(matrix.tolist())


# ----------------------------------------------------------------------------------------------- membership


def test_the_rank_is_among_the_items_of_others_and_ties_count_one_half():
    scores = torch.tensor([5.0, 4.0, 3.0, 3.0, 1.0])
    got = log_rank(scores, torch.tensor([2, 1]), torch.tensor([1, 2]))  # rivals: 5, 3, 1
    assert got.tolist() == pytest.approx([-math.log(2.5), -math.log(2)])


def test_every_item_of_a_person_is_hidden_once():
    asked = []

    def score(histories):
        asked.extend(histories)
        return torch.zeros(len(histories), 9)

    histories = [torch.tensor([3, 1, 4]), torch.arange(8)]
    how_well_found(score, histories, folds=4)
    mine = [h for h in asked if len(h) == 2]
    assert torch.cat(mine[-3:]).sort()[0].tolist() == [1, 1, 3, 3, 4, 4]  # one hidden at a time
    shown = [h for h in asked if len(h) == 6]
    hidden = [set(range(8)) - set(h.tolist()) for h in shown]
    assert set().union(*hidden) == set(range(8))
    assert sum(map(len, hidden)) == 8


def test_a_model_that_knows_the_whole_history_finds_everything_and_one_that_knows_nothing_does_not():
    history = torch.tensor([7, 2, 5, 9])
    knows = torch.zeros(1, 50)
    knows[0, history] = 1.0
    found = how_well_found(lambda h: knows.expand(len(h), -1), [history])
    assert found.tolist() == [0.0]  # always the first among the others
    blind = how_well_found(lambda h: torch.zeros(len(h), 50), [history])
    assert blind.item() == pytest.approx(-math.log(1 + 46 / 2))


def test_people_in_the_training_data_are_found_better():
    matrix = (torch.rand(60, 80, generator=generator(3)) < 0.15).long()
    events = events_of(matrix.tolist())
    model = EASE(l2=1.0).fit(events[events.users < 30], device="cpu")
    found = how_well_found(model.score_histories, events.histories(range(60)))
    assert found[:30].mean() - found[30:].mean() > 0.5


@pytest.mark.parametrize("history", [[1], [2, 2], []])
def test_a_history_that_cannot_be_cut_is_refused(history):
    with pytest.raises(ValueError, match="history 1 needs two"):
        how_well_found(lambda h: torch.zeros(len(h), 9), [torch.tensor([1, 2]), torch.tensor(history).long()])


# ----------------------------------------------------------------------------------------------------- noise


def test_long_gradients_are_shortened_and_short_ones_left():
    g = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    assert clipped(g, 1.0).flatten().tolist() == pytest.approx([0.6, 0.8, 0.3, 0.4, 0.0, 0.0])
    assert torch.equal(noisy_clipped_sum(g, 1.0, 0.0, generator()), clipped(g, 1.0).sum(0))


def test_one_person_moves_the_sum_by_the_clip_at_most():
    g = 9 * torch.randn(20, 3, 4, generator=generator())
    for i in range(20):
        rest = torch.cat([g[:i], g[i + 1 :]])
        moved = noisy_clipped_sum(g, 0.7, 2.0, generator(1)) - noisy_clipped_sum(rest, 0.7, 2.0, generator(1))
        assert moved.norm() <= 0.7 + 1e-5


def test_the_noise_has_the_length_that_was_asked_for():
    noise = noisy_clipped_sum(torch.zeros(1, 100_000), 0.5, 3.0, generator())
    assert noise.std().item() == pytest.approx(1.5, rel=0.02)


def test_one_person_moves_the_gram_matrix_and_the_counts_by_one(people):
    crow, items = people.csr()
    without = people[people.users != 7].csr()
    for release in (noisy_gram, noisy_counts):
        both = [release(*x, 25, 2.0, generator(5)) for x in ((crow, items), without)]
        moved = both[0] - both[1]
        assert moved.norm().item() == pytest.approx(1.0)
    gram = noisy_gram(crow, items, 25, 2.0, generator(5))
    assert torch.equal(gram, gram.mT)
    noise = noisy_gram(crow, items, 25, 2.0, generator(5)) - noisy_gram(crow, items, 25, 0.0, generator(5))
    assert noise.triu().flatten()[noise.triu().flatten() != 0].std().item() == pytest.approx(2.0, rel=0.15)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.1, 1e-6), (1.0, 1e-5), (8.0, 1e-3), (40.0, 1e-3)])
def test_the_gaussian_mechanism_s_noise_and_epsilon_are_inverse_and_exact(epsilon, delta):
    s = gaussian_noise(epsilon, delta)
    assert gaussian_epsilon(s, delta) == pytest.approx(epsilon, rel=1e-6)
    # By definition: delta is the largest mass by which N(1, s) exceeds e^eps N(0, s); integrated.
    x = np.linspace(-60 * s, 60 * s, 2_000_001)
    p, q = (np.exp(-((x - mean) ** 2) / (2 * s * s)) / (s * math.sqrt(2 * math.pi)) for mean in (1, 0))
    excess = np.clip(p - math.exp(epsilon) * q, 0, None).sum() * (x[1] - x[0])
    assert excess == pytest.approx(delta, rel=1e-3)


def test_the_exact_noise_is_below_the_classical_bound():
    epsilon, delta = 0.5, 1e-5
    classical = math.sqrt(2 * math.log(1.25 / delta)) / epsilon  # Dwork and Roth 2014, theorem A.1
    assert 0.7 * classical < gaussian_noise(epsilon, delta) < classical


def test_much_noise_needs_no_epsilon_and_none_is_refused():
    assert gaussian_epsilon(1e4, 1e-3) == 0.0
    for call in (lambda: gaussian_epsilon(0.0, 1e-3), lambda: subsampled_epsilon(0.0, 0.1, 5, 1e-3)):
        with pytest.raises(ValueError, match="without noise there is no epsilon"):
            call()


def test_renyi_s_moments_of_a_sampled_gaussian_are_those_of_the_integral():
    q, s, a = 0.13, 0.9, 5
    x = np.linspace(-30, 40, 2_000_001)
    zero, one = (np.exp(-((x - m) ** 2) / (2 * s * s)) / (s * math.sqrt(2 * math.pi)) for m in (0, 1))
    there = zero > 1e-290
    moment = (zero[there] * ((1 - q) + q * one[there] / zero[there]) ** a).sum() * (x[1] - x[0])
    delta = 1e-3
    want = math.log(moment) / (a - 1) + math.log1p(-1 / a) - (math.log(delta) + math.log(a)) / (a - 1)
    assert subsampled_epsilon(s, q, 1, delta, orders=[a]) == pytest.approx(want, rel=1e-6)


def test_without_sampling_it_is_the_gaussian_mechanism_s_bound():
    # k releases with noise s are one with noise s / sqrt(k); Renyi's bound lies above the exact value.
    exact = gaussian_epsilon(10 / math.sqrt(50), 1e-5)
    assert exact < subsampled_epsilon(10.0, 1.0, 50, 1e-5) < 1.15 * exact


def test_a_published_value_of_the_moments_accountant():
    # Abadi et al. 2016, section 3.2: q = 0.01, sigma = 4, 10,000 steps, delta = 1e-5 give epsilon 1.26.
    assert 1.0 < subsampled_epsilon(4.0, 0.01, 10_000, 1e-5) <= 1.26


def test_it_agrees_with_opacus():
    accountants = pytest.importorskip("opacus.accountants.analysis.rdp")
    orders = list(range(2, 64))
    for s, q, steps, delta in (
        (1.1, 256 / 60_000, 14_000, 1e-5),
        (0.7, 0.2, 200, 1e-3),
        (3.0, 1.0, 40, 1e-4),
    ):
        rdp = accountants.compute_rdp(q=q, noise_multiplier=s, steps=steps, orders=orders)
        want, _ = accountants.get_privacy_spent(orders=orders, rdp=rdp, delta=delta)
        assert subsampled_epsilon(s, q, steps, delta, orders) == pytest.approx(want, rel=1e-6)


def test_epsilon_grows_with_steps_and_sampling_and_falls_with_noise():
    base = subsampled_epsilon(1.5, 0.1, 100, 1e-3)
    assert subsampled_epsilon(1.5, 0.1, 200, 1e-3) > base
    assert subsampled_epsilon(1.5, 0.2, 100, 1e-3) > base
    assert subsampled_epsilon(2.0, 0.1, 100, 1e-3) < base
    assert subsampled_epsilon(noise_for(4.0, 0.1, 100, 1e-3), 0.1, 100, 1e-3) == pytest.approx(4.0, rel=1e-6)


def test_private_factors_sum_the_clipped_gradients_that_autograd_gives(people):
    model = PrivateFactors(dim=3, steps=2, clip=0.3).fit(people)
    model.V, model.W, model.b = (
        torch.randn(x.shape, generator=generator(2)) for x in (model.V, model.W, model.b)
    )
    X, tables = model.X[:9], [x.clone().requires_grad_() for x in (model.V, model.W, model.b)]
    want = [torch.zeros_like(x) for x in tables]
    lengths = []
    for x in X:
        h = x @ tables[0] / x.sum().sqrt()
        loss = -((h @ tables[1].mT + tables[2]).log_softmax(0) * x).sum() / x.sum()
        mine = torch.autograd.grad(loss, tables)
        length = torch.cat([g.flatten() for g in mine]).norm()
        lengths.append(length.item())
        for total, g in zip(want, mine, strict=True):
            total += g * min(1.0, 0.3 / length.item())
    assert min(lengths) > 0.3
    for got, expected in zip(model._sums(X), want, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_private_factors_learn_without_noise_and_say_their_epsilon(people):
    model = PrivateFactors(dim=4, steps=300, sample_rate=0.5, clip=5.0, learning_rate=0.05).fit(people)
    score = model.score(torch.arange(40))
    own = people.matrix().to_dense() > 0
    assert score[own].mean() > score[~own].mean() + 1
    assert model.epsilon(1e-3) == math.inf
    torch.testing.assert_close(model.score_histories(people.histories([3, 4])), score[3:5])
    noisy = PrivateFactors(noise_multiplier=1.5, steps=100, sample_rate=0.1)
    assert noisy.epsilon(1e-3) == subsampled_epsilon(1.5, 0.1, 100, 1e-3)


def test_private_factors_noise_is_that_of_the_mechanism(people):
    # One step from the same start: the difference of the gradients that Adam is given is the noise.
    sums = PrivateFactors._sums
    seen = []

    class Watched(PrivateFactors):
        def _sums(self, X):
            seen.append(X)
            return tuple(torch.zeros_like(x) for x in sums(self, X))

    model = Watched(dim=200, steps=1, sample_rate=0.5, clip=0.4, noise_multiplier=3.0, seed=1).fit(people)
    expected = 0.5 * 40
    assert model.W.grad.std().item() == pytest.approx(3.0 * 0.4 / expected, rel=0.05)
    assert 5 < len(seen[0]) < 35  # people are drawn by coins


# ------------------------------------------------------------------------------------------------ forgetting


def test_taking_rows_out_of_the_inverse_is_inverting_what_is_left():
    X = (torch.rand(30, 12, generator=generator()) < 0.4).double()
    gram = X.mT @ X + 3 * torch.eye(12).double()
    left = X[5:].mT @ X[5:] + 3 * torch.eye(12).double()
    torch.testing.assert_close(without_rows(gram.inverse(), X[:5]), left.inverse(), atol=1e-10, rtol=0)
    one_by_one = gram.inverse()
    for row in X[:5]:
        one_by_one = without_rows(one_by_one, row[None])
    torch.testing.assert_close(one_by_one, left.inverse(), atol=1e-10, rtol=0)


def test_a_forgotten_person_is_as_if_never_there(people):
    model = EASE(l2=2.0).fit(people, device="cpu")
    inverse = gram_inverse(*people.csr(), people.n_items, 2.0)
    left = forget_in_ease(model, inverse, [3, 11])
    stays = people[(people.users != 3) & (people.users != 11)]
    again = gram_inverse(*stays.csr(), people.n_items, 2.0)
    torch.testing.assert_close(ease_weights(left), ease_weights(again), atol=1e-8, rtol=0)
    refit = EASE(l2=2.0).fit(stays, device="cpu")
    everybody = torch.arange(people.n_users)
    torch.testing.assert_close(model.score(everybody), refit.score(everybody), atol=1e-5, rtol=0)
    assert not model.score(torch.tensor([3, 11])).any()
    torch.testing.assert_close(forget_in_ease(model, left, [0]), without_rows(left, row_of(people, 0)))


def row_of(people, user):
    return people.matrix().to_dense()[user : user + 1]


def test_rows_that_were_never_there_are_refused(people):
    inverse = gram_inverse(*people.csr(), people.n_items, 2.0)
    with pytest.raises(ValueError, match="not among those"):
        without_rows(inverse, 10 * torch.ones(3, people.n_items))
    with pytest.raises(ValueError, match="needs an inverse"):
        without_rows(inverse, torch.ones(3, 4))
    with pytest.raises(IndexError):
        forget_in_ease(EASE().fit(people, device="cpu"), inverse, [99])
