"""The evaluator against other implementations, against chance, and against faulty models."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ir_measures
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, P, R, Success, nDCG
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from recsys_lib import metrics, ranking
from recsys_lib.data import Interactions
from recsys_lib.evaluation import (
    Comparison,
    Estimate,
    Report,
    compare,
    evaluate,
    mean_report,
    sampled_evaluate,
    users_needed,
)

quick = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)
MEASURES = {"ndcg": nDCG, "recall": R, "hit_rate": Success, "precision": P, "mrr": RR, "map": AP}


class Table:
    """A model that hands out views of its scores: writing to one would change the model."""

    def __init__(self, scores: Tensor) -> None:
        self.scores, self.n_items = scores, scores.shape[1]

    def score(self, users: Tensor) -> Tensor:
        first, last = int(users[0]), int(users[-1]) + 1
        return self.scores[first:last] if last - first == len(users) else self.scores[users]


class Constant:
    """A model that cannot tell items apart; its scores are one number, expanded."""

    def __init__(self, n_items: int) -> None:
        self.n_items = n_items

    def score(self, users: Tensor) -> Tensor:
        return torch.zeros(1, 1).expand(len(users), self.n_items)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def renamed(events: Interactions, **ids: Any) -> Interactions:
    """The same numbers, standing for other users or items: as if read from another table."""
    return replace(events, **{name: pd.Index(values) for name, values in ids.items()})


def events(mask: Tensor) -> Interactions:
    """(n_users, n_items) bool -> an event wherever it is True, some of them twice."""
    users, items = torch.cat([mask.nonzero(), mask.nonzero()[::3]]).unbind(dim=1)
    frame = pd.DataFrame({"user_id": users.numpy(), "item_id": items.numpy()})
    if not len(frame):
        return events(torch.ones_like(mask))[:0]
    return Interactions.from_frame(frame, user_ids=range(mask.shape[0]), item_ids=range(mask.shape[1]))


def problem(seed: int, n_users: int, n_items: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores without ties, test mask and seen mask, which overlap; someone has something to find."""
    g = generator(seed)
    scores = torch.rand(n_users, n_items, generator=g).argsort(dim=1).float()
    test = torch.rand(n_users, n_items, generator=g) < torch.rand(n_users, 1, generator=g) * 0.6
    seen = torch.rand(n_users, n_items, generator=g) < torch.rand(n_users, 1, generator=g)
    test[-1, 0], seen[-1, 0] = True, False
    return scores, test, seen


def within_chance(successes: float, n: int, p: float) -> bool:
    return abs(successes - n * p) <= 4.5 * math.sqrt(n * p * (1 - p))


# ------------------------------------------------------------------------------------------ it is right


@quick
@given(
    seed=seeds, n_users=st.integers(1, 8), n_items=st.integers(2, 30), with_seen=st.booleans(), data=st.data()
)
def test_evaluate_equals_trec_eval(
    seed: int, n_users: int, n_items: int, with_seen: bool, data: st.DataObject
) -> None:
    scores, test, seen = problem(seed, n_users, n_items)
    cutoffs = sorted({data.draw(st.integers(1, n_items)), data.draw(st.integers(1, n_items))})
    report = evaluate(
        Table(scores),
        events(test),
        seen=events(seen) if with_seen else None,
        k=cutoffs,
        batch_size=data.draw(st.integers(1, n_users)),
        metrics=[*MEASURES, "auc"],
    )

    seen = seen if with_seen else torch.zeros_like(seen)
    relevant = test & ~seen
    ranked = relevant.any(dim=1).nonzero().flatten()
    assert torch.equal(report.users, ranked)
    assert torch.equal(report.n_relevant, relevant[ranked].sum(dim=1))

    qrels = [ir_measures.Qrel(str(u), str(i), 1) for u, i in relevant.nonzero().tolist()]
    run = [ir_measures.ScoredDoc(str(u), str(i), float(scores[u, i])) for u, i in (~seen).nonzero().tolist()]
    wanted = [measure @ k for measure in MEASURES.values() for k in cutoffs]
    theirs = {(v.query_id, v.measure): v.value for v in ir_measures.iter_calc(wanted, qrels, run)}
    for name, measure in MEASURES.items():
        for k in cutoffs:
            values = report.per_user[f"{name}@{k}"]
            assert values.dtype == torch.float64
            expected = [theirs[str(u), measure @ k] for u in ranked.tolist()]
            assert values.tolist() == pytest.approx(expected, abs=1e-6), name
            assert report.metrics[f"{name}@{k}"] == pytest.approx(np.mean(expected), abs=1e-6)

    for u, value in zip(ranked.tolist(), report.per_user["auc"].tolist(), strict=True):
        truth = relevant[u, ~seen[u]]
        expected = roc_auc_score(truth, scores[u, ~seen[u]]) if not truth.all() else 0.5
        assert value == pytest.approx(expected, abs=1e-6)


@quick
@given(seed=seeds, levels=st.sampled_from([1, 3, 10**6]), batch_size=st.integers(1, 12))
def test_lists_hold_no_seen_item_and_do_not_depend_on_batches(
    seed: int, levels: int, batch_size: int
) -> None:
    scores, test, seen = problem(seed, 12, 25)
    scores = (scores % levels).contiguous()
    before = scores.clone()
    whole = evaluate(Table(scores), events(test), seen=events(seen), k=20)
    parts = evaluate(Table(scores), events(test), seen=events(seen), k=20, batch_size=batch_size)

    assert torch.equal(scores, before)
    assert torch.equal(whole.items, parts.items)
    assert whole.metrics == parts.metrics
    for user, listed in zip(whole.users.tolist(), whole.items, strict=True):
        n_candidates = int((~seen[user]).sum())
        assert ((listed >= 0) == (torch.arange(20) < n_candidates)).all()
        assert not seen[user, listed[listed >= 0]].any()


