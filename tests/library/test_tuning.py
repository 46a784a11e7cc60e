"""Tuning: an equal budget, the defaults first, and no look at test data."""

import functools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from recsys_lib.data import Interactions, Split, leave_last_out
from recsys_lib.evaluation import evaluate
from recsys_lib.models import BPR, ItemKNN
from recsys_lib.tuning import _trials, _values, tune, tune_epochs


class NoTest:
    """A split whose test data cannot be looked at."""

    def __init__(self, split: Split) -> None:
        self.train, self.validation = split.train, split.validation

    @property
    def test(self) -> Interactions:
        raise AssertionError("tuning must not touch test data")

    history = test


class Mixture:
    """Scores items by a mixture of popularity and noise; alpha = 1 is the best, and the default is not."""

    made: list[dict[str, object]]

    def __init__(self, alpha: float = 0.25, beta: int = 1, seed: int = 0) -> None:
        Mixture.made.append({"alpha": alpha, "beta": beta, "seed": seed})
        self.alpha, self.seed = alpha, seed

    def fit(self, interactions: Interactions) -> "Mixture":
        if self.alpha > 1:
            raise ArithmeticError("alpha is out of range")
        self.n_items = interactions.n_items
        counts = torch.bincount(interactions.items, minlength=self.n_items)
        noise = torch.rand(self.n_items, generator=torch.Generator().manual_seed(self.seed))
        self.scores = self.alpha * counts / counts.max() + (1 - self.alpha) * noise
        return self

    def score(self, users: Tensor) -> Tensor:
        return self.scores.expand(len(users), -1)


@pytest.fixture(autouse=True)
def _forget() -> None:
    Mixture.made = []


@pytest.fixture(scope="module")
def split() -> Split:
    g = torch.Generator().manual_seed(0)
    weights = 1 / torch.arange(1, 41).float()
    items = torch.multinomial(weights, 60 * 12, replacement=True, generator=g)
    frame = pd.DataFrame({"user_id": torch.arange(60).repeat(12).numpy(), "item_id": items.numpy()})
    frame["timestamp"] = range(len(frame))
    return leave_last_out(Interactions.from_frame(frame), n=3)


SPACE = {"alpha": [0.0, 0.25, 0.5, 0.75, 1.0], "beta": [1, 2]}


def test_the_defaults_come_first_and_no_trial_comes_twice(split: Split) -> None:
    result = tune(Mixture, SPACE, NoTest(split), budget=6, fixed={"seed": 7})
    assert len(result.trials) == len(Mixture.made) == 6
    assert Mixture.made[0] == {"alpha": 0.25, "beta": 1, "seed": 7}
    assert all(made["seed"] == 7 for made in Mixture.made)
    assert result.best in Mixture.made
    assert len({tuple(made.items()) for made in Mixture.made}) == 6
    assert result.trials[["alpha", "beta"]].to_dict("records") == [
        {"alpha": made["alpha"], "beta": made["beta"]} for made in Mixture.made
    ]


def test_a_small_grid_is_searched_in_full_and_the_best_found(split: Split) -> None:
    result = tune(Mixture, SPACE, NoTest(split), budget=100)
    assert len(result.trials) == 10
    assert result.best == {"alpha": 1.0, "beta": result.best["beta"]}
    values = result.trials["ndcg@10"]
    assert values.max() > values.iloc[0]
    # Of two equal trials the earlier one wins.
    assert result.best["beta"] == result.trials.loc[values.idxmax(), "beta"]
    direct = evaluate(Mixture(**result.best).fit(split.train), split.validation, seen=split.train)
    assert direct.metrics["ndcg@10"] == values.max()
    assert f"{values.max():.4f}" in repr(result)


def test_the_same_seed_gives_the_same_trials(split: Split) -> None:
    a, b, c = (tune(Mixture, SPACE, NoTest(split), budget=4, seed=seed) for seed in (3, 3, 4))
    columns = ["alpha", "beta", "ndcg@10"]
    pd.testing.assert_frame_equal(a.trials[columns], b.trials[columns])
    assert not a.trials[columns].equals(c.trials[columns])
    assert a.trials[columns].iloc[0].equals(c.trials[columns].iloc[0])


@pytest.mark.parametrize("budget", [1, 2, 5, 10])
def test_every_model_gets_the_same_number_of_trials(split: Split, budget: int) -> None:
    for seed in range(5):
        assert len(tune(Mixture, SPACE, NoTest(split), budget=budget, seed=seed).trials) == budget


