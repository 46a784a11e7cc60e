import math

import pandas as pd
import pytest
import torch

from recsys_lib.data import Interactions, leave_last_out
from recsys_lib.models import Popularity
from recsys_lib.pretraining import (
    PRETRAININGS,
    TASKS,
    ContrastiveBothWays,
    LinearVAE,
    PerPerson,
    few_labels,
    fine_tune,
    measure,
    over_people_and_seeds,
    pretrain,
)


@pytest.fixture(scope="module")
def split():
    """Two kinds of people, who like what is theirs and dislike two things of the others'."""
    rows = []
    for u in range(40):
        kind = u % 2
        for t in range(10):
            own = t % 4 != 3
            item = 10 * (kind if own else 1 - kind) + (u + 3 * t) % 10
            rows.append((u, item, 5.0 if own else 2.0, 100 * u + t))
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    return leave_last_out(Interactions.from_frame(frame, item_ids=range(20)), n=0.3)


def test_few_labels_are_a_share_and_fewer_are_among_more(split):
    some, more = few_labels(split, 0.1, seed=3), few_labels(split, 0.5, seed=3)
    assert len(some.labels) == round(0.1 * len(split.train))
    assert len(some.validation) == round(0.1 * len(split.validation))
    assert set(some.labels.rows.tolist()) < set(more.labels.rows.tolist())
    assert set(more.validation.rows.tolist()) <= set(split.validation.rows.tolist())
    assert len(some.behaviour) == len(split.train)
    other = few_labels(split, 0.1, seed=4)
    assert other.labels.rows.tolist() != some.labels.rows.tolist()
    assert len(few_labels(split, 1.0).labels) == len(split.train)
    with pytest.raises(ValueError, match="share"):
        few_labels(split, 0.0)


@pytest.mark.parametrize("name", sorted(PRETRAININGS))
def test_a_pre_training_ends_in_the_encoder_that_is_tuned(split, name):
    shape = {} if PRETRAININGS[name].reads == "bag" else {"max_length": 8, "batch_size": 64}
    known = pretrain(name, split.train, dim=8, device="cpu", epochs=2, **shape)
    few = few_labels(split, 0.5)
    options = {"reads": PRETRAININGS[name].reads, "dim": 8, "epochs": 1, "max_length": 8}
    for frozen in (False, True):
        model = fine_tune(
            "click",
            few,
            known,
            parts=PRETRAININGS[name].parts,
            frozen=frozen,
            device="cpu",
            learning_rate=0.01,
            **options,
        )
        theirs = known.item_rows if name in ("DAE", "VAE") else known.encoder.item_embedding.weight
        mine = model.encoder.rows if name in ("DAE", "VAE") else model.encoder.item_embedding.weight
        assert torch.equal(mine, theirs) == frozen
    with pytest.raises(KeyError, match="no pre-training 'nothing'"):
        pretrain("nothing", split.train)


def test_ratings_do_not_reach_a_pre_training(split):
    frame = split.train.to_frame()
    frame["rating"] = 1.0
    flat = Interactions.from_frame(frame, user_ids=range(40), item_ids=range(20))
    for name in ("DAE", "masked"):
        a, b = (pretrain(name, x, dim=8, device="cpu", epochs=2) for x in (split.train, flat))
        assert torch.equal(a.score(torch.arange(5)), b.score(torch.arange(5)))


def test_the_linear_vae_scores_by_its_mean(split):
    model = LinearVAE(dim=8, epochs=2).fit(split.train, device="cpu", progress=False)
    x = torch.tensor([1, 2, 3, 4])
    first = torch.tanh(model.item_rows[x].sum(dim=0) / 2 + model.first_bias)
    code = model.to_code.mean(first)
    expected = model.output(code)
    torch.testing.assert_close(model.score_histories([x])[0], expected.detach())
    assert model.code_information().shape == (8,)