@quick
@given(seed=seeds)
def test_numbering_of_items_and_order_of_rows_do_not_matter(seed: int) -> None:
    scores, test, seen = problem(seed, 10, 20)
    order = torch.randperm(20, generator=generator(seed))
    a = evaluate(Table(scores), events(test), seen=events(seen), k=5)
    b = evaluate(Table(scores[:, order]), events(test[:, order]), seen=events(seen[:, order]), k=5)
    assert a.metrics == pytest.approx(b.metrics, abs=1e-12)


def test_a_user_who_runs_out_of_items_does_not_borrow_from_the_one_before() -> None:
    """-1 is no item. Taken for one, it would be the last item of the previous user, who has it in test."""
    test = torch.tensor([[False, False, True], [True, False, False]])
    seen = torch.tensor([[False, False, False], [False, True, True]])
    report = evaluate(Table(torch.tensor([[0.0, 1, 2], [0, 1, 2]])), events(test), seen=events(seen), k=3)
    assert report.items.tolist() == [[2, 1, 0], [0, -1, -1]]
    assert report.per_user["precision@3"].tolist() == pytest.approx([1 / 3, 1 / 3])


def test_users_without_anything_left_to_find_are_not_ranked() -> None:
    test = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]]).bool()
    seen = torch.tensor([[0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]).bool()
    report = evaluate(Constant(4), events(test), seen=events(seen), k=2)
    assert report.users.tolist() == [0, 3]
    assert report.n_relevant.tolist() == [1, 2]
    assert report.n == 2
    assert evaluate(Constant(4), events(test), k=2).users.tolist() == [0, 1, 3]
    assert evaluate(Constant(4), events(test), k=2, users=torch.tensor([3, 1, 3])).users.tolist() == [1, 3]


def test_a_subset_of_users_has_the_values_it_has_in_the_whole() -> None:
    scores, test, seen = problem(3, 12, 25)
    scores = scores % 3
    whole = evaluate(Table(scores), events(test), seen=events(seen), k=5, metrics=["ndcg", "auc"])
    some = evaluate(
        Table(scores), events(test), seen=events(seen), k=5, metrics=["ndcg", "auc"], users=whole.users[1::2]
    )
    for name in ("ndcg@5", "auc"):
        assert torch.equal(some.per_user[name], whole.per_user[name][1::2])


def test_a_constant_model_earns_what_chance_earns() -> None:
    n_users, n_items, k = 8000, 50, 10
    users = torch.arange(n_users)
    test, seen = torch.zeros(2, n_users, n_items, dtype=torch.bool)
    test[users, users % 25] = True  # always one of the lower-numbered half
    seen[users, 25 + users % 25] = True
    lists = []
    for seed in (0, 1):
        report = evaluate(Constant(n_items), events(test), seen=events(seen), k=k, seed=seed)
        assert within_chance(report.per_user["hit_rate@10"].sum().item(), n_users, k / (n_items - 1))
        assert report.metrics["coverage@10"] == 1
        assert report.metrics["gini@10"] < 0.05
        lists.append(report.items)
    assert not torch.equal(*lists)  # the seed decides
    report = evaluate(Constant(n_items), events(test), seen=events(seen), metrics=["auc"])
    assert set(report.per_user["auc"].tolist()) == {0.5}


def test_what_the_lists_do_to_the_catalog() -> None:
    test = torch.tensor([[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]).bool()
    seen = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1]]).bool()
    scores = torch.tensor([[9.0, 8, 0, 0, 9, 9], [0, 0, 0, 7, 8, 9]])
    features = torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, 0], [2, 0], [1, 1]])
    report = evaluate(Table(scores), events(test), seen=events(seen), k=2, item_features=features)
    assert report.items.tolist() == [[0, 1], [4, 3]]
    assert report.metrics["coverage@2"] == pytest.approx(4 / 6)
    assert report.metrics["gini@2"] == pytest.approx(1 / 3)
    # One of two users has item 4: one bit. Nobody has the others: counted as one user.
    assert report.per_user["novelty@2"].tolist() == [1, 1]
    assert report.per_user["diversity@2"].tolist() == pytest.approx([1, 0])
    short, both = (
        evaluate(Table(scores), events(test), seen=events(seen), k=k, item_features=features)
        for k in (1, [1, 2])
    )
    assert both.metrics == short.metrics | report.metrics


def test_novelty_counts_all_users_ranked_or_not() -> None:
    test = torch.eye(4, 6).bool() & (torch.arange(4) < 2)[:, None]  # two of four users are ranked
    seen = torch.zeros(4, 6).bool()
    seen[2:, 5] = True
    report = evaluate(Table(torch.arange(6).repeat(4, 1).float()), events(test), seen=events(seen), k=1)
    assert report.per_user["novelty@1"].tolist() == [1, 1]  # item 5: two of four users, one bit


def test_minus_infinity_declines_an_item() -> None:
    test = torch.tensor([[True, True, False]])
    report = evaluate(Table(torch.tensor([[-torch.inf, 1.0, 0.0]])), events(test), k=3)
    assert report.items.tolist() == [[1, 2, -1]]
    assert report.metrics["recall@3"] == 0.5


