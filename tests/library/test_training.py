"""The one training loop and its parts."""

import itertools
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recsys_lib.devices import isolated_rng, seed_generator
from recsys_lib.progress import progress_bar
from recsys_lib.training import Checkpoints, EarlyStopping, Steps, Validation, batches, train

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


# How steps are taken.

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([1.0, -2.0, 0.5])


def linear(dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))


def squares(module: nn.Module, sizes: list[int]):
    """An epoch of the regression, in batches of these sizes, in another order each epoch."""

    def losses(epoch: int = 1, done: int = 0):
        order = torch.randperm(len(X), generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(sizes)[done:]:
            yield (module(X[batch]).squeeze(1) - Y[batch]).square().mean(), len(batch)

    return losses


def learn(module: nn.Module, losses, steps: Steps | None = None, **options):
    return train(module, losses, epochs=3, learning_rate=0.01, steps=steps, progress=False, **options)


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_accumulated_batches_are_one_batch():
    whole, parts, plain = linear(), linear(), linear()
    learn(whole, squares(whole, [8, 16]), Steps())
    learn(parts, squares(parts, [2, 1, 5, 4, 10, 2]), Steps(accumulate=3))
    learn(plain, squares(plain, [2, 1, 5, 4, 10, 2]), Steps())
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-6)
    assert (weights(plain) - weights(whole)).abs().max() > 1e-3


def test_batches_left_over_at_the_end_of_an_epoch_are_a_step():
    whole, parts = linear(), linear()
    learn(whole, squares(whole, [16, 8]), Steps())
    learn(parts, squares(parts, [8, 8, 8]), Steps(accumulate=2))
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-6)


def test_a_long_gradient_is_scaled_down(monkeypatch):
    lengths = []
    step = torch.optim.Adam.step

    def look(self, *args, **options):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        lengths.append(float(torch.cat([g.flatten() for g in grads]).norm()))
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", look)
    module = linear()
    learn(module, squares(module, [24]), Steps())
    assert min(lengths) > 0.5
    lengths.clear()
    learn(module, squares(module, [12, 12]), Steps(clip=0.1, accumulate=2))
    assert lengths == pytest.approx([0.1] * 3, rel=1e-4)


def test_the_rate_grows_and_then_falls_to_zero():
    steps = Steps(warm_up=4, total=10)
    assert [steps.rate(n) for n in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert [steps.rate(n) for n in range(4, 11)] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0])
    assert [Steps(warm_up=2).rate(n) for n in (0, 1, 2, 99)] == [0.5, 1, 1, 1]
    # Adam's first steps are as long as its rate.
    module, places = nn.Linear(1, 1, bias=False), []

    def losses(epoch, done):
        for _ in range(4):
            places.append(module.weight.item())
            yield module.weight.sum(), 1

    train(module, losses, epochs=1, learning_rate=0.1, steps=Steps(warm_up=4), progress=False)
    moved = [a - b for a, b in itertools.pairwise(places)]
    assert moved == pytest.approx([0.025, 0.05, 0.075], rel=1e-3)


def test_parts_with_a_rate_of_their_own_share_the_schedule():
    module = linear()
    before = weights(module[0])
    learn(module, squares(module, [24]), Steps(warm_up=3), slower=[(module[0], 0.0)])
    assert torch.equal(weights(module[0]), before)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_products_are_computed_in_the_precision_asked_for(precision):
    module, seen = linear(), []
    module[0].register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    done = learn(module, squares(module, [8, 8, 8]), Steps(precision=precision))
    assert set(seen) == {getattr(torch, precision)}
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    exact = linear()
    expected = learn(exact, squares(exact, [8, 8, 8]), Steps())
    # The scaler of float16 starts too high and skips steps until it fits.
    assert [entry["loss"] for entry in done.log] == pytest.approx(
        [entry["loss"] for entry in expected.log], rel=0.03 if precision == "bfloat16" else 0.1
    )
    assert module(X).dtype == torch.float32  # the mode ends with training


