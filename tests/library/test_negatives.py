"""Negatives: exact distributions, and nothing that a user has."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_lib.devices import seed_generator
from recsys_lib.negatives import HardestOf, NegativeSampler, known_columns, other_items

quick = settings(max_examples=30, deadline=None)


def csr(own, n_users=None):
    """Lists of items, one a user -> crow, items."""
    lengths = torch.tensor([0, *(len(x) for x in own)])
    return lengths.cumsum(0), torch.tensor([i for x in own for i in sorted(x)], dtype=torch.int64)


problems = st.integers(2, 12).flatmap(
    lambda n_items: st.tuples(
        st.just(n_items),
        st.lists(st.sets(st.integers(0, n_items - 1), max_size=n_items - 1), min_size=1, max_size=6),
    )
)


@quick
@given(problems, st.sampled_from(["uniform", "popularity"]), st.integers(0, 99))
def test_negatives_are_never_the_users_own(problem, kind, seed):
    n_items, own = problem
    sampler = NegativeSampler(*csr(own), n_items, kind)
    users = torch.arange(len(own)).repeat(2).flip(0)
    drawn = sampler.sample(users, 40, seed_generator(seed))
    assert drawn.shape == (len(users), 40)
    assert drawn.dtype == torch.int64
    for user, row in zip(users.tolist(), drawn.tolist(), strict=True):
        assert set(row) <= set(range(n_items)) - own[user]


def test_every_unit_of_the_line_is_hit_exactly_once(monkeypatch):
    # All values of the draw in turn: the items come out exactly as often as their weights say, so the
    # distribution is exact, not only near.
    own = [{1, 2, 5}, set(), {0, 6}, {3}, {0, 1, 2, 3, 4, 5}]
    crow, items = csr(own)
    weights = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0])
    monkeypatch.setattr("recsys_lib.negatives._TOTAL_WEIGHT", 25)  # so that a weight is its number of units
    for kind, weight in (("uniform", None), ("popularity", weights)):
        sampler = NegativeSampler(crow, items, 7, kind, exponent=1.0, weights=weight)
        units = torch.ones(7) if weight is None else weight
        for user, mine in enumerate(own):
            others = [i for i in range(7) if i not in mine]
            total = int(units[others].sum())
            monkeypatch.setattr(torch, "randint", lambda *_, t=total, **__: torch.arange(t)[None])
            drawn = sampler.sample(torch.tensor([user]), total)
            monkeypatch.undo()
            monkeypatch.setattr("recsys_lib.negatives._TOTAL_WEIGHT", 25)
            expected = torch.zeros(7)
            expected[others] = units[others]
            assert drawn[0].bincount(minlength=7).tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_frequencies_are_the_probabilities_that_are_promised(kind):
    own = [{0, 1}, {0, 4}, {0}, {0, 2}]
    crow, items = csr(own)
    sampler = NegativeSampler(crow, items, 6, kind)
    weight = torch.ones(6) if kind == "uniform" else (items.bincount(minlength=6) + 1.0) ** 0.75
    n = 40_000
    drawn = sampler.sample(torch.arange(4), n, seed_generator(0))
    for mine, row in zip(own, drawn, strict=True):
        probability = weight.clone()
        probability[list(mine)] = 0.0
        probability /= probability.sum()
        found = row.bincount(minlength=6) / n
        assert (found - probability).abs().max() < 5 * (0.25 / n) ** 0.5  # five standard errors


def test_popularity_follows_the_counts_and_the_exponent():
    own = [{0}, {0}, {0}, {0, 1}, {1}, set()]
    n = 60_000
    for exponent in (0.0, 0.75, 1.0):
        sampler = NegativeSampler(*csr(own), 3, "popularity", exponent=exponent)
        drawn = sampler.sample(torch.tensor([5]), n, seed_generator(2))[0]  # the user without items
        expected = torch.tensor([5.0, 3.0, 1.0]) ** exponent  # counts 4, 2, 0 and one each
        found = drawn.bincount(minlength=3) / n
        assert (found - expected / expected.sum()).abs().max() < 5 * (0.25 / n) ** 0.5


def test_small_weights_keep_their_share():
    weights = torch.tensor([1.0, 1e6, 1e6])
    sampler = NegativeSampler(*csr([set(), {1, 2}]), 3, "popularity", exponent=1.0, weights=weights)
    drawn = sampler.sample(torch.tensor([0]), 100_000, seed_generator(3))
    assert (drawn == 0).sum() <= 3  # 0.05 expected
    # However small, a weight is one: the item can be drawn where it is all that is left.
    weights[0] = 1e-12
    sampler = NegativeSampler(*csr([set(), {1, 2}]), 3, "popularity", exponent=1.0, weights=weights)
    assert sampler.sample(torch.tensor([1]), 5, seed_generator(3)).tolist() == [[0] * 5]


def test_large_numbers_do_not_overflow():
    # The leading digit of the last user, times the mass of the line, has to fit into 63 bits.
    n_users, n_items = 200_000, 100_000
    users = torch.arange(n_users)
    items = (users * 7919) % n_items
    sampler = NegativeSampler(torch.arange(n_users + 1), items, n_items, "popularity")
    drawn = sampler.sample(users, 3, seed_generator(1))
    assert ((drawn >= 0) & (drawn < n_items)).all()
    assert (drawn != items[:, None]).all()
    assert drawn.unique().numel() > 0.9 * n_items


def test_the_same_seed_draws_the_same_and_leaves_the_global_state():
    sampler = NegativeSampler(*csr([{0, 2}, {1}]), 9, "popularity")
    before = torch.get_rng_state()
    first = sampler.sample(torch.tensor([0, 1, 0]), 5, seed_generator(8))
    assert torch.equal(first, sampler.sample(torch.tensor([0, 1, 0]), 5, seed_generator(8)))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, sampler.sample(torch.tensor([0, 1, 0]), 5, seed_generator(9)))


def test_users_without_negatives_and_nonsense_are_refused():
    crow, items = csr([{0, 1, 2}, {0}])
    sampler = NegativeSampler(crow, items, 3)
    with pytest.raises(ValueError, match="user 0 has all 3 items"):
        sampler.sample(torch.tensor([1, 0]))
    assert sampler.sample(torch.tensor([1, 1]), 4).shape == (2, 4)
    with pytest.raises(ValueError, match='kind must be "uniform" or "popularity"'):
        NegativeSampler(crow, items, 3, "random")
    with pytest.raises(ValueError, match="distinct, ascending"):
        NegativeSampler(crow, items.flip(0), 3)
    with pytest.raises(ValueError, match="distinct, ascending"):
        NegativeSampler(crow, items, 2)
    for own in ([0, 0], [0, 3], [-1, 0]):  # twice, and just outside of the catalog
        with pytest.raises(ValueError, match="distinct, ascending and below n_items"):
            NegativeSampler(torch.tensor([0, 2]), torch.tensor(own), 3)
    with pytest.raises(ValueError, match="above zero"):
        NegativeSampler(crow, items, 3, "popularity", weights=torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="uniform negatives have none"):
        NegativeSampler(crow, items, 3, weights=torch.ones(3))


def test_a_catalog_without_any_positives_is_all_negatives():
    sampler = NegativeSampler(torch.zeros(3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 4)
    assert set(sampler.sample(torch.tensor([0, 1]), 50, seed_generator(0)).flatten().tolist()) == {0, 1, 2, 3}


# Hard ones, and those for a next item.


def test_the_hardest_is_the_best_scored_of_its_pool():
    class Pool:
        def sample(self, users, k=1, generator=None):
            return torch.randint(9, (len(users), k), generator=generator)

    users = torch.arange(20)
    score = lambda asked, items: -((items - asked[:, None] % 9) ** 2).float()  # noqa: E731
    found = HardestOf(Pool(), 3, score).sample(users, 2, seed_generator(1))
    pool = Pool().sample(users, 6, seed_generator(1))
    best = score(users, pool).view(20, 2, 3).argmax(2, keepdim=True)
    assert torch.equal(found, pool.view(20, 2, 3).gather(2, best).squeeze(2))


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(1, 5), st.integers(0, 99))
def test_other_items_are_any_but_the_target(n_items, k, seed):
    targets = torch.arange(n_items).repeat(200)
    negatives = other_items(targets, k, n_items, seed_generator(seed))  # (N, K)
    assert negatives.shape == (len(targets), k)
    assert (negatives != targets[:, None]).all()
    pairs = (targets[:, None] * n_items + negatives).flatten().bincount(minlength=n_items**2)
    drawn = pairs.view(n_items, n_items)[~torch.eye(n_items, dtype=torch.bool)]
    expected = 200 * k / (n_items - 1)
    assert ((drawn - expected).abs() < 6 * math.sqrt(expected) + 1).all()


@quick
@given(problems, st.integers(0, 99))
def test_known_columns_are_those_whose_item_the_user_has(problem, seed):
    n_items, own = problem
    generator = seed_generator(seed)
    users = torch.randint(len(own), (5,), generator=generator)
    items = torch.randint(n_items, (7,), generator=generator)
    found = known_columns(*csr(own), users, items)
    assert found.tolist() == [[item in own[user] for item in items.tolist()] for user in users.tolist()]