# ---------------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 6}, "between 1 and the number of items, 5"),
        ({"k": []}, "between 1"),
        ({"k": 0}, "between 1"),
        ({"metrics": ["ndgc"]}, "unknown metric 'ndgc'; there are ndcg, recall"),
        ({"metrics": ["novelty"]}, "needs `seen`"),
        ({"metrics": ["diversity"]}, "needs `item_features`"),
        ({"item_features": torch.zeros(4, 2)}, r"must be \(5, d\)"),
        ({"model": Constant(6)}, "knows 6 items and the test set 5"),
        ({"seen": events(torch.ones(3, 4).bool())}, "test and seen: the two do not share their catalogs"),
        ({"seen": events(torch.ones(2, 5).bool())}, "test and seen: the two do not share their catalogs"),
        ({"seen": events(torch.ones(3, 5).bool())}, "no user to evaluate"),
        ({"users": torch.tensor([2])}, "no user to evaluate"),
        ({"users": torch.tensor([1, 3])}, "between 0 and 2, got 3"),
        ({"users": [-1]}, "between 0 and 2, got -1"),
        ({"users": torch.tensor(1)}, "users must be one-dimensional"),
        ({"k": np.int64(6)}, "between 1 and the number of items, 5"),
        ({"item_features": torch.full((5, 2), torch.nan)}, "item 0 of item_features holds NaN"),
        ({"item_features": np.array([[0.0], [1], [2], [np.inf], [4]])}, "item 3 of item_features holds inf"),
        ({"model": Table(torch.full((3, 5), torch.inf))}, r"user 0 contain \+inf"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_evaluate_refuses_what_makes_no_sense(change: dict[str, object], message: str) -> None:
    test = torch.tensor([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    arguments = {"model": Constant(5), "test": events(test), "k": 2} | change
    with pytest.raises(ValueError, match=message):
        evaluate(arguments.pop("model"), arguments.pop("test"), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 2.0}, r"k must be a whole number, got 2\.0"),
        ({"k": True}, "k must be a whole number, got True"),
        ({"k": [1, 2.5]}, r"k must be a whole number, got 2\.5"),
        ({"k": "2"}, "k must be a whole number, got '2'"),
        ({"k": None}, "k must be a whole number, got None"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"seed": 0.5}, r"seed must be a whole number, got 0\.5"),
        ({"batch_size": 2.5}, r"batch_size must be a whole number, got 2\.5"),
        ({"users": torch.tensor([True, False, True])}, "users must be whole numbers, got a boolean mask"),
        ({"users": np.array([True, False, True])}, "got a boolean mask"),
        ({"users": [True, False, True]}, "got a boolean mask"),
        ({"users": torch.tensor([0.0, 1.9])}, "users must be whole numbers, got float32"),
        ({"users": [0, 1.9]}, "users must be whole numbers, got float64"),
        ({"users": 1}, "users must be a tensor, a list or an array of whole numbers, got int"),
        ({"users": {1, 2}}, "got set"),
        ({"test": pd.DataFrame({"user_id": [1]})}, "test must be Interactions, got DataFrame; make them"),
        ({"seen": torch.zeros(3, 5)}, "seen must be Interactions, got Tensor"),
        ({"model": Constant}, "must be a fitted one, got the class Constant"),
    ],
)
def test_evaluate_names_what_is_of_another_kind(change: dict[str, Any], message: str) -> None:
    test = torch.tensor([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]).bool()
    for function in (evaluate, sampled_evaluate):
        arguments = {"model": Constant(5), "test": events(test), "k": 2} | change
        arguments |= {} if function is evaluate else {"n_negatives": 2}
        with pytest.raises(TypeError, match=message):
            function(arguments.pop("model"), arguments.pop("test"), **arguments)


@pytest.mark.parametrize(
    "users", [[2, 0, 2], (0, 2), np.array([2, 0]), pd.Series([0, 2]), torch.tensor([0, 2], dtype=torch.int32)]
)
def test_users_are_a_tensor_a_list_or_an_array(users: Any) -> None:
    scores, test, _ = problem(1, 4, 9)
    test[:, 0] = True
    expected = evaluate(Table(scores), events(test), k=3, users=torch.tensor([0, 2]))
    assert expected.users.tolist() == [0, 2]
    found = evaluate(Table(scores), events(test), k=3, users=users)
    assert torch.equal(found.users, expected.users)
    assert found.metrics == expected.metrics
    sampled = sampled_evaluate(Table(scores), events(test), k=3, n_negatives=3, users=users)
    assert torch.equal(sampled.users, expected.users)


def test_whole_numbers_may_be_numpys() -> None:
    scores, test, seen = problem(1, 6, 12)
    data = {"test": events(test), "seen": events(seen), "progress": False}
    expected = evaluate(Table(scores), k=[2, 5], seed=3, batch_size=2, **data)
    for k in (np.array([5, 2]), [np.int64(2), np.int32(5)], (5, 2, 2), range(2, 6, 3)):
        found = evaluate(Table(scores), k=k, seed=np.int64(3), batch_size=np.int16(2), **data)
        assert found.metrics == expected.metrics
    assert evaluate(Table(scores), k=np.int64(5), **data).metrics.keys() <= expected.metrics.keys()


