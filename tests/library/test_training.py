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
    done = train(model, model.losses, epochs=3, learning_rate=0.1, progress=False)
    log, kept = done.log, done.best_epoch
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
    done = train(model, model.losses, epochs=50, learning_rate=0.1, validation=look, progress=False)
    log, kept = done.log, done.best_epoch
    assert done.stopped_by == "patience"
    assert len(log) == 8
    assert [entry.get("figure") for entry in log] == [None, 0.1, None, 0.3, None, 0.2, None, 0.3]
    assert kept == 4
    assert model.weight.item() == weights[1]


def test_the_last_epoch_is_always_looked_at():
    model, looks = Slope(), []
    look = Validation("figure", lambda: looks.append(1) or float(len(looks)), every=4, patience=9)
    done = train(model, model.losses, epochs=6, learning_rate=0.1, validation=look, progress=False)
    log, kept = done.log, done.best_epoch
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


# Stopped from outside.


class Interrupted(Slope):
    """Presses Ctrl-C before a step, counted over all epochs."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.steps = at, 0

    def losses(self):
        for loss, n in super().losses():
            if self.steps == self.at:
                raise KeyboardInterrupt
            self.steps += 1
            yield loss, n


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_interrupt_keeps_what_was_learned(at):
    model, peer = Interrupted(at), Slope()
    with pytest.warns(UserWarning, match=r"stopped by Ctrl-C in epoch \d of 9; the best is kept"):
        done = train(model, model.losses, epochs=9, learning_rate=0.1, progress=False)
    assert done.stopped_by == "interrupt"
    optimizer = torch.optim.Adam(peer.parameters(), lr=0.1)
    for _ in range(at):
        optimizer.zero_grad()
        (peer.weight - 3).square().backward()
        optimizer.step()
    assert model.weight.item() == pytest.approx(peer.weight.item())
    assert done.best_epoch == len(done.log) == -(-at // 2)  # two steps an epoch, the last perhaps cut short


def test_an_interrupt_restores_the_best_look():
    model, weights = Interrupted(at=7), []
    look = Validation("figure", lambda: weights.append(model.weight.item()) or -float(len(weights)), 1, 9)
    with pytest.warns(UserWarning, match="Ctrl-C"):
        done = train(model, model.losses, epochs=9, learning_rate=0.1, validation=look, progress=False)
    assert len(weights) == 3  # three whole epochs were looked at, the first was best
    assert done.best_epoch == 1
    assert model.weight.item() == weights[0]


def test_an_interrupt_during_a_look_keeps_the_best_so_far():
    model, weights = Slope(), []

    def measure() -> float:
        if len(weights) == 2:
            raise KeyboardInterrupt
        weights.append(model.weight.item())
        return float(len(weights))

    look = Validation("figure", measure, every=1, patience=9)
    with pytest.warns(UserWarning, match="Ctrl-C in epoch 3"):
        done = train(model, model.losses, epochs=9, learning_rate=0.1, validation=look, progress=False)
    assert (done.best_epoch, done.stopped_by) == (2, "interrupt")
    assert model.weight.item() == weights[1]


def test_an_interrupt_before_the_first_step_is_passed_on():
    model = Interrupted(at=0)
    with pytest.raises(KeyboardInterrupt):
        train(model, model.losses, epochs=9, learning_rate=0.1, progress=False)


def test_a_time_budget_ends_training_after_the_step_under_way(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("recsys_lib.training.time.monotonic", lambda: float(next(clock)))
    model, looks = Slope(), []
    look = Validation("figure", lambda: looks.append(model.weight.item()) or 1.0, every=4, patience=9)
    with pytest.warns(UserWarning, match="stopped by max_seconds in epoch 2 of 50"):
        done = train(
            model,
            model.losses,
            epochs=50,
            learning_rate=0.1,
            validation=look,
            max_seconds=2.5,
            progress=False,
        )
    assert done.stopped_by == "time"
    assert [entry.get("figure") for entry in done.log] == [None, 1.0]  # a last look is taken
    assert looks == [model.weight.item()]
    assert done.best_epoch == 2


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


def test_a_part_may_learn_at_a_rate_of_its_own():
    module = nn.ModuleDict({"slow": nn.Linear(2, 2), "fast": nn.Linear(2, 2)})
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    x = torch.ones(1, 2)
    losses = lambda: [(module["fast"](module["slow"](x)).sum(), 1)]  # noqa: E731
    train(module, losses, epochs=1, learning_rate=0.1, slower=[(module["slow"], 0.001)], progress=False)
    for name, p in module.named_parameters():  # Adam's first step is of the size of the rate
        moved = (p.detach() - before[name]).abs()
        rate = 0.001 if name.startswith("slow") else 0.1
        torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-3, atol=1e-6)
