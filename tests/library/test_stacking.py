"""A blend and a ranker on several models: right weights, lists that do not know the answer, files."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize

import recsys_lib
from recsys_lib.data import Interactions, leave_last_out, merge
from recsys_lib.evaluation import evaluate
from recsys_lib.models import (
    EASE,
    Blend,
    ItemKNN,
    MarkovChain,
    Popularity,
    Recommender,
    SASRec,
    StackedLinear,
    StackedNetwork,
    UserKNN,
)
from recsys_lib.models.blend import standardized
from recsys_lib.models.core.options import option
from recsys_lib.models.core.pair_tables import CANDIDATE_FEATURES
from recsys_lib.models.stacking import MODEL_FEATURES
from recsys_lib.pipeline import Pipeline

N_USERS, N_ITEMS = 60, 40


class Oracle(Recommender):
    """Scores by noise, and by what the held-out events are, as far as it is told to know them."""

    answers = None  # set by the tests: Interactions
    knows: float = option("how much the answers add to the noise", default=0.0)
    scale: float = option("of all scores", default=1.0)
    seed: int = option("of the noise", default=0)

    def _fit(self, interactions, validation, progress):
        generator = torch.Generator().manual_seed(self.seed)
        scores = torch.randn(self.n_users, self.n_items, generator=generator)  # (U, I)
        answers = type(self).answers
        scores[answers.users, answers.items] += self.knows
        self._keep("scores", self.scale * scores)
        self.saw = interactions

    def _score(self, users):
        return self.scores[users]


class Memory(Recommender):
    """Scores what it was fitted on: knows the answers exactly if it has seen them."""

    def _fit(self, interactions, validation, progress):
        scores = torch.zeros(self.n_users, self.n_items)  # (U, I)
        scores[interactions.users, interactions.items] = 1.0
        scores += 1e-3 * torch.rand(self.n_users, self.n_items, generator=torch.Generator().manual_seed(3))
        self._keep("scores", scores)

    def _score(self, users):
        return self.scores[users]


@pytest.fixture
def split():
    rng = np.random.default_rng(0)
    rows = [
        (user, item, 100_000 * place + user)
        for user in range(N_USERS)
        for place, item in enumerate(rng.permutation(N_ITEMS)[:10])
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    events = Interactions.from_frame(frame, user_ids=range(N_USERS), item_ids=range(N_ITEMS))
    cut = leave_last_out(events, 2)
    Oracle.answers = merge(cut.validation, cut.test)
    return cut


def everyone(model):
    return model.score(torch.arange(N_USERS))


def quality(model, split):
    return evaluate(model, split.test, seen=split.history, progress=False).metrics["ndcg@10"]


# The blend.


def test_a_row_is_standardized_whatever_its_unit():
    scores = torch.randn(4, 50)
    units = torch.tensor([[1.0], [1e-3], [1e6], [0.0]])
    found = standardized(scores * units + 7 * units)
    torch.testing.assert_close(found[:3].mean(1), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:3].std(1, correction=0), torch.ones(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(found[1:3], standardized(scores[1:3]), atol=1e-3, rtol=1e-3)
    assert (found[3] == 0).all()
    assert (standardized(torch.full((1, 5), 0.1)) == 0).all()  # rounding is no difference


def test_a_blend_is_the_weighted_sum_of_standardized_scores(split):
    blend = Blend([EASE(), ItemKNN(), Popularity()], tune=False).fit(split.train, progress=False)
    assert blend.weights.tolist() == pytest.approx([1 / 3] * 3)
    expected = sum(standardized(everyone(model)) for model in blend.models) / 3
    torch.testing.assert_close(everyone(blend), expected)


def test_the_weights_find_the_model_that_knows(split):
    models = [Oracle(knows=2.0, scale=1e-3), Oracle(seed=1, scale=50.0), Oracle(seed=2)]
    blend = Blend(models).fit(split.train, split.validation, progress=False)
    assert blend.weights[0] > 0.8
    assert blend.weights.sum() == pytest.approx(1.0)
    assert (blend.weights >= 0).all()
    # Two that know as much, with noise of their own, count about alike and are better together.
    both = Blend([Oracle(knows=2.0, seed=4), Oracle(knows=2.0, seed=5)])
    both.fit(split.train, split.validation, progress=False)
    assert ((both.weights > 0.25) & (both.weights < 0.75)).all()
    assert quality(both, split) > max(quality(model, split) for model in both.models) + 0.05


def test_the_weights_are_the_best_of_a_grid(split):
    a, b = Oracle(knows=1.0, seed=6), Oracle(knows=2.0, seed=7)
    blend = Blend([a, b], refit=False).fit(split.train, split.validation, progress=False)
    x, y = standardized(everyone(a)), standardized(everyone(b))

    class Mixed:
        n_items = N_ITEMS

        def __init__(self, share):
            self.share = share

        def score(self, users):
            return (self.share * x + (1 - self.share) * y)[users]

    def value(share):
        report = evaluate(Mixed(share), split.validation, seen=split.train, progress=False)
        return report.metrics["ndcg@10"]

    best = max(value(share / 20) for share in range(21))
    assert value(float(blend.weights[0])) == pytest.approx(best, abs=0.01)


def test_models_learn_again_from_all_events_when_the_weights_are_known(split):
    both = [Oracle(), Oracle(seed=1)]
    kept = Blend(both, refit=False).fit(split.train, split.validation, progress=False)
    assert len(both[0].saw) == len(split.train)
    again = Blend(both).fit(split.train, split.validation, progress=False)
    assert len(both[0].saw) == len(split.history)
    assert torch.equal(kept.weights, again.weights)
    # Without validation events the end of each history serves.
    alone = Blend(both, holdout=0.3).fit(split.train, progress=False)
    inner = leave_last_out(split.train, 0.3)
    given = Blend(both).fit(inner.history, inner.test, progress=False)
    assert torch.equal(alone.weights, given.weights)
    assert len(both[0].saw) == len(split.train)


def test_a_second_fit_is_as_long_as_the_first_was_good(split, monkeypatch):
    asked = []
    fit = SASRec.fit

    def listening(self, events, validation=None, **options):
        asked.append((len(events), self.epochs, validation is not None))
        return fit(self, events, validation, **options)

    monkeypatch.setattr(SASRec, "fit", listening)
    model = SASRec(dim=8, n_layers=1, epochs=6, check_every=1, patience=1, learning_rate=0.1)
    Blend([model, EASE()]).fit(split.train, split.validation, progress=False)
    assert asked[0] == (len(split.train), 6, True)
    assert asked[1] == (len(split.history), len(model.log), False)
    assert model.epochs == 6


def test_a_blend_within_a_blend_does_not_see_what_is_held_out(split):
    inner = [Oracle(), Oracle(seed=1)]
    seen = []

    class Watching(Blend):
        def learn(self, train, held_out):
            seen.append([len(model.saw) for model in inner])
            super().learn(train, held_out)

    Watching([Blend(inner), Popularity()]).fit(split.train, split.validation, progress=False)
    assert seen == [[len(split.train)] * 2]


def test_what_is_no_list_of_models_is_refused(split):
    with pytest.raises(TypeError, match=r"write \[model\]"):
        Blend(EASE())
    with pytest.raises(TypeError, match="got EASE"):
        Blend([EASE])
    with pytest.raises(TypeError, match="got int"):
        Blend([EASE(), 3])
    one = EASE()
    with pytest.raises(ValueError, match="more than once"):
        Blend([one, one])
    with pytest.raises(ValueError, match="has no models"):
        Blend([]).fit(split.train)
    stuck = dataclasses.replace(split.train, timestamps=torch.zeros_like(split.train.timestamps))
    with pytest.raises(ValueError, match="no user has two events at different times"):
        Blend([EASE(), ItemKNN()]).fit(stuck)


def test_histories_are_read_where_all_models_read_them(split):
    blend = Blend([EASE(), MarkovChain()]).fit(split.train, progress=False)
    histories = split.train.histories()
    times = list(split.train.timestamps.split(split.train.user_counts().tolist()))
    torch.testing.assert_close(blend.score_histories(histories, times), everyone(blend))
    assert blend.reads_histories
    other = Blend([EASE(), UserKNN()]).fit(split.train, progress=False)
    assert not other.reads_histories
    with pytest.raises(ValueError, match="the model-01 of this Blend, UserKNN, knows users by number"):
        other.score_histories(histories)
    with pytest.raises(ValueError, match="UserKNN"):
        other.update_histories(split.history)


# The ranker.


def stack(*models, **options):
    return StackedLinear(list(models), **({"n_candidates": 20} | options))


def test_the_weight_of_what_decides_is_found(split):
    """One of three models knows; the weights of its features carry the score."""
    model = stack(Oracle(knows=2.0), Oracle(seed=1), Oracle(seed=2), tune=False)
    model.fit(split.train, split.validation, progress=False)
    weights = model.net.weights.weight[0].detach()  # (F,)
    assert len(weights) == model.n_features == 3 * len(MODEL_FEATURES) + len(CANDIDATE_FEATURES)
    # The blend, in which all three count alike, speaks for each of them; with its share taken in.
    of_model = weights[:9].view(3, 3).sum(1) + weights[9:11].sum() / 3**0.5  # (3,)
    assert of_model[0] > 4 * of_model[1:].abs().max()
    assert quality(model, split) > quality(model.blend, split) + 0.1


def test_learned_weights_are_where_the_loss_is_least(split):
    """Against the loss written out event by event, minimized in double precision by SciPy."""
    model = stack(Oracle(knows=1.0), Oracle(knows=0.5, seed=1), penalty=0.02, refit=False)
    learned_from = []
    trained = model._trained
    model._trained = lambda *args: learned_from.append(args) or trained(*args)
    model.fit(split.train, split.validation, progress=False)
    features, there, targets, penalty = learned_from[-1]
    assert penalty == 0.02
    lists = []
    for row, item in targets.nonzero().tolist():
        others = there[row] & ~targets[row]
        lists.append(torch.cat([features[row, item][None], features[row][others]]).double())  # (1 + n, F)
    assert len(lists) > 40

    def loss(weights):
        w = torch.tensor(weights, requires_grad=True)
        total = -sum((x @ w).log_softmax(0)[0] for x in lists) / len(lists) + 0.02 * w.square().sum()
        total.backward()
        return total.item(), w.grad.numpy()

    best = minimize(loss, np.zeros(features.shape[2]), jac=True, method="L-BFGS-B", tol=1e-10)
    found = model.net.weights.weight[0].detach().numpy()
    assert found == pytest.approx(best.x, abs=2e-3)
    assert np.abs(best.x).max() > 0.1


def test_features_are_what_their_names_say(split):
    model = stack(EASE(), ItemKNN(), n_candidates=7).fit(split.train, split.validation, progress=False)
    users = torch.tensor([5, 11])
    scores = model._scores(users)
    blended = model._blended(scores)
    items, features = model._candidates(scores, blended, model._moments(users))
    assert items.shape == (2, 7)
    had = split.history.csr()
    for row, user in enumerate(users.tolist()):
        mine = had[1][had[0][user] : had[0][user + 1]]
        left = torch.tensor([i for i in range(N_ITEMS) if i not in mine.tolist()])
        ranked = left[blended[row, left].argsort(descending=True, stable=True)]
        assert set(items[row].tolist()) == set(ranked[:7].tolist())
        for place, one in enumerate(scores):
            own = one[row, left]
            item = int(items[row, 0])
            score = one[row, item]
            expected = [
                (score - own.mean()) / own.std(correction=0),
                -math.log1p(int((own > score).sum())),
                own.log_softmax(0)[int((left == item).nonzero())],
            ]
            assert features[row, 0, 3 * place : 3 * place + 3].tolist() == pytest.approx(
                [float(x) for x in expected], rel=1e-3, abs=1e-3
            )


def test_all_else_comes_after_the_candidates_in_the_order_of_the_blend(split):
    model = stack(EASE(), ItemKNN(), n_candidates=5).fit(split.train, split.validation, progress=False)
    lists, scores = model.recommend(torch.arange(N_USERS), N_ITEMS, exclude=split.history)
    first, _ = model.blend.recommend(torch.arange(N_USERS), N_ITEMS, exclude=split.history)
    assert torch.equal(lists[:, :5].sort(dim=1)[0], first[:, :5].sort(dim=1)[0])
    assert torch.equal(lists[:, 5:], first[:, 5:])
    assert not torch.equal(lists, first)
    assert (scores[:, :32].diff(dim=1) <= 0).all()


def test_the_models_that_lists_come_from_do_not_know_the_targets(split):
    """A model that remembers what it has seen helps nobody, and is not trusted; with the leak it is."""
    honest = stack(Oracle(knows=1.5), Memory(), tune=False, penalty=0.001)
    honest.fit(split.train, split.validation, progress=False)
    leaking = stack(Oracle(knows=1.5), Memory(), tune=False, penalty=0.001, leak=True)
    leaking.fit(split.train, split.validation, progress=False)

    def trust(model):
        return float(model.net.weights.weight[0, 3:6].detach().sum())

    assert trust(leaking) > 5 * abs(trust(honest))
    assert quality(honest, split) > quality(leaking, split)


def test_targets_are_not_among_what_lists_leave_out(split):
    """Lists are made as of the end of the training events: their features do not count the targets."""
    kept = []

    class Watching(StackedLinear):
        def _candidates(self, scores, blended, moments):
            kept.append((moments, self.tables.users.clone()))
            return super()._candidates(scores, blended, moments)

    Watching([Oracle(knows=2.0), EASE()], n_candidates=20).fit(split.train, split.validation, progress=False)
    moments, counts = kept[0]
    assert moments.seen.sum() == len(split.train)
    assert torch.equal(counts, split.train.item_counts().float())


def test_the_penalty_is_the_best_for_users_left_out(split):
    """Against a loop over users, each ranked by what was learned from the others."""
    model = stack(Oracle(knows=0.7), Oracle(knows=0.5, seed=1), n_folds=3)
    given = []
    penalty = model._penalty
    model._penalty = lambda *args: given.append((args, penalty(*args))) or given[0][1]
    model.fit(split.train, split.validation, progress=False)
    (features, there, targets, n_relevant), chosen = given[0]
    values = {}
    for tried in (1e-3, 1e-2, 1e-1, 1.0):
        total, nets = 0.0, []
        for out in range(3):
            others = torch.tensor([user for user in range(len(features)) if user % 3 != out])
            nets.append(model._trained(features[others], there[others], targets[others], tried))
        for user in range(len(features)):
            order = nets[user % 3](features[user])[:, 0].sort(descending=True, stable=True)[1].tolist()
            gain = sum(1 / math.log2(2 + place) for place, c in enumerate(order[:10]) if targets[user, c])
            total += gain / sum(1 / math.log2(2 + place) for place in range(int(n_relevant[user])))
        values[tried] = total
    assert (n_relevant == 2).all()
    assert values[chosen] == pytest.approx(max(values.values()))
    assert max(values.values()) > min(values.values()) + 0.01


def test_the_network_learns_what_no_sum_can_say(split):
    """The target is where two models agree, high or low: an exclusive or of their signs."""

    class Half(Oracle):
        def _fit(self, interactions, validation, progress):
            generator = torch.Generator().manual_seed(9)
            sign = torch.randn(self.n_users, self.n_items, generator=generator).sign()  # (U, I)
            agree = torch.zeros(self.n_users, self.n_items, dtype=torch.bool)
            agree[Oracle.answers.users, Oracle.answers.items] = True
            other = torch.where(agree, sign, -sign)  # (U, I)
            self._keep("scores", sign if self.seed == 0 else other)

    options = {"n_candidates": N_ITEMS, "tune": False, "penalty": 1e-3}
    both = [Half(), Half(seed=1)]
    linear = StackedLinear(both, **options).fit(split.train, split.validation, progress=False)
    network = StackedNetwork(both, **options).fit(split.train, split.validation, progress=False)
    assert quality(network, split) > quality(linear, split) + 0.1


def test_nothing_to_learn_from_leaves_the_order_of_the_blend(split):
    # Lists so short that no held-out item is in them.
    model = stack(Oracle(knows=-9.0), n_candidates=2)
    with pytest.warns(UserWarning, match="nothing to learn from; the order stays that of the blend"):
        model.fit(split.train, split.validation, progress=False)
    lists = model.recommend(torch.arange(N_USERS), 10, exclude=split.history)[0]
    assert torch.equal(lists, model.blend.recommend(torch.arange(N_USERS), 10, exclude=split.history)[0])


def test_a_part_of_the_users_is_learned_from_where_they_are_many(split):
    kept = []
    model = stack(Oracle(knows=2.0), max_users=12)
    trained = model._trained
    model._trained = lambda *args: kept.append(args) or trained(*args)
    model.fit(split.train, split.validation, progress=False)
    assert 6 <= len(kept[-1][0]) <= 12


def test_blend_and_ranker_are_the_stages_of_a_pipeline(split, tmp_path):
    model = stack(EASE(), MarkovChain()).fit(split.train, split.validation, progress=False)
    pipeline = Pipeline(model.blend, reranker=model, n_candidates=20).assemble(split.history)
    users = torch.arange(N_USERS)
    alone = model.recommend(users, 10, exclude=split.history)[0]
    assert torch.equal(pipeline.recommend(users, 10, exclude=split.history)[0], alone)
    pipeline.save_pretrained(tmp_path / "pipeline")
    loaded = recsys_lib.load(tmp_path / "pipeline")
    assert torch.equal(loaded.recommend(users, 10, exclude=split.history)[0], alone)
    assert {p.name for p in (tmp_path / "pipeline" / "reranker").iterdir() if p.is_dir()} == {
        "model-00",
        "model-01",
    }
    histories = [[1, 2, 3], [4]]
    torch.testing.assert_close(loaded.score_histories(histories), pipeline.score_histories(histories))


def test_a_folder_without_a_model_is_refused(split, tmp_path):
    model = stack(EASE(), ItemKNN()).fit(split.train, split.validation, progress=False)
    model.save_pretrained(tmp_path / "stack")
    (tmp_path / "stack" / "model-00").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="no folder model-00"):
        StackedLinear.from_pretrained(tmp_path / "stack")
    # A smaller model over a larger one leaves nothing of that behind.
    model.save_pretrained(tmp_path / "stack")
    one = stack(EASE()).fit(split.train, split.validation, progress=False)
    one.save_pretrained(tmp_path / "stack")
    loaded = StackedLinear.from_pretrained(tmp_path / "stack")
    assert torch.equal(everyone(loaded), everyone(one))