def test_scores_and_features_may_be_arrays() -> None:
    scores, test, seen = problem(1, 6, 12)
    data = {"test": events(test), "seen": events(seen), "k": 3, "metrics": ["ndcg", "auc", "diversity"]}
    expected = evaluate(Table(scores), item_features=scores.T, **data)
    before = scores.numpy().copy()
    before.flags.writeable = False

    class Arrays(Constant):
        """Scores are what ``table`` makes of the users, in the types that numpy has."""

        def __init__(self, table: Callable[[Tensor], Any]) -> None:
            super().__init__(12)
            self.score = table

    tables = (
        lambda users: before[users.numpy()],
        lambda users: before[users.numpy()].astype(np.float64),
        lambda users: before[: int(users[-1]) + 1][-len(users) :],  # a view that must not be written to
        lambda users: before[::-1][::-1][users.numpy()],
        lambda users: np.asfortranarray(before[users.numpy()]),
    )
    for table in tables:
        found = evaluate(Arrays(table), item_features=scores.T.numpy(), batch_size=1, **data)
        assert torch.equal(found.items, expected.items)
        assert found.metrics == expected.metrics
    frame = pd.DataFrame(scores.T.numpy())
    assert evaluate(Table(scores), item_features=frame, **data).metrics == expected.metrics
    assert evaluate(Table(scores), item_features=scores.T.tolist(), **data).metrics == expected.metrics


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda users: np.zeros((len(users), 5), dtype=np.int64), "got an array of int64"),
        (lambda users: [[0.0] * 5] * len(users), "got list"),
        (lambda users: None, "got NoneType"),
        (lambda users: pd.DataFrame(np.zeros((len(users), 5))), "got DataFrame"),
    ],
)
def test_scores_of_another_kind_are_refused(score: Callable[[Tensor], Any], message: str) -> None:
    model = Constant(5)
    model.score = score  # type: ignore[method-assign]
    with pytest.raises(TypeError, match=f"model.score must return a tensor or an array of real.*{message}"):
        evaluate(model, events(torch.eye(2, 5).bool()), k=2)


def test_features_of_another_kind_are_refused() -> None:
    for features in ("text", [["a", "b"]] * 5, {"a": 1}):
        with pytest.raises(TypeError, match="item_features must be a tensor or an array of numbers"):
            evaluate(Constant(5), events(torch.eye(2, 5).bool()), k=2, item_features=features)  # type: ignore[arg-type]


def test_a_model_that_recommends_nothing_to_anybody() -> None:
    test = torch.eye(3, 5).bool()
    silent = Table(torch.full((3, 5), -torch.inf))
    data = {"seen": events(torch.eye(3, 5).bool().roll(1, 1)), "item_features": torch.ones(5, 2)}
    report = evaluate(silent, events(test), k=2, **data)
    assert (report.items == -1).all()
    assert math.isnan(report.metrics["gini@2"])  # there are no shares to be unequal
    for name in ("ndcg", "recall", "hit_rate", "precision", "mrr", "map", "coverage", "novelty", "diversity"):
        assert report.metrics[f"{name}@2"] == 0
    assert "gini@2       nan\n" in repr(report)
    assert "<td>nan</td>" in report._repr_html_()
    assert f"{report.of('gini@2'):.3f}" == "nan"
    average = mean_report([report, report])
    assert math.isnan(average.metrics["gini@2"])
    assert "mean of 2 seeds" in repr(average)


def test_data_sets_read_apart_are_refused() -> None:
    """Both count 3 users and 5 items, but the numbers stand for others."""
    test, seen = events(torch.eye(3, 5).bool()), events(torch.eye(3, 5).bool().roll(1, 1))
    other_users = renamed(seen, user_ids=[0, 7, 2])
    other_items = renamed(seen, item_ids=["0", "1", "2", "3", "4"])
    for function in (evaluate, sampled_evaluate):
        options = {"k": 2} | ({} if function is evaluate else {"n_negatives": 2})
        with pytest.raises(ValueError, match="user 1 is 1 in the first and 7 in the second"):
            function(Constant(5), test, seen=other_users, **options)
        with pytest.raises(ValueError, match="item 0 is 0 in the first and '0' in the second"):
            function(Constant(5), test, seen=other_items, **options)
        # Equal ids are enough; they need not be the same object.
        function(Constant(5), test, seen=renamed(seen, user_ids=range(3)), **options)


@pytest.mark.parametrize(
    "score",
    [
        lambda users: torch.zeros(len(users), 4),
        lambda users: torch.zeros(5),
        lambda users: torch.zeros(len(users), 5, dtype=torch.int64),
    ],
)
def test_evaluate_refuses_scores_of_another_shape(score: Callable[[Tensor], Tensor]) -> None:
    model = Constant(5)
    model.score = score  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"must return \(2, 5\) real scores"):
        evaluate(model, events(torch.eye(2, 5).bool()), k=2)


def test_nan_scores_name_the_user() -> None:
    scores = torch.zeros(4, 5)
    scores[2, 3] = torch.nan
    with pytest.raises(ValueError, match="user 2 are NaN"):
        evaluate(Table(scores), events(torch.eye(4, 5).bool()), k=2, batch_size=2)


# ------------------------------------------------------------------------------------------- surroundings


