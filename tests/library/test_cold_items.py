"""The experiment on new items: its draws, its values and intervals against doing the same by hand."""

import math
from functools import partial

import matplotlib as mpl
import pandas as pd
import pytest
import torch

from recsys_lib.cold_items import ColdItems
from recsys_lib.data import Interactions, cold_item_split
from recsys_lib.draws import Draws, over_draws
from recsys_lib.evaluation import evaluate
from recsys_lib.models import EASE, TfidfContent

mpl.use("agg")

N_USERS, N_ITEMS = 60, 80


@pytest.fixture(scope="module")
def events() -> Interactions:
    """Two crowds: even users take even items, odd users odd ones."""
    generator = torch.Generator().manual_seed(0)
    rows = [
        (user, 2 * int(half) + user % 2, place)
        for user in range(N_USERS)
        for place, half in enumerate(torch.randperm(N_ITEMS // 2, generator=generator)[:15])
    ]
    rows += [(user, item, 99) for item in range(N_ITEMS) for user in [item % 2]]  # every item has an event
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).drop_duplicates(
        ["user_id", "item_id"]
    )
    return Interactions.from_frame(frame)


TEXTS = [("even" if item % 2 == 0 else "odd") + f" w{item}" for item in range(N_ITEMS)]


class OneRow:
    """Scores for everybody."""

    def __init__(self, scores):
        self.scores, self.n_items = scores, len(scores)

    def score(self, users):
        return self.scores.expand(len(users), -1)


def by_hand(scores, test, users=None):
    """NDCG@10 among the test items, each user for itself."""
    items, values = test.items.unique(), []
    for user in test.users.unique().tolist() if users is None else users:
        relevant = set(test.items[test.users == user].tolist())
        ranked = sorted(items.tolist(), key=lambda i: -float(scores[i]))[:10]
        gain = sum(1 / math.log2(r + 2) for r, item in enumerate(ranked) if item in relevant)
        values.append(gain / sum(1 / math.log2(r + 2) for r in range(min(10, len(relevant)))))
    return sum(values) / len(values)


# ------------------------------------------------------------------------------------------ intervals


def test_the_draws_are_cold_item_splits(events):
    cold = ColdItems(events, n_draws=3, share=0.1, seed=5)
    assert len(cold) == len(list(cold)) == 3
    for number, draw in enumerate(cold):
        split = cold_item_split(events, 0.1, seed=5 + number)
        assert torch.equal(draw.held_out.items, split.test.items)
        assert torch.equal(draw.events.items, split.history.items)
        assert torch.equal(draw.items, split.test.items.unique())
        assert len(draw.items) == N_ITEMS // 10
        assert not torch.isin(draw.events.items, draw.items).any()
    chosen_on = cold.draw(0, on_validation=True)
    split = cold_item_split(events, 0.1, seed=5)
    assert torch.equal(chosen_on.held_out.items, split.validation.items)
    assert torch.equal(chosen_on.events.items, split.train.items)
    with pytest.raises(IndexError, match="draws 0 to 2"):
        cold.draw(3)


def test_a_report_is_the_one_computed_by_hand(events):
    cold = ColdItems(events, n_draws=2, seed=1)
    scores = torch.rand(N_ITEMS, generator=torch.Generator().manual_seed(3))
    draw = cold.draw(1)
    report = cold.evaluate(OneRow(scores), draw)
    assert report.metrics["ndcg@10"] == pytest.approx(by_hand(scores, draw.held_out))
    assert torch.isin(report.items[report.items >= 0], draw.items).all()
    for given in (scores, scores.expand(N_USERS, -1)):  # scores in place of a model
        assert cold.evaluate(given, 1).metrics == report.metrics
    some = ColdItems(events, n_draws=2, seed=1, every=4)
    users = draw.held_out.users.unique()[::4].tolist()
    assert some.evaluate(scores, 1).users.tolist() == users
    assert some.evaluate(scores, 1).metrics["ndcg@10"] == pytest.approx(by_hand(scores, draw.held_out, users))


def test_the_ranking_is_among_the_new_items_alone(events):
    """A model that would put known items first is not held to account for them."""
    cold = ColdItems(events, n_draws=1)
    draw = cold.draw(0)
    truth = draw.held_out.matrix().to_dense()
    truth[:, draw.events.items] += 9
    assert cold.evaluate(truth, draw).metrics["ndcg@10"] == 1.0
    assert evaluate_all(truth, draw) < 0.5


def evaluate_all(scores, draw):
    class Rows(OneRow):
        def score(self, users):
            return scores[users]

    return evaluate(Rows(scores[0]), draw.held_out, progress=False).metrics["ndcg@10"]


# ------------------------------------------------------------------------------------- the experiment


@pytest.fixture(scope="module")
def done(events) -> ColdItems:
    cold = ColdItems(events, n_draws=4, seed=2, device="cpu")
    cold.add("text", partial(TfidfContent, TEXTS), {"recency": [0.0, 0.5]}, min_count=2)
    cold.add("ids", EASE, l2=5.0)
    return cold.add_controls().run()


def test_it_is_what_one_would_do_by_hand(done, events):
    split = cold_item_split(events, 0.2, seed=2)
    tried = {}
    for recency in (0.0, 0.5):
        model = TfidfContent(TEXTS, recency=recency, min_count=2).fit(split.train)
        scores = model.score(torch.arange(N_USERS)).clone()
        scores[:, ~torch.isin(torch.arange(N_ITEMS), split.validation.items)] = -torch.inf
        tried[recency] = evaluate_all(scores, done.draw(0, on_validation=True))
    assert done["text"].trials["ndcg@10"].tolist() == pytest.approx(list(tried.values()))
    best = max(tried, key=tried.get)
    assert done["text"].best == {"min_count": 2, "recency": best}

    for number in range(4):
        split = cold_item_split(events, 0.2, seed=2 + number)
        model = TfidfContent(TEXTS, recency=best, min_count=2).fit(split.history)
        report = done.evaluate(model, number)
        assert done.draws.frame["text"][number] == report.metrics["ndcg@10"]
    pairs = zip(done.draws.frame["text"], done.draws.frame["ids"], strict=True)
    assert done.compare("text", "ids") == over_draws([a - b for a, b in pairs])
    assert done.mean("text") == over_draws(done.draws.frame["text"])


def test_what_is_planted_is_found(done):
    assert done.compare("text", "random order").low > 0.1
    assert not done.compare("ids", "random order").low > 0.1  # ids know nothing of new items
    assert done.draws.ranked()[0] == "text"


def test_the_choice_never_sees_a_test_item(events, monkeypatch):
    asked = []
    cold = ColdItems(events, n_draws=2)

    def look(draw, strength):
        asked.append((draw.on_validation, draw.number, strength))
        return strength * draw.held_out.item_counts().float()

    cold.add("looks", look, {"strength": [-1.0, 1.0]}).run()
    assert asked == [(True, 0, -1.0), (True, 0, 1.0), (False, 0, 1.0), (False, 1, 1.0)]
    assert cold.edges() == {"looks": ["strength=1.0"]}
    assert "end of grid" in cold.table()["chosen"]["looks"]


def test_an_inner_value_is_no_edge(events):
    cold = ColdItems(events, n_draws=1)
    cold.add("peak", lambda draw, x: -abs(x) * draw.held_out.item_counts().float(), {"x": [-1, 0, 1]})
    cold.add("down", lambda draw, x: torch.zeros(N_ITEMS), {"x": [3]})
    cold.run()
    assert cold.edges() in ({}, {"peak": ["x=0"]})  # a tie of -1 and 1 is beaten by 0 or is at an edge
    assert "down" not in cold.edges()


def test_what_was_measured_is_kept(events):
    built = []
    cold = ColdItems(events, n_draws=2)
    count = lambda draw: built.append(draw.number) or torch.zeros(N_ITEMS)  # noqa: E731
    cold.run({"once": count})
    cold.add_controls().run()
    assert built == [0, 1]
    assert set(cold.draws.frame) == {"once", "random order", "hidden likes"}
    assert cold.build("once", 1).shape == (N_ITEMS,)


def test_tables_and_figures(done):
    table = done.table(against="random order")
    assert list(table.index) == done.draws.ranked()
    assert table.loc["text", "ndcg@10"] == done.mean("text").mean
    assert table.loc["text", "minus random order"] == done.compare("text", "random order").mean
    assert table.loc["ids", "lowest draw"] == done.draws.frame["ids"].min()
    assert table.loc["text", "on validation"] == done["text"].trials["ndcg@10"].max()
    ax = done.plot()
    assert [label.get_text() for label in ax.get_yticklabels()] == done.draws.ranked()
    assert ax.get_xlabel() == "NDCG@10"
    thin = [line for line in ax.lines if len(line.get_xdata()) == 4]
    assert len(thin) == 4  # one a draw, through all four models
    assert list(thin[0].get_xdata()) == [done.draws.frame[name][0] for name in done.draws.ranked()]
    again = Draws(done.draws.frame.to_dict("list"))  # as a record would give them
    assert again.compare("text", "ids") == done.compare("text", "ids")
    assert again.spread("text", "ids")["draw"] > 0


# --------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda draw: torch.zeros(3), r"'bad' failed on draw 0 with no options.*must be \(80,\) or"),
        (lambda draw: torch.full((N_ITEMS,), math.nan), "'bad' failed on draw 0.*NaN"),
        (lambda draw: OneRow(torch.zeros(N_ITEMS - 1)), "'bad' failed on draw 0.*79 items"),
        (lambda draw: 1 / 0, "'bad' failed on draw 0.*ZeroDivisionError"),
        (lambda draw: OneRow, "'bad' failed on draw 0.*class OneRow itself"),
        (lambda draw: "text", r"'bad' failed on draw 0.*score.*which str has not"),
    ],
)
def test_a_broken_model_is_named(events, build, message):
    with pytest.raises(RuntimeError, match=message):
        ColdItems(events, n_draws=1).run({"bad": build})