def test_tuning_is_by_the_metric_asked_for(split: Split) -> None:
    for metric in ("recall@3", "auc"):
        result = tune(Mixture, {"alpha": [0.5, 1.0]}, NoTest(split), budget=3, metric=metric)
        model = Mixture(**result.best).fit(split.train)
        report = evaluate(model, split.validation, seen=split.train, k=3, metrics=["recall", "auc"])
        assert result.metric == metric
        assert report.metrics[metric] == result.trials[metric].max()


def test_the_seed_breaks_the_ties_of_the_rankings(split: Split) -> None:
    class Undecided(Mixture):
        def score(self, users: Tensor) -> Tensor:
            return torch.zeros(len(users), self.n_items)

    found = []
    for seed in (0, 1):
        value = tune(Undecided, {}, NoTest(split), budget=1, seed=seed).trials["ndcg@10"].item()
        report = evaluate(Undecided().fit(split.train), split.validation, seen=split.train, seed=seed)
        assert value == report.metrics["ndcg@10"]
        found.append(value)
    assert found[0] != found[1]


def test_models_are_fitted_where_it_was_asked(split: Split) -> None:
    with pytest.raises(RuntimeError, match=r"nowhere.* is not one that torch knows"):
        tune(ItemKNN, {}, NoTest(split), budget=1, device="nowhere")
    assert len(tune(ItemKNN, {}, NoTest(split), budget=1, device="cpu").trials) == 1


def test_a_function_will_do_and_defaults_that_cannot_be_known_are_missing(split: Split) -> None:
    result = tune(lambda **p: Mixture(**p), {"alpha": [1.0]}, NoTest(split), budget=5)
    assert [made["alpha"] for made in Mixture.made] == [0.25, 1.0]
    assert result.trials["alpha"].isna().tolist() == [True, False]
    assert result.best == {"alpha": 1.0}


def test_a_real_model(split: Split) -> None:
    result = tune(ItemKNN, {"k": [5, 20], "shrink": [0.0, 10.0]}, NoTest(split), budget=3)
    assert result.trials.iloc[0]["k"] == ItemKNN().k
    assert len(result.trials) == 3


