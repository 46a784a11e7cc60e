"""Tuning: an equal budget, the defaults first, and no look at test data."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import Tensor

from recsys_lib.data import Interactions, Split, leave_last_out
from recsys_lib.evaluation import evaluate
from recsys_lib.models import ItemKNN
from recsys_lib.tuning import tune


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


def test_a_function_will_do_and_defaults_that_cannot_be_known_are_missing(split: Split) -> None:
    result = tune(lambda **p: Mixture(**p), {"alpha": [1.0]}, NoTest(split), budget=5)
    assert [made["alpha"] for made in Mixture.made] == [0.25, 1.0]
    assert result.trials["alpha"].isna().tolist() == [True, False]
    assert result.best == {"alpha": 1.0}


def test_a_real_model(split: Split) -> None:
    result = tune(ItemKNN, {"k": [5, 20], "shrink": [0.0, 10.0]}, NoTest(split), budget=3)
    assert result.trials.iloc[0]["k"] == ItemKNN().k
    assert len(result.trials) == 3


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
