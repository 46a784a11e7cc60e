"""The one training loop and its parts."""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recsys_lib.devices import seed_generator
from recsys_lib.progress import progress_bar
from recsys_lib.training import EarlyStopping, Validation, batches, train

quick = settings(max_examples=30, deadline=None)

# Batches.


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


def test_early_stopping_ignores_nan():
    module = nn.Linear(1, 1)
    stopping = EarlyStopping(patience=2)
    assert not stopping.step(0.5, 0, module)
    assert not stopping.step(0.5, 1, module)
    assert stopping.step(float("nan"), 2, module)
    assert stopping.best == 0.5
    with pytest.raises(RuntimeError, match="diverged"):
        EarlyStopping().restore(module)
    with pytest.raises(ValueError, match="patience"):
        EarlyStopping(0)


# The loop.


class Slope(nn.Module):
    """One weight that should become 3."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def losses(self, targets=((3.0, 2), (3.0, 1))):
        for target, n in targets:
            yield (self.weight - target).square(), n


def test_the_loop_is_adam_on_the_losses_in_their_order():
    model, peer = Slope(), Slope()
    log, kept = train(model, model.losses, epochs=3, learning_rate=0.1, progress=False)
    optimizer = torch.optim.Adam(peer.parameters(), lr=0.1)
    expected = []
    for _ in range(3):
        total = 0.0
        for n in (2, 1):
            optimizer.zero_grad()
            loss = (peer.weight - 3).square()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * n
        expected.append(total / 3)  # the mean over examples, not over batches
    assert kept == 3
    assert [entry["epoch"] for entry in log] == [1, 2, 3]
    assert [entry["loss"] for entry in log] == pytest.approx(expected)
    assert model.weight.item() == pytest.approx(peer.weight.item())


def test_the_loop_stops_early_and_restores_the_best_look():
    model, looks = Slope(), iter([0.1, 0.3, 0.2, 0.3, 0.9])
    weights = []

    def measure() -> float:
        weights.append(model.weight.item())
        return next(looks)

    look = Validation("figure", measure, every=2, patience=2)
    log, kept = train(model, model.losses, epochs=50, learning_rate=0.1, validation=look, progress=False)
    assert len(log) == 8
    assert [entry.get("figure") for entry in log] == [None, 0.1, None, 0.3, None, 0.2, None, 0.3]
    assert kept == 4
    assert model.weight.item() == weights[1]


def test_the_last_epoch_is_always_looked_at():
    model, looks = Slope(), []
    look = Validation("figure", lambda: looks.append(1) or float(len(looks)), every=4, patience=9)
    log, kept = train(model, model.losses, epochs=6, learning_rate=0.1, validation=look, progress=False)
    assert [entry["epoch"] for entry in log if "figure" in entry] == [4, 6]
    assert kept == 6


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_loop(bad):
    model = Slope()
    with pytest.raises(FloatingPointError, match=r"slope: .*in epoch 1: training has diverged; lower.*=0\.1"):
        train(
            model,
            lambda: model.losses([(3.0, 1), (bad, 1)]),
            epochs=5,
            learning_rate=0.1,
            name="slope",
            progress=False,
        )


def test_parameters_that_are_not_finite_after_the_last_step_stop_the_loop():
    model = Slope()
    model.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(FloatingPointError, match="a parameter is not finite in epoch 1"):
        train(model, lambda: model.losses([(3.0, 1)]), epochs=1, learning_rate=0.1, progress=False)


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