def test_the_trials_of_a_seed_are_part_of_the_contract() -> None:
    """A stored result must stay reproducible: the same trials in every later version."""
    grid = {"a": list(range(7)), "b": list("xyz"), "c": [0.5, 1.0]}
    defaults = {"a": 3, "b": "x", "c": 1.0}
    found = list(_trials(grid, defaults, 6, seed=5))
    drawn = np.random.default_rng(5).choice(42, size=6, replace=False).tolist()
    points = [{"a": i % 7, "b": "xyz"[i // 7 % 3], "c": [0.5, 1.0][i // 21]} for i in drawn]
    assert defaults in points  # it is drawn, too, and not tried again
    assert found == [defaults, *(point for point in points if point != defaults)]


@pytest.mark.parametrize(("n_parameters", "n_values"), [(9, 100), (20, 10), (63, 2), (64, 2), (40, 1000)])
def test_a_huge_grid_is_drawn_from_without_being_laid_out(n_parameters: int, n_values: int) -> None:
    grid = {f"p{i}": list(range(n_values)) for i in range(n_parameters)}
    defaults = dict.fromkeys(grid, 0)
    trials = list(_trials(grid, defaults, 200, seed=1))
    assert trials[0] == defaults
    assert len(trials) == len({tuple(x.values()) for x in trials}) == 200
    assert trials == list(_trials(grid, defaults, 200, seed=1))
    assert trials[1:] != list(_trials(grid, defaults, 200, seed=2))[1:]
    # Each value of each parameter is as likely as any other.
    for name in grid:
        mean = sum(x[name] for x in trials[1:]) / 199
        spread = (n_values**2 - 1) / 12 / 199
        assert abs(mean - (n_values - 1) / 2) < 5 * spread**0.5


def test_a_huge_grid_has_no_point_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "iinfo", lambda _: SimpleNamespace(max=3))  # so that a small grid counts as huge
    grid = {"a": [1, 2, 3], "b": [1, 2]}
    trials = list(_trials(grid, {"a": 1, "b": 1}, 6, seed=0))
    assert sorted(tuple(x.values()) for x in trials) == [(a, b) for a in (1, 2, 3) for b in (1, 2)]


def test_twenty_parameters_can_be_tuned(split: Split) -> None:
    def make(alpha: float = 0.25, **others: int) -> Mixture:
        assert len(others) in (0, 20)
        return Mixture(alpha)

    space = {"alpha": [0.5, 1.0]} | {f"p{i}": list(range(10)) for i in range(20)}
    result = tune(make, space, NoTest(split), budget=4)
    assert len(result.trials) == 4
    assert list(result.trials.columns[:21]) == list(space)


@pytest.mark.parametrize(
    ("values", "distinct"),
    [
        ([5, 5, 7], [5, 7]),
        ([1, 1.0, 2], [1, 2]),
        (np.array([5, 7, 5]), [5, 7]),
        (np.linspace(0, 1, 3), [0.0, 0.5, 1.0]),
        ([np.int64(5), np.float32(0.5), np.bool_(True), np.str_("a")], [5, 0.5, True, "a"]),
        (pd.Series([5, 7], index=[3, 4]), [5, 7]),
        (pd.Index(["a", "b"]), ["a", "b"]),
        (range(3), [0, 1, 2]),
        ((None, 3), [None, 3]),
        ([[64], [64, 32], [64]], [[64], [64, 32]]),
        ([{"a": 1}, {"a": 2}], [{"a": 1}, {"a": 2}]),
    ],
)
def test_values_to_try_are_distinct_and_plain(values: Any, distinct: list[Any]) -> None:
    found = _values("p", values)
    assert found == distinct
    assert [type(x) for x in found] == [type(x) for x in distinct]


def test_values_to_try_may_be_arrays() -> None:
    a, b = torch.zeros(2), torch.ones(2)
    assert [x.tolist() for x in _values("p", [a, b, torch.zeros(2), np.zeros(2)])] == [[0, 0], [1, 1], [0, 0]]
    found = _values("p", np.array([[1, 2], [3, 4], [1, 2]]))
    assert [x.tolist() for x in found] == [[1, 2], [3, 4]]
    # The defaults are left out of what is drawn, whatever they are.
    trials = list(_trials({"w": [a, b]}, {"w": torch.zeros(2)}, 3, seed=0))
    assert [x["w"].tolist() for x in trials] == [[0, 0], [1, 1]]


def test_a_value_that_is_listed_twice_is_tried_once(split: Split) -> None:
    result = tune(Mixture, {"alpha": np.array([0.5, 1.0, 0.5, 0.25])}, NoTest(split), budget=10)
    assert [made["alpha"] for made in Mixture.made][:1] == [0.25]
    assert sorted(result.trials["alpha"]) == [0.25, 0.5, 1.0]
    assert type(result.best["alpha"]) is float


def test_values_that_cannot_be_hashed_can_be_tuned(split: Split) -> None:
    def make(layers: list[int] | None = None) -> Mixture:
        return Mixture(1.0 if layers == [64, 32] else 0.0)

    result = tune(make, {"layers": [[8], [64, 32]]}, NoTest(split), budget=3)
    assert result.best == {"layers": [64, 32]}
    assert "[64, 32]" in repr(result)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"seed": 0.5}, r"seed must be a whole number, got 0\.5"),
        ({"budget": 2.0}, r"budget must be a whole number, got 2\.0"),
        ({"budget": True}, "budget must be a whole number, got True"),
    ],
)
def test_tune_names_what_is_of_another_kind(split: Split, change: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        tune(Mixture, SPACE, NoTest(split), **{"budget": 3} | change)
    assert not Mixture.made


def test_a_partial_function_has_no_name(split: Split) -> None:
    with pytest.raises(ValueError, match=r"partial.* takes no gamma; it takes alpha"):
        tune(functools.partial(Mixture, seed=3), {"gamma": [1]}, NoTest(split), budget=2)


def test_a_failing_trial_names_its_parameters(split: Split) -> None:
    with pytest.raises(RuntimeError, match=r"trial 2 of 2 failed with \{'seed': 1, 'alpha': 2.0") as caught:
        tune(Mixture, {"alpha": [2.0]}, NoTest(split), budget=2, fixed={"seed": 1})
    assert isinstance(caught.value.__cause__, ArithmeticError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": {"alhpa": [1.0]}}, "Mixture takes no alhpa; it takes alpha"),
        ({"space": {"alpha": []}}, "list of values"),
        ({"space": {"alpha": "abc"}}, "list of values"),
        ({"space": {"alpha": 0.5}}, "list of values"),
        ({"space": {"alpha": np.array(0.5)}}, "list of values"),
        ({"space": {"alpha": np.array([])}}, "list of values"),
        ({"space": {"alpha": {0.5, 1.0}}}, "list of values"),  # has no order that could be repeated
        ({"seed": -1}, "seed must be at least 0"),
        ({"fixed": {"alpha": 1.0}}, "alpha cannot be both"),
        ({"budget": 0}, "at least 1 trial"),
        ({"metric": "ndcg"}, "with a cutoff"),
        ({"metric": "gini@10"}, "with a cutoff"),
        ({"metric": "ndcg@0"}, "with a cutoff"),
    ],
)
def test_tune_refuses_what_makes_no_sense(split: Split, change: dict[str, object], message: str) -> None:
    arguments = {"space": SPACE, "budget": 3} | change
    with pytest.raises(ValueError, match=message):
        tune(Mixture, arguments.pop("space"), NoTest(split), **arguments)
    assert not Mixture.made


