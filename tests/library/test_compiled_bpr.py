"""BPR in a compiled loop: its steps against autograd, its training against that of BPR."""

import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from recsys_lib.data import Interactions, leave_last_out
from recsys_lib.evaluation import evaluate
from recsys_lib.models import BPR, CompiledBPR
from recsys_lib.models.compiled_bpr import _compiled, one_by_one


def events(n_users: int = 40, n_items: int = 30) -> Interactions:
    """About a fifth of all pairs; the last user has none."""
    chosen = torch.rand(n_users, n_items, generator=torch.Generator().manual_seed(0)) < 0.2
    chosen[-1] = False
    users, items = (found.numpy() for found in chosen.nonzero(as_tuple=True))
    frame = pd.DataFrame({"user_id": users, "item_id": items, "rating": 5.0, "timestamp": range(len(users))})
    return Interactions.from_frame(frame, user_ids=range(n_users), item_ids=range(n_items))


@pytest.fixture
def numba():
    return pytest.importorskip("numba", reason="CompiledBPR needs numba, of recsys-lib[fast]")


@pytest.fixture(params=["python", "compiled"])
def steps(request):
    """The loop as it is written, and as it is run."""
    if request.param == "python":
        return one_by_one
    request.getfixturevalue("numba")
    return _compiled()


class Given:
    """A sampler that gives the others that it was given."""

    def __init__(self, others: torch.Tensor) -> None:
        self.others = others

    def sample(self, users, k=1, generator=None):
        return self.others[:, :k]


@pytest.mark.parametrize(("dtype", "atol"), [(np.float64, 1e-12), (np.float32, 1e-6)])
@pytest.mark.parametrize("n_negatives", [1, 3])
def test_each_step_is_adagrads_on_the_gradient_written_out(steps, dtype, atol, n_negatives):
    """Users and items come back, so later steps read what earlier ones have written."""
    generator = torch.Generator().manual_seed(0)
    # A written-out gradient of a batch of one positive, from the other path of the library.
    peer = BPR(dim=6, epochs=1, l2=0.3, gradient="written", n_negatives=n_negatives)
    peer.fit(events(5, 9), device="cpu", progress=False)
    with torch.no_grad():
        for x in peer.parameters():
            x.data = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(
                torch.from_numpy(np.empty(0, dtype)).dtype
            )
    arrays = [x.detach().clone().numpy() for x in peer.parameters()]
    sums = [np.ones(len(x), dtype) for x in arrays]
    users = torch.tensor([2, 0, 2, 2])
    pairs = torch.stack([torch.randperm(9, generator=generator)[: 1 + n_negatives] for _ in users])
    found = steps(*arrays, *sums, users.numpy(), pairs.numpy(), dtype(0.5), dtype(0.3))

    total, squares = 0.0, [torch.ones(len(x), dtype=x.dtype) for x in peer.parameters()]
    for user, pair in zip(users, pairs, strict=True):
        loss = peer.objective(user[None], pair[:1], Given(pair[None, 1:]), generator)
        total += float(loss.detach())
        gradients = torch.autograd.grad(loss, list(peer.parameters()))
        for x, g, seen in zip(peer.parameters(), gradients, squares, strict=True):
            seen += g.square().reshape(len(x), -1).mean(dim=1)  # (n,)
            x.data -= 0.5 * g / seen.sqrt().reshape(-1, *[1] * (g.ndim - 1))
    assert found == pytest.approx(total, abs=10 * atol)
    for x, seen, array, own in zip(peer.parameters(), squares, arrays, sums, strict=True):
        np.testing.assert_allclose(array, x.detach().numpy(), rtol=0, atol=atol)
        np.testing.assert_allclose(own, seen.numpy(), rtol=0, atol=10 * atol)


def test_scores_far_apart_overflow_nowhere(numba):
    P, Q = np.full((1, 1), 100.0, np.float32), np.array([[-30.0], [30.0]], np.float32)
    b, sums = np.zeros(2, np.float32), [np.ones(n, np.float32) for n in (1, 2, 2)]
    pair, zero = np.array([[0, 1]]), np.float32(0)
    assert _compiled()(P, Q, b, *sums, np.array([0]), pair, zero, zero) == pytest.approx(6000.0)
    assert _compiled()(P, Q, b, *sums, np.array([0]), pair[:, ::-1].copy(), zero, zero) == 0.0


def test_the_seed_decides_and_nothing_else(numba, device):
    def fitted(seed, **options):
        model = CompiledBPR(dim=5, epochs=4, seed=seed, **options)
        return model.fit(events(), device=device, progress=False)

    one, same, other = fitted(0), fitted(0), fitted(1)
    assert torch.equal(one.item_factors, same.item_factors)
    assert not torch.equal(one.item_factors, other.item_factors)
    assert one.item_factors.device.type == device.type
    assert [entry["loss"] for entry in one.log] == [entry["loss"] for entry in same.log]
    assert one.log[-1]["loss"] < one.log[0]["loss"]
    assert not one.user_factors[-1].any()  # whom it knows nothing of


