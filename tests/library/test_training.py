import contextlib
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recsys_lib.devices import isolated_rng, resolve_device, seed_generator
from recsys_lib.negatives import NegativeSampler
from recsys_lib.progress import progress_bar
from recsys_lib.training import EarlyStopping, batches

quick = settings(max_examples=30, deadline=None)


def csr(own, n_users=None):
    """Lists of items, one a user -> crow, items."""
    lengths = torch.tensor([0, *(len(x) for x in own)])
    return lengths.cumsum(0), torch.tensor([i for x in own for i in sorted(x)], dtype=torch.int64)


# Devices.


def test_auto_takes_the_best_device_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device() == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cpu") == torch.device("cpu")


def test_a_device_that_is_not_here_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device is here"):
        resolve_device("cuda:0")
    with pytest.raises(ValueError, match="no machine with MPS"):
        resolve_device(torch.device("mps"))
    with pytest.raises(ValueError, match="'quantum' is not one that torch knows"):
        resolve_device("quantum")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="only 1 are here"):
        resolve_device("cuda:3")


# Random numbers.


def test_a_generator_is_independent_of_the_global_state():
    before = torch.get_rng_state()
    first = torch.randn(5, generator=seed_generator(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(7)
    assert torch.equal(torch.randn(5, generator=seed_generator(3)), first)
    assert not torch.equal(torch.randn(5, generator=seed_generator(4)), first)


def test_isolated_rng_repeats_itself_and_puts_the_state_back():
    before = torch.get_rng_state()
    with isolated_rng(5):
        first = torch.randn(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(9)
    with isolated_rng(5):
        assert torch.equal(torch.randn(4), first)
    with isolated_rng(6):
        assert not torch.equal(torch.randn(4), first)


def test_isolated_rng_puts_the_state_back_after_an_error():
    before = torch.get_rng_state()
    with contextlib.suppress(KeyError), isolated_rng(5):
        torch.randn(4)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


@quick
@given(st.integers(0, 50), st.integers(1, 20), st.integers(0, 99))
def test_batches_cover_everything_once(n, size, seed):
    cut = list(batches(n, size, seed_generator(seed)))
    assert sorted(torch.cat(cut).tolist() if cut else []) == list(range(n))
    assert all(len(batch) == size for batch in cut[:-1])
    again = list(batches(n, size, seed_generator(seed)))
    assert all(torch.equal(a, b) for a, b in zip(cut, again, strict=True))


def test_batches_shuffle_only_with_a_generator():
    assert torch.cat(list(batches(100, 7))).tolist() == list(range(100))
    one, two = (torch.cat(list(batches(100, 7, seed_generator(s)))).tolist() for s in (1, 2))
    assert one != list(range(100))
    assert one != two
    with pytest.raises(ValueError, match="batch_size"):
        next(batches(5, 0))


# Negatives.

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
def test_frequencies_are_the_probabilities_that_are_reported(kind):
    own = [{0, 1}, {0, 4}, {0}, {0, 2}]
    sampler = NegativeSampler(*csr(own), 6, kind)
    users, everything = torch.arange(4), torch.arange(6).expand(4, 6)
    probability = sampler.log_probability(everything, users).exp()  # (4, 6)
    torch.testing.assert_close(probability.sum(1), torch.ones(4))
    assert all(probability[u, i] == 0 for u, mine in enumerate(own) for i in mine)
    n = 40_000
    drawn = sampler.sample(users, n, seed_generator(0))
    found = torch.stack([row.bincount(minlength=6) for row in drawn]) / n
    assert (found - probability).abs().max() < 5 * (0.25 / n) ** 0.5  # five standard errors
    catalog = sampler.log_probability(torch.arange(6)).exp()
    torch.testing.assert_close(catalog.sum(), torch.tensor(1.0))


def test_popularity_follows_the_counts_and_the_exponent():
    own = [{0}, {0}, {0}, {0, 1}, {1}, set()]
    for exponent in (0.0, 0.75, 1.0):
        sampler = NegativeSampler(*csr(own), 3, "popularity", exponent=exponent)
        expected = (
            torch.tensor([5.0, 3.0, 1.0]) ** exponent
        )  # counts 4, 2, 0 and the one that keeps items in play
        torch.testing.assert_close(
            sampler.log_probability(torch.arange(3)).exp(), expected / expected.sum(), rtol=1e-6, atol=1e-6
        )


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
    with pytest.raises(ValueError, match="above zero"):
        NegativeSampler(crow, items, 3, "popularity", weights=torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="uniform negatives have none"):
        NegativeSampler(crow, items, 3, weights=torch.ones(3))


def test_a_catalog_without_any_positives_is_all_negatives():
    sampler = NegativeSampler(torch.zeros(3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 4)
    assert set(sampler.sample(torch.tensor([0, 1]), 50, seed_generator(0)).flatten().tolist()) == {0, 1, 2, 3}
    assert sampler.log_probability(torch.tensor([[1]]), torch.tensor([0])).exp().item() == pytest.approx(0.25)


# Early stopping.


def test_early_stopping_keeps_and_restores_the_best_state():
    module = nn.Linear(1, 1, bias=False)
    stopping = EarlyStopping(patience=2)
    values, stopped = [0.1, 0.5, 0.4, 0.5, 0.9], None
    for step, value in enumerate(values):
        with torch.no_grad():
            module.weight.fill_(float(step))
        if stopping.step(value, step, module):
            stopped = step
            break
    assert stopped == 3  # 0.4 and an equal 0.5 are two without improvement
    assert (stopping.best, stopping.best_step) == (0.5, 1)
    stopping.restore(module)
    assert module.weight.item() == 1.0


def test_early_stopping_wants_min_delta_and_ignores_nan():
    module = nn.Linear(1, 1)
    stopping = EarlyStopping(patience=2, min_delta=0.1)
    assert not stopping.step(0.5, 0, module)
    assert not stopping.step(0.55, 1, module)
    assert stopping.step(float("nan"), 2, module)
    assert stopping.best == 0.5
    with pytest.raises(RuntimeError, match="diverged"):
        EarlyStopping().restore(module)
    with pytest.raises(ValueError, match="patience"):
        EarlyStopping(0)


# The bar.


def test_progress_is_silent_when_short_or_disabled(capsys):
    values = [1, 2, 3]
    assert progress_bar(values, "work", enabled=False) is values
    assert list(progress_bar(values, "work", enabled=True)) == values
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_nothing_heavy_is_imported():
    # Runs in this process, where other tests may have imported them: so ask a fresh interpreter.
    import subprocess

    code = (
        "import sys, recsys_lib.models; print({'transformers', 'datasets', 'matplotlib'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