def test_plain_steps_are_those_without_steps():
    plain, stepped = linear(), linear()
    learn(plain, squares(plain, [6] * 4))
    losses = squares(stepped, [6] * 4)
    learn(stepped, lambda epoch, done: losses(), Steps())
    assert torch.equal(weights(plain), weights(stepped))
    with pytest.raises(ValueError, match="precision='float8' is not one of float32, bfloat16, float16"):
        learn(plain, squares(plain, [24]), Steps(precision="float8"))
    with pytest.raises(ValueError, match="accumulate must be 1 or more"):
        learn(plain, squares(plain, [24]), Steps(accumulate=0))


def test_own_steps_are_left_to_the_module():
    """A module that has moved by itself is watched, stopped and kept as any other, and not moved again."""
    module = linear()

    def losses(epoch, done):
        with torch.no_grad():
            module[0].weight += 1.0
            yield torch.tensor(float(epoch)), 4

    before = module[0].weight.clone()
    looks = iter([1.0, 3.0, 2.0, 2.0])
    watch = Validation("figure", lambda: next(looks), 1, 2)
    options = {"epochs": 9, "learning_rate": 0.01, "validation": watch, "progress": False}
    done = train(module, losses, steps=Steps(own=True), **options)
    assert [entry["loss"] for entry in done.log] == [1.0, 2.0, 3.0, 4.0]
    assert (done.best_epoch, done.stopped_by) == (2, "patience")
    assert torch.equal(module[0].weight, before + 1 + 1)
    for asked in ({"clip": 1.0}, {"accumulate": 2}, {"precision": "bfloat16"}, {"warm_up": 1}):
        with pytest.raises(ValueError, match="own=True stands alone"):
            Steps(own=True, **asked)


# Runs that were killed.


class Killed(BaseException):
    """What a run does not expect."""


def killed_after(losses, n_batches: int):
    left = [n_batches]

    def some(epoch, done):
        for item in losses(epoch, done):
            if not left[0]:
                raise Killed
            left[0] -= 1
            yield item

    return some


@pytest.mark.parametrize("after", [0, 1, 3, 4, 5, 6, 11, 17])
def test_a_run_that_was_killed_ends_where_it_would_have_ended(after, tmp_path):
    def validation(module):
        return Validation("minus", lambda: -(module(X).squeeze(1) - Y).square().mean().item(), 1, 5)

    def run(module, losses, checkpoints=None):
        steps = Steps(accumulate=2, clip=1.0, warm_up=2, total=9, checkpoints=checkpoints)
        return learn(module, losses, steps, validation=validation(module))

    whole = linear(0.3)
    with isolated_rng(5):
        expected = run(whole, squares(whole, [4] * 6))
    kept = Checkpoints(tmp_path / "run", 1, "this run")
    broken = linear(0.3)
    with isolated_rng(5), pytest.raises(Killed):
        run(broken, killed_after(squares(broken, [4] * 6), after), kept)
    assert kept.file.is_file() == (after >= 2)
    resumed, asked = linear(0.3), []
    losses = squares(resumed, [4] * 6)

    def counted(epoch, done):
        asked.append((epoch, done))
        return losses(epoch, done)

    with isolated_rng(5 if after < 2 else 77):  # the random state is the checkpoint's, where there is one
        found = run(resumed, counted, kept)
    assert asked[0] == (1 + after // 6, after % 6 // 2 * 2)  # what was done is not done again
    assert torch.equal(weights(resumed), weights(whole))
    assert found == expected
    assert not list((tmp_path / "run").iterdir())


def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    module = linear()
    mine, other = (Checkpoints(tmp_path, 1, key) for key in ("mine", "other"))
    with pytest.raises(Killed):
        learn(module, killed_after(squares(module, [6] * 4), 2), Steps(checkpoints=other))
    with pytest.raises(ValueError, match="run with other options or other data; remove it to start over"):
        learn(module, squares(module, [6] * 4), Steps(checkpoints=mine))
    other.file.write_bytes(other.file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"is damaged .*remove it to start over"):
        learn(module, squares(module, [6] * 4), Steps(checkpoints=other))


def test_a_checkpoint_brings_no_code_along(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit('it ran')",))

    kept = Checkpoints(tmp_path, 1, "run")
    torch.save({"key": "run", "module": Evil()}, kept.file)
    with pytest.raises(ValueError, match="is damaged"):
        kept.read()