def test_validation_lists_hold_no_training_item(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the exclusion, items of the training set would fill the lists."""
    swapped = replace(split, validation=split.train)
    with pytest.raises(RuntimeError, match="no user to evaluate"):
        tune(Mixture, {}, NoTest(swapped), budget=1)


class Learner:
    """Its figure on validation rises up to a number of epochs that depends on the rate, and then falls."""

    def __init__(self, rate: float, epochs: int, check_every: int, patience: int, seed: int) -> None:
        self.rate, self.epochs, self.check_every, self.patience = rate, epochs, check_every, patience
        self.log: list[dict[str, float]] = []
        self.stopped_by, self.fit_seconds, self.best_epoch = "epochs", 0.0, 0
        self.seed = seed

    def fit(self, interactions: Interactions, validation: Interactions, **options: Any) -> "Learner":
        assert validation is not None
        top, best, waited = {0.1: 30, 0.2: 10}.get(self.rate, 20), -1.0, 0
        for epoch in range(self.check_every, self.epochs + 1, self.check_every):
            value = self.rate - abs(epoch - top) / 1000
            self.log.append({"epoch": epoch, "ndcg@10": value})
            waited = 0 if value > best else waited + 1
            if value > best:
                best, self.best_epoch = value, epoch
            if waited == self.patience:
                self.stopped_by = "patience"
                break
        return self


LOOKS = {"rate": [0.1, 0.2, 0.3], "epochs": range(5, 51, 5)}


def test_each_trial_finds_its_number_of_epochs(split: Split) -> None:
    found = tune_epochs(Learner, LOOKS, split, budget=3, patience=2, progress=False)
    assert found.best == {"rate": 0.3, "epochs": 20}
    lengths = found.trials.set_index("rate")["epochs"].to_dict()
    assert lengths == {0.1: 30, 0.2: 10, 0.3: 20}
    assert found.trials["rate"].iloc[0] == 0.1  # the first value of each option comes first


def test_the_trials_that_find_their_epochs_are_distinct_and_of_the_seed(split: Split) -> None:
    space = {"rate": [0.1, 0.2, 0.3, 0.4, 0.5], "epochs": [5, 10]}
    drawn = [
        tune_epochs(Learner, space, split, budget=3, seed=seed, progress=False).trials["rate"].tolist()
        for seed in (0, 0, 1, 2, 3)
    ]
    assert drawn[0] == drawn[1]
    assert len({tuple(rates) for rates in drawn}) > 1
    assert all(len(set(rates)) == 3 for rates in drawn)


def test_a_real_model_is_as_good_as_its_best_look(split: Split) -> None:
    space = {"learning_rate": [0.05], "epochs": [2, 4, 6]}
    found = tune_epochs(BPR, space, split, budget=1, seed=3, progress=False)
    model = BPR(**{**found.best, "seed": 3}).fit(split.train, progress=False)
    report = evaluate(model, split.validation, seen=split.train, seed=3, progress=False)
    assert report.metrics["ndcg@10"] == pytest.approx(found.trials["ndcg@10"].iloc[0], abs=1e-6)


@pytest.mark.parametrize("looks", [[], [10, 25], [5, 10, 20]])
def test_looks_must_be_evenly_spaced(split: Split, looks: list[int]) -> None:
    space = {"rate": [0.1], "epochs": looks}
    with pytest.raises(ValueError, match="epochs"):
        tune_epochs(Learner, space, split, budget=1, progress=False)


def test_looks_must_be_given(split: Split) -> None:
    with pytest.raises(ValueError, match="evenly spaced"):
        tune_epochs(Learner, {"rate": [0.1]}, split, budget=1, progress=False)


def test_a_trial_that_was_cut_short_is_not_judged(split: Split) -> None:
    class Interrupted(Learner):
        def fit(self, *args: Any, **options: Any) -> "Learner":
            super().fit(*args, **options)
            self.stopped_by = "interrupt"
            return self

    with pytest.raises(KeyboardInterrupt):
        tune_epochs(Interrupted, LOOKS, split, budget=1, progress=False)