def test_who_looks_both_ways_is_not_asked_for_the_next_item(split):
    with pytest.raises(ValueError, match="sees the next item"):
        ContrastiveBothWays(next_weight=1.0)
    model = ContrastiveBothWays(dim=8, n_layers=1, max_length=8, epochs=2)
    model.fit(split.train, device="cpu", progress=False)
    assert len(model.views_log) == 2
    # A vector is what the encoder makes of the mask behind the history.
    row = torch.tensor([[3, 5, 20]])
    with torch.no_grad():
        expected = model.encoder(row, torch.tensor([3]))[0, 2]
    torch.testing.assert_close(model.encode([[3, 5]])[0], expected)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_measures_are_those_of_their_definitions(split, task):
    model = Popularity().fit(split.train, device="cpu", progress=False)
    found = measure(model, task, split)
    test = split.test
    if task == "ranking":
        assert found["ndcg@10"].counts.sum() == len(test.positives(4.0).users.unique())
        return
    scores = model.predict(test.users, test.items).double()
    if task == "rating":
        expected = (scores - test.ratings).square().mean().sqrt()
        assert found["rmse"].value == pytest.approx(float(expected))
        return
    liked = (test.ratings >= 4).double()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(scores, liked)
    assert found["log-loss"].value == pytest.approx(float(expected))
    areas = []
    for user in test.users.unique():
        s, y = scores[test.users == user], liked[test.users == user] > 0
        if y.any() and not y.all():
            pairs = s[y][:, None] - s[~y]
            areas.append(float(((pairs > 0).double() + 0.5 * (pairs == 0)).mean()))
    assert found["auc"].value == pytest.approx(sum(areas) / len(areas))


def test_influence_is_what_leaving_a_person_out_changes():
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 9, (400,), generator=generator).double()
    sums = counts * (1 + torch.rand(400, generator=generator, dtype=torch.float64))
    for root in (False, True):
        whole = PerPerson(sums, counts, root)
        assert whole.influence.mean() == pytest.approx(0, abs=1e-12)
        for person in (0, 17):
            rest = torch.arange(400) != person
            without = PerPerson(sums[rest], counts[rest], root).value
            assert 399 * (whole.value - without) == pytest.approx(float(whole.influence[person]), abs=2e-3)


def test_the_interval_counts_people_and_seeds():
    generator = torch.Generator().manual_seed(1)
    ones = torch.ones(500, dtype=torch.float64)
    person = torch.randn(500, generator=generator, dtype=torch.float64)
    same = [PerPerson(person, ones)] * 3
    found = over_people_and_seeds(same)
    # Without differences between seeds it is the interval over people.
    half = 1.96 * float(person.std()) / math.sqrt(500)
    assert found.high - found.mean == pytest.approx(half, rel=0.03)
    assert found.mean == pytest.approx(float(person.mean()))
    # With them it is wider, and with few seeds much wider.
    moved = [PerPerson(person + shift, ones) for shift in (-1.0, 0.0, 1.0)]
    assert over_people_and_seeds(moved).high - found.mean == pytest.approx(4.303 / math.sqrt(3), rel=0.1)
    # A difference is taken seed by seed and person by person.
    gap = over_people_and_seeds([PerPerson(m.sums + 0.5, ones) for m in moved], moved)
    assert (gap.low, gap.mean, gap.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-6)
    assert gap.clear
    # And the difference of two differences.
    plus = [PerPerson(m.sums + 2.0, ones) for m in moved]
    twice = over_people_and_seeds(plus, moved, (-2.0, plus), (2.0, moved))
    assert twice.mean == pytest.approx(-2.0)


def test_intervals_cover():
    """Of many repetitions with other people and other seeds, about 95 % hold the true mean, or more."""
    generator = torch.Generator().manual_seed(2)
    ones, inside = torch.ones(60, dtype=torch.float64), 0
    for _ in range(300):
        person = torch.randn(60, generator=generator, dtype=torch.float64)
        seeds = 0.2 * torch.randn(4, generator=generator, dtype=torch.float64)
        found = over_people_and_seeds([PerPerson(person + s, ones) for s in seeds])
        inside += found.low <= 0 <= found.high
    assert 0.92 <= inside / 300 <= 1.0