class Trained(nn.Module):
    """A module with dropout and with a part that is frozen in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))
        self.dropout, self.frozen = nn.Dropout(0.5), nn.Dropout(0.5).eval()
        self.n_items = 5

    def score(self, users: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return self.dropout(self.weight).expand(len(users), 5)


def test_modules_are_evaluated_without_dropout_and_left_as_they_were() -> None:
    model = Trained()
    report = evaluate(model, events(torch.eye(3, 5).bool()), k=2, metrics=["auc"])
    assert report.metrics["auc"] == 0.5
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)


def test_nothing_is_made_on_the_default_device() -> None:
    scores, test, seen = problem(0, 12, 25)
    data = events(test), events(seen)

    def everything() -> list[object]:
        full = evaluate(Table(scores % 4), data[0], seen=data[1], item_features=scores.T)
        sampled = sampled_evaluate(
            Table(scores % 4), data[0], seen=data[1], n_negatives=5, metrics=["ndcg", "auc"]
        )
        return [full.metrics, full.items.tolist(), sampled.metrics]

    expected = everything()
    with torch.device("meta"):
        assert everything() == expected


def test_users_are_made_where_the_model_is() -> None:
    module, model = nn.Linear(2, 2, device="meta"), Constant(5)
    assert [ranking._device(x).type for x in (module, model)] == ["meta", "cpu"]
    model.device = torch.device("meta")  # type: ignore[attr-defined]
    assert ranking._device(model).type == "meta"


def test_progress_is_silent_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(Constant(5), events(torch.eye(3, 5).bool()), k=2)
    assert capsys.readouterr() == ("", "")


# -------------------------------------------------------------------------------------------------- reports


def report_of(seed: int, k: int = 5) -> Report:
    _, test, seen = problem(0, 60, 25)
    scores, _, _ = problem(seed, 60, 25)
    return evaluate(Table(scores), events(test), seen=events(seen), k=k)


def test_report_interval_and_frame() -> None:
    start = time.perf_counter()
    report = report_of(0)
    assert 0 < report.seconds <= time.perf_counter() - start
    low, high = report.interval("ndcg@5")
    assert low < report.metrics["ndcg@5"] < high
    narrow = report.interval("ndcg@5", level=0.5)
    assert low < narrow[0] < narrow[1] < high
    with pytest.raises(ValueError, match=r"no per-user values of 'gini@5'; there are ndcg@5"):
        report.interval("gini@5")
    frame = report.to_frame()
    assert list(frame.columns) == ["value", "low", "high"]
    assert frame["value"].to_dict() == report.metrics
    assert frame.loc["ndcg@5", "low"] == low
    assert math.isnan(frame.loc["gini@5", "low"])


def test_report_is_readable_and_escaped() -> None:
    report = report_of(0)
    text = repr(report)
    assert f"{report.n} users" in text
    assert f"ndcg@5       {report.metrics['ndcg@5']:.4f}  [" in text
    assert "nan" not in text + report._repr_html_()
    report.protocol = "<script>"
    report.metrics["<b>"] = 0.5
    assert "<script>" not in report._repr_html_()
    assert "<b>" not in report._repr_html_()
    assert "&lt;b&gt;" in report._repr_html_()


def test_metrics_come_in_the_order_asked_for() -> None:
    _, test, _ = problem(0, 9, 25)
    report = evaluate(Constant(25), events(test), k=[10, 5], metrics=["gini", "auc", "mrr"])
    assert list(report.metrics) == ["gini@5", "gini@10", "auc", "mrr@5", "mrr@10"]
    assert report.items.shape == (report.n, 10)


def test_compare_is_paired() -> None:
    a, b = report_of(0), report_of(1)
    result = compare(a, b, "ndcg@5")
    difference = a.per_user["ndcg@5"] - b.per_user["ndcg@5"]
    assert result.mean == pytest.approx(difference.mean().item())
    assert result.std == pytest.approx(difference.std().item())
    assert result.low < result.mean < result.high
    assert result.n == a.n
    back = compare(b, a, "ndcg@5")
    assert back.mean == pytest.approx(-result.mean)
    assert back.p_value == result.p_value
    assert compare(a, a, "ndcg@5")[:4] == (0, 0, 0, 1)
    assert f"p = {result.p_value:.4f}" in repr(result)


def test_level_and_seed_of_a_comparison_are_those_asked_for() -> None:
    a, b = report_of(0), report_of(1)
    difference = a.per_user["ndcg@5"] - b.per_user["ndcg@5"]
    for level, seed in ((0.95, 0), (0.5, 0), (0.95, 7)):
        found = compare(a, b, "ndcg@5", level=level, seed=seed)
        assert found[:4] == metrics.paired_test(difference, level, seed=seed)
    narrow, wide = (compare(a, b, "ndcg@5", level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_spread_of_a_comparison_needs_two_users() -> None:
    two = compare(by_hand(x=[1.0, 0.0]), by_hand(x=[0.0, 0.0]), "x")
    assert two.std == pytest.approx(0.5**0.5)
    assert math.isnan(compare(by_hand(x=[1.0]), by_hand(x=[0.0]), "x").std)


def test_compare_refuses_other_users_items_metrics_and_protocols() -> None:
    a = report_of(0)
    _, test, seen = problem(0, 60, 25)
    fewer = evaluate(Constant(25), events(test), seen=events(seen), k=5, users=a.users[1:])
    with pytest.raises(ValueError, match="different users or test items"):
        compare(a, fewer, "ndcg@5")
    one_each = events(torch.eye(4, 25).bool())
    first, last = (
        evaluate(Constant(25), one_each, k=5, users=torch.arange(4)[part]) for part in (slice(3), slice(1, 4))
    )
    with pytest.raises(ValueError, match="different users or test items"):
        compare(first, last, "ndcg@5")
    other_seen = evaluate(Constant(25), events(test), k=5, users=a.users)
    with pytest.raises(ValueError, match="different users or test items"):
        compare(a, other_seen, "ndcg@5")
    with pytest.raises(ValueError, match="no per-user values of 'ndcg@10'"):
        compare(a, a, "ndcg@10")
    sampled = sampled_evaluate(Constant(25), events(test), seen=events(seen), n_negatives=5, k=5)
    with pytest.raises(ValueError, match="different protocols"):
        compare(a, sampled, "ndcg@5")


ONE_EACH = events(torch.eye(4, 25).bool())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        # As many items for each user, but others.
        ({"test": events(torch.eye(4, 25).bool().roll(3, 1))}, "as many items .* but not the same ones"),
        ({"test": renamed(ONE_EACH, item_ids=range(1, 26))}, "the ids of their users or items are not the"),
        ({"test": renamed(ONE_EACH, user_ids=list("abcd"))}, "the ids of their users or items are not the"),
        ({"seen": events(torch.eye(4, 25).bool().roll(9, 1))}, "`seen` was not the same"),
        ({"seen": None}, "`seen` was not the same"),
        ({"users": [0, 1, 2]}, "4 and 3 users, of whom 3 are in both"),
        (
            {"test": events(torch.eye(4, 25).bool() | torch.eye(4, 25).bool().roll(3, 1))},
            "user 0 has 1 and 2",
        ),
    ],
)
@pytest.mark.parametrize("sampled", [False, True])
def test_reports_over_something_else_are_not_comparable(
    other: dict[str, Any], message: str, sampled: bool
) -> None:
    def report(**change: Any) -> Report:
        arguments = {"test": ONE_EACH, "seen": events(torch.eye(4, 25).bool().roll(8, 1))} | change
        if sampled:
            return sampled_evaluate(Constant(25), n_negatives=5, k=5, **arguments)
        return evaluate(Constant(25), k=5, **arguments)

    a = report()
    seen = other.get("seen", events(torch.eye(4, 25).bool().roll(8, 1)))
    if "test" in other and seen is not None:  # ids must fit within an evaluation
        seen = replace(seen, user_ids=other["test"].user_ids, item_ids=other["test"].item_ids)
    b = report(**other | {"seen": seen})
    with pytest.raises(ValueError, match=f"over different users or test items: .*{message}.*Evaluate both"):
        compare(a, b, "ndcg@5")
    with pytest.raises(ValueError, match=message):
        mean_report([a, b])
    assert compare(a, report(), "ndcg@5").mean == 0


def test_reports_over_the_same_data_are_comparable_however_they_were_made() -> None:
    _, test, seen = problem(0, 9, 25)
    a = evaluate(Constant(25), events(test), seen=events(seen), k=5)
    again = renamed(events(test), user_ids=pd.Index(range(9), dtype=object))
    b = evaluate(Constant(25), again, seen=events(seen | torch.zeros_like(seen)), k=5, users=range(9))
    assert compare(a, b, "ndcg@5")[:4] == (0, 0, 0, 1)
    # No `seen` and one without events exclude the same.
    nothing = events(torch.zeros_like(seen))
    c, d = (evaluate(Constant(25), events(test), seen=x, k=5, metrics=["ndcg"]) for x in (None, nothing))
    assert mean_report([c, d]).metrics == c.metrics
    # An average is over what its parts are over.
    with pytest.raises(ValueError, match="different users or test items"):
        compare(mean_report([c, d]), a, "ndcg@5")
    moved = evaluate(Constant(25), events(test.roll(1, 1)), k=5, metrics=["ndcg"])
    assert torch.equal(moved.n_relevant, c.n_relevant)
    with pytest.raises(ValueError, match="not the same ones"):
        compare(mean_report([c, d]), moved, "ndcg@5")


def test_random_candidates_are_comparable_where_they_were_drawn_alike() -> None:
    test = events(torch.eye(4, 25).bool())
    a, b, c = (sampled_evaluate(Constant(25), test, n_negatives=5, k=5, seed=seed) for seed in (0, 1, 0))
    with pytest.raises(ValueError, match="candidates were drawn with seed 0 and seed 1"):
        compare(a, b, "ndcg@5")
    assert compare(a, c, "ndcg@5").mean == 0
    full = [evaluate(Constant(25), test, k=5, seed=seed) for seed in (0, 1)]
    assert compare(*full, "ndcg@5").n == 4  # in a full ranking the seed only breaks ties


def by_hand(**values: Any) -> Report:
    """A report that no evaluation made."""
    n = len(next(iter(values.values())))
    return Report(
        metrics={name: float(torch.tensor(x).mean()) for name, x in values.items()},
        per_user={name: torch.tensor(x).double() for name, x in values.items()},
        users=torch.arange(n),
        n_relevant=torch.ones(n, dtype=torch.int64),
        items=torch.zeros(n, 1, dtype=torch.int64),
        seconds=0.0,
        protocol="full ranking",
    )


def test_reports_made_by_hand_are_compared_by_users_and_counts() -> None:
    a, b = by_hand(x=[1.0, 0.0, 1.0]), by_hand(x=[0.0, 0.0, 1.0])
    assert compare(a, b, "x").mean == pytest.approx(1 / 3)
    made = evaluate(Constant(5), events(torch.eye(3, 5).bool()), k=2)
    made.per_user["x"] = torch.zeros(3, dtype=torch.float64)
    assert compare(a, made, "x").n == compare(made, a, "x").n == 3
    with pytest.raises(ValueError, match="3 and 2 users, of whom 2 are in both"):
        compare(a, by_hand(x=[1.0, 0.0]), "x")
    other = by_hand(x=[1.0, 0.0, 1.0])
    other.n_relevant[1] = 4
    with pytest.raises(ValueError, match="user 1 has 1 and 4 items to find"):
        compare(a, other, "x")


@pytest.mark.parametrize(("seed", "error"), [(None, TypeError), (0.5, TypeError), (-1, ValueError)])
def test_compare_needs_a_seed(seed: Any, error: type[Exception]) -> None:
    a = by_hand(x=[1.0, 0.0, 1.0])
    with pytest.raises(error, match="seed must be"):
        compare(a, a, "x", seed=seed)


def test_mean_report_averages_users_over_seeds() -> None:
    a, b = report_of(0), report_of(1)
    mean = mean_report([a, b])
    assert torch.allclose(mean.per_user["mrr@5"], (a.per_user["mrr@5"] + b.per_user["mrr@5"]) / 2)
    assert mean.metrics["mrr@5"] == pytest.approx(mean.per_user["mrr@5"].mean().item())
    assert mean.metrics["gini@5"] == pytest.approx((a.metrics["gini@5"] + b.metrics["gini@5"]) / 2)
    assert mean.items.shape == (2, a.n, 5)
    assert mean.n_seeds == 2
    assert mean.seconds == a.seconds + b.seconds
    assert "mean of 2 seeds" in repr(mean)
    assert compare(mean, a, "mrr@5").n == a.n
    with pytest.raises(ValueError, match="same metrics and cutoffs"):
        mean_report([a, report_of(1, k=6)])
    with pytest.raises(ValueError, match="at least one"):
        mean_report([])


def test_users_needed_gives_the_power_it_promises() -> None:
    n = users_needed(0.2, 0.03)
    assert n == 349  # ((1.95996 + 0.84162) 0.2 / 0.03)^2 = 348.8
    differences = 0.03 + 0.2 * torch.randn(4000, n, generator=generator(0))
    z = differences.mean(dim=1) / differences.std(dim=1) * math.sqrt(n)
    found = (z.abs() > 1.96).double().mean().item()
    assert found == pytest.approx(0.8, abs=0.025)
    assert users_needed(0.2, -0.03) == n
    assert users_needed(0.2, 0.03, power=0.9) > n > users_needed(0.2, 0.03, level=0.9)
    for wrong in ((0, 0.1), (0.1, 0), (math.nan, 0.1)):
        with pytest.raises(ValueError, match="positive difference_std"):
            users_needed(*wrong)


# ----------------------------------------------------------------------------------------- sampled ranking


@quick
@given(seed=seeds, n_negatives=st.integers(1, 25), batch_size=st.integers(1, 12))
def test_sampled_candidates_are_relevant_or_drawn(seed: int, n_negatives: int, batch_size: int) -> None:
    scores, test, seen = problem(seed, 12, 25)
    a = sampled_evaluate(
        Table(scores), events(test), seen=events(seen), n_negatives=n_negatives, k=25, seed=seed
    )
    b = sampled_evaluate(
        Constant(25),
        events(test),
        seen=events(seen),
        n_negatives=n_negatives,
        k=25,
        seed=seed,
        batch_size=batch_size,
    )
    for user, first, second in zip(a.users.tolist(), a.items, b.items, strict=True):
        candidates = set(first.tolist()) - {-1}
        assert candidates == set(second.tolist()) - {-1}  # the same for every model and batch
        relevant = set((test & ~seen)[user].nonzero().flatten().tolist())
        others = (~test & ~seen)[user].sum().item()
        assert relevant <= candidates
        assert not seen[user, list(candidates)].any()
        assert len(candidates) == len(relevant) + min(n_negatives, others)
        # Best first, as the model has it.
        listed = first[first >= 0]
        assert torch.equal(listed, listed[scores[user, listed].argsort(descending=True)])


def test_sampled_ranking_of_a_constant_model_earns_what_chance_earns() -> None:
    """The draw of candidates must not leak into how their ties are broken."""
    n_users, n_items = 8000, 60
    test = torch.zeros(n_users, n_items, dtype=torch.bool)
    test[:, 7] = True
    report = sampled_evaluate(Constant(n_items), events(test), n_negatives=19, k=5)
    assert within_chance(report.per_user["hit_rate@5"].sum().item(), n_users, 5 / 20)
    drawn = sampled_evaluate(Constant(n_items), events(test), n_negatives=19, k=20).items
    counts = drawn[drawn != 7].bincount(minlength=n_items)
    assert all(within_chance(c, n_users, 19 / 59) for i, c in enumerate(counts.tolist()) if i != 7)


def test_sampling_can_change_the_order_of_models() -> None:
    """One model finds half of the items at rank 1 and the others never, the other one has all at rank 40."""
    n_users, n_items = 400, 1000
    test = torch.zeros(n_users, n_items, dtype=torch.bool)
    test[:, 0] = True
    noise = torch.rand(n_users, n_items, generator=generator(0))
    sharp, blunt = noise.clone(), noise.clone()
    sharp[:, 0] = torch.tensor([2.0, -1.0]).repeat(n_users // 2)
    blunt[:, 0] = noise[:, 1:].kthvalue(n_items - 40, dim=1)[0]
    full = [evaluate(Table(s), events(test)).metrics["hit_rate@10"] for s in (sharp, blunt)]
    sampled = [sampled_evaluate(Table(s), events(test)).metrics["hit_rate@10"] for s in (sharp, blunt)]
    assert full == [0.5, 0]
    assert sampled[0] == 0.5
    assert sampled[1] > 0.9


def test_sampled_evaluate_refuses_what_makes_no_sense() -> None:
    test = events(torch.eye(3, 5).bool())
    with pytest.raises(ValueError, match="n_negatives must be between 1 and 5"):
        sampled_evaluate(Constant(5), test, n_negatives=6, k=2)
    with pytest.raises(ValueError, match="needs `seen`"):
        sampled_evaluate(Constant(5), test, n_negatives=2, k=2, metrics=["novelty"])


# ------------------------------------------------------------------- values and differences in sentences


@pytest.mark.parametrize(
    ("values", "spec", "text"),
    [
        ((0.165, 0.154, 0.176), ".3f", "0.165 [0.154, 0.176]"),
        ((0.165, 0.154, 0.176), "", "0.1650 [0.1540, 0.1760]"),
        ((0.165, 0.154, 0.176), "+.2f", "+0.17 [+0.15, +0.18]"),
        ((0.165, 0.154, 0.176), ".1%", "16.5% [15.4%, 17.6%]"),
        ((-0.5, -1.0, -0.00001), ".2f", "−0.50 [−1.00, 0.00]"),
        ((12345.6, 1234.5, 23456.7), ",.1f", "12,345.6 [1,234.5, 23,456.7]"),
        ((1e-10, -1e-10, 2e-10), ".1e", "1.0e−10 [−1.0e−10, 2.0e−10]"),
        ((0.25, math.nan, math.nan), ".3f", "0.250"),
        ((-0.25, math.nan, math.nan), ".3f", "−0.250"),
        ((math.nan, math.nan, math.nan), ".3f", "nan"),
    ],
)
def test_a_value_in_a_sentence(values: tuple[float, float, float], spec: str, text: str) -> None:
    found = format(Estimate(*values), spec)
    assert found.replace("\N{NO-BREAK SPACE}", " ") == text
    assert " " not in found  # no line breaks within
    assert "-" not in found


def test_a_report_in_a_sentence() -> None:
    report = report_of(0)
    low, high = report.interval("ndcg@5")
    value = report.metrics["ndcg@5"]
    assert report.of("ndcg@5") == (value, low, high)
    text = f"{value:.3f}\N{NO-BREAK SPACE}[{low:.3f},\N{NO-BREAK SPACE}{high:.3f}]"
    assert f"{report.of('ndcg@5'):.3f}" == text
    assert f"{report:.3f}" == text  # the first metric
    assert f"{report}" == str(report)  # and without a format the whole
    assert f"{report.of('recall@5'):.3f}" != text
    assert f"{report.of('coverage@5'):.3f}" == f"{report.metrics['coverage@5']:.3f}"
    with pytest.raises(ValueError, match="no metric 'ndcg@10'; there are ndcg@5, recall@5"):
        report.of("ndcg@10")


@pytest.mark.parametrize("values", [[0.5, math.nan], [math.inf, 1.0], [math.nan, math.nan]])
def test_a_report_can_always_be_printed(values: list[float]) -> None:
    report = by_hand(good=[0.0, 1.0], bad=values)
    mean = float(torch.tensor(values).mean())
    assert repr(report).splitlines()[1:] == ["good  0.5000  [0.0000, 1.0000]", f"bad   {mean:.4f}"]
    assert f"<td>{mean:.4f}</td><td></td>" in report._repr_html_()
    assert f"{report.of('bad'):.2f}" == f"{mean:.2f}"
    with pytest.raises(ValueError, match="finite"):
        report.interval("bad")


def test_an_empty_report_can_be_printed() -> None:
    report = replace(by_hand(x=[1.0]), metrics={}, per_user={})
    assert repr(report).startswith("Report: 1 users")
    nobody = by_hand(x=[1.0])
    nobody.per_user["x"], nobody.users = torch.zeros(0).double(), torch.zeros(0)
    assert repr(nobody).endswith("\nx  1.0000")


def gap(mean: float, low: float, high: float) -> Comparison:
    return Comparison(mean, low, high, p_value=0.5, n=10, std=1.0)


@pytest.mark.parametrize(
    ("values", "spec", "text"),
    [
        ((0.012, 0.006, 0.018), ".3f", "+0.012 [+0.006, +0.018]"),
        ((-0.012, -0.018, -0.006), ".3f", "−0.012 [−0.018, −0.006]"),
        ((0.0, -0.00004, 0.00004), ".3f", "+0.000 [+0.000, +0.000]"),
        ((-0.5, -1.0, 0.25), "+.1f", "−0.5 [−1.0, +0.2]"),
        ((-0.015, -0.02, 0.01), ".1%", "−1.5% [−2.0%, +1.0%]"),
        ((-0.0001, -0.0002, 0.0001), ".1%", "+0.0% [+0.0%, +0.0%]"),
        ((0.01234, 0.0, 0.02), "", "+0.0123 [+0.0000, +0.0200]"),
    ],
)
def test_a_difference_in_a_sentence(values: tuple[float, float, float], spec: str, text: str) -> None:
    found = format(gap(*values), spec)
    assert found.replace("\N{NO-BREAK SPACE}", " ") == text
    assert " " not in found  # no line breaks within
    assert "-" not in found


def test_words_follow_the_interval() -> None:
    words = {"above": "ahead", "below": "behind", "otherwise": "not told apart"}
    assert gap(0.1, 0.001, 0.2).says(**words) == "ahead"
    assert gap(-0.1, -0.2, -0.001).says(**words) == "behind"
    for low, high in ((-0.1, 0.3), (0.0, 0.2), (-0.2, 0.0)):
        assert gap(0.1, low, high).says(**words) == "not told apart"
        assert not gap(0.1, low, high).clear
    assert gap(0.1, 0.001, 0.2).clear
    assert gap(-0.1, -0.2, -0.001).clear


def test_a_model_of_other_ids_is_refused() -> None:
    from recsys_lib.models import Popularity

    frame = pd.DataFrame({"user_id": [0, 1, 2], "item_id": [0, 1, 2]})
    ours = Interactions.from_frame(frame)
    theirs = Interactions.from_frame(frame.assign(item_id=["a", "b", "c"]))
    model = Popularity().fit(ours)
    assert evaluate(model, ours, k=1).n == 3
    with pytest.raises(ValueError, match=r"of other data: .*item 0 is 0 in the first and 'a' in the second"):
        evaluate(model, theirs, k=1)
    with pytest.raises(ValueError, match="of other data"):
        sampled_evaluate(model, theirs, k=1, n_negatives=1)


def test_two_ways_to_hold_out_can_be_compared_user_by_user() -> None:
    scores, test, seen = problem(0, 12, 25)
    a = evaluate(Table(scores), events(test), seen=events(seen))
    b = evaluate(Table(scores), events(test.roll(1, dims=1)), users=a.users)
    shared = torch.isin(a.users, b.users)
    a = evaluate(Table(scores), events(test), seen=events(seen), users=a.users[shared])
    b = evaluate(Table(scores), events(test.roll(1, dims=1)), users=a.users)
    with pytest.raises(ValueError, match="different users or test items"):
        compare(a, b, "ndcg@10")
    gap = compare(a, b, "ndcg@10", same_items=False)
    assert gap.mean == pytest.approx((a.per_user["ndcg@10"] - b.per_user["ndcg@10"]).mean().item())
    fewer = evaluate(Table(scores), events(test), users=a.users[:-1])
    with pytest.raises(ValueError, match="users, of whom"):
        compare(a, fewer, "ndcg@10", same_items=False)