@pytest.mark.parametrize("options", [{"negatives": "hard", "batch_size": 7}, {"negatives": "popularity"}])
def test_negatives_are_drawn_as_those_of_bpr_are(numba, device, options):
    model = CompiledBPR(dim=5, epochs=3, **options).fit(events(), device=device, progress=False)
    assert model.log[-1]["loss"] < model.log[0]["loss"]


def test_validation_stops_it_and_the_best_state_is_kept(numba, movielens):
    split = leave_last_out(movielens.interactions.positives(4.0), n=0.2)
    model = CompiledBPR(dim=8, epochs=60, check_every=1, patience=2, learning_rate=1.0)
    model.fit(split.train, split.validation, device="cpu", progress=False)
    looks = [entry["ndcg@10"] for entry in model.log]
    assert model.stopped_by == "patience"
    assert len(looks) == model.best_epoch + 2 < 60
    assert looks[model.best_epoch - 1] == max(looks)
    report = evaluate(model, split.validation, seen=split.train, progress=False)
    assert report.metrics["ndcg@10"] == pytest.approx(max(looks), abs=1e-6)


def test_time_that_is_up_ends_it_with_a_look(numba):
    split = leave_last_out(events(), n=1)
    model = CompiledBPR(dim=4, epochs=10_000_000, patience=10_000_000)
    with pytest.warns(UserWarning, match="max_seconds"):
        model.fit(split.train, split.validation, device="cpu", progress=False, max_seconds=0.2)
    assert model.stopped_by == "time"
    assert "ndcg@10" in model.log[-1]
    assert 0 < model.best_epoch <= len(model.log)


def test_divergence_names_the_rate(numba):
    with pytest.raises(FloatingPointError, match="lower learning_rate=1e\\+30"):
        CompiledBPR(learning_rate=1e30, epochs=50).fit(events(), device="cpu", progress=False)


def test_users_who_have_everything_leave_nothing_to_learn(numba):
    frame = pd.DataFrame({"user_id": [0, 0], "item_id": [0, 1], "rating": 5.0, "timestamp": [0, 1]})
    with pytest.warns(UserWarning, match="nothing to learn"):
        model = CompiledBPR().fit(Interactions.from_frame(frame), device="cpu", progress=False)
    assert (model.stopped_by, model.log) == ("nothing to learn", [])


def test_it_starts_from_parts_but_at_one_rate(numba):
    first = CompiledBPR(dim=4, epochs=3).fit(events(), device="cpu", progress=False)
    second = CompiledBPR(dim=4, epochs=1, learning_rate=1e-12).start_from(first, ["item_factors"])
    second.fit(events(), device="cpu", progress=False)
    torch.testing.assert_close(second.item_factors, first.item_factors)
    for refused in ({"frozen": ["item_factors"]}, {"rates": {"item_factors": 0.1}}):
        with pytest.raises(ValueError, match="neither rates nor frozen"):
            CompiledBPR(dim=4).start_from(first, ["item_factors"], **refused)


def test_it_learns_what_bpr_learns(numba, movielens):
    split = leave_last_out(movielens.interactions.positives(4.0), n=0.2)
    fitted = [
        model.fit(split.train, device="cpu", progress=False)
        for model in (CompiledBPR(epochs=32), BPR(epochs=32, gradient="written"))
    ]
    one, other = (evaluate(model, split.validation, seen=split.train).metrics["ndcg@10"] for model in fitted)
    assert one == pytest.approx(other, rel=0.1)


def test_without_numba_fit_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    _compiled.cache_clear()
    with pytest.raises(ImportError, match=r'pip install "recsys-lib\[fast\]"'):
        CompiledBPR().fit(events(), device="cpu", progress=False)
    _compiled.cache_clear()


def test_a_fitted_one_is_loaded_without_numba(numba, monkeypatch, tmp_path):
    model = CompiledBPR(dim=4, epochs=2).fit(events(), device="cpu", progress=False)
    model.save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "numba", None)
    _compiled.cache_clear()
    loaded = CompiledBPR.from_pretrained(tmp_path)
    assert torch.equal(loaded.score(torch.arange(3)), model.score(torch.arange(3)))


def test_without_a_folder_to_keep_it_in_it_is_compiled_all_the_same(numba, monkeypatch):
    made = numba.njit

    def njit(*arguments, **options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return made(*arguments, **options)

    monkeypatch.setattr(numba, "njit", njit)
    _compiled.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CompiledBPR(dim=4, epochs=1).fit(events(), device="cpu", progress=False)
    _compiled.cache_clear()