def test_a_broken_trial_names_its_options(events):
    cold = ColdItems(events, n_draws=1).add("bad", EASE, {"l2": [1.0, -1.0]})
    with pytest.raises(RuntimeError, match=r"'bad' failed on the validation items with \{'l2': -1.0\}"):
        cold.run()


def test_wrong_arguments_are_named(events):
    cold = ColdItems(events, n_draws=2).add("a", EASE)
    with pytest.raises(ValueError, match="contender 'a' already"):
        cold.add("a", EASE)
    with pytest.raises(TypeError, match="function of a draw, got int"):
        cold.add("b", 3)
    with pytest.raises(ValueError, match="no value to try for l2"):
        cold.add("b", EASE, {"l2": []})
    with pytest.raises(ValueError, match="both fixed and in the space"):
        cold.add("b", EASE, {"l2": [1.0]}, l2=2.0)
    with pytest.raises(KeyError, match="no contender 'c'; there are a"):
        cold.run(["c"])
    with pytest.raises(RuntimeError, match="nothing has been measured"):
        cold.table()
    with pytest.raises(RuntimeError, match="'a' has not been measured"):
        cold.compare("a", "a")
    with pytest.raises(ValueError, match=r"between 0 and 0\.5"):
        ColdItems(events, share=0.6)
    with pytest.raises(ValueError, match="n_draws must be at least 1"):
        ColdItems(events, n_draws=0)
    with pytest.raises(TypeError, match="every must be a whole number"):
        ColdItems(events, every=1.5)
