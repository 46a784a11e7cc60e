"""Worlds with a known truth: chances that sum to one and are those of the draws, estimators without bias."""

import itertools
import math

import pytest
import torch

from recsys_lib.metrics import gini
from recsys_lib.models import EASE, Popularity
from recsys_lib.simulation import (
    Boltzmann,
    ClickRate,
    EpsilonGreedy,
    FeedbackLoop,
    Greedy,
    ImpressionFactors,
    InversePropensityRate,
    Log,
    ThompsonSampling,
    UniformLists,
    World,
    doubly_robust,
    ips,
    list_weights,
    looks,
    naive,
    replay,
    snips,
)
from recsys_lib.simulation.learners import Table, _Factors
from recsys_lib.simulation.loop import overlap, total_variation

POLICIES = [Greedy(), EpsilonGreedy(0.3), EpsilonGreedy(1.0), UniformLists(), Boltzmann(0.7)]
PRECISE = {"rel": 1e-9, "abs": 1e-12}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def world():
    """Two people, five items, two places."""
    appeal = torch.tensor([[0.9, 0.5, 0.2, 0.1, 0.4], [0.1, 0.3, 0.8, 0.6, 0.0]], dtype=torch.float64)
    return World(appeal, torch.tensor([1.0, 0.5], dtype=torch.float64))


SCORES = torch.tensor([[2.0, 1.0, 0.3, 0.1, -1.0], [0.2, 0.1, 0.5, 3.0, 0.4]], dtype=torch.float64)


def every_list(n_items=5, k=2):
    return torch.tensor(list(itertools.permutations(range(n_items), k)))  # (L, k)


def chances_of_lists(policy, scores, lists):
    """The chance of each list (L,) for one person's scores (n_items,)."""
    return policy.given_above(scores.expand(len(lists), -1), lists).prod(dim=1)


# ------------------------------------------------------------------------------------------------- worlds


def test_expected_clicks_counted(world):
    found = world.expected_clicks([0, 1], torch.tensor([[0, 1], [4, 2]]))
    assert found.tolist() == pytest.approx([0.9 + 0.25, 0.0 + 0.4], **PRECISE)
    assert world.expected_clicks([0], torch.tensor([[0, -1]])).tolist() == pytest.approx([0.9], **PRECISE)


def test_clicks_fall_as_often_as_expected(world):
    users = torch.zeros(40_000, dtype=torch.int64)
    clicked = world.click(users, torch.tensor([[1, 0]]).expand(40_000, -1), generator())
    assert clicked.double().mean(0).tolist() == pytest.approx([0.5, 0.45], abs=0.01)
    assert not world.click([0], torch.tensor([[-1, -1]]), generator()).any()


@pytest.mark.parametrize("examined", [[1.0, 0.5, 0.2], [0.2, 1.0, 0.5]])
def test_the_best_lists_are_the_best_of_all(examined):
    appeal = torch.rand(3, 5, generator=generator(), dtype=torch.float64)
    world = World(appeal, torch.tensor(examined, dtype=torch.float64))
    left_out = torch.zeros(3, 5, dtype=torch.bool)
    left_out[1, world.appeal[1].argmax()] = True
    lists = world.best([0, 1, 2], left_out=left_out)
    for user in range(3):
        allowed = [one for one in every_list(5, 3) if not left_out[user, one].any()]
        found = [float(world.expected_clicks([user], one[None])) for one in allowed]
        assert float(world.expected_clicks([user], lists[user, None])) == pytest.approx(max(found), **PRECISE)


def test_where_nothing_is_left_the_best_list_is_short(world):
    left_out = torch.tensor([[True, True, True, True, False]])
    assert world.best([0], left_out=left_out).tolist() == [[4, -1]]


def test_a_drawn_world_has_its_rate_and_its_seed():
    world = World.draw(50, 40, k=5, rate=0.2, seed=3)
    assert (world.n_users, world.n_items, world.k) == (50, 40, 5)
    assert float(world.appeal.mean()) == pytest.approx(0.2, abs=1e-5)
    assert torch.equal(world.appeal, World.draw(50, 40, k=5, rate=0.2, seed=3).appeal)
    assert not torch.equal(world.appeal, World.draw(50, 40, k=5, rate=0.2, seed=4).appeal)
    same = World.draw(50, 40, taste=0.0, seed=3).appeal  # without taste everybody likes the same
    assert torch.allclose(same, same[:1].expand(50, -1))


def test_a_world_of_a_model_keeps_its_order():
    scores = torch.randn(6, 8, generator=generator())
    world = World.of(Table(scores), 6, k=3, rate=0.3, progress=False)
    assert torch.equal(world.appeal.argsort(dim=1), scores.argsort(dim=1))
    assert float(world.appeal.mean()) == pytest.approx(0.3, abs=1e-5)
    with pytest.raises(ValueError, match="finite"):
        World.of(Table(torch.tensor([[0.0, -torch.inf]])), 1, progress=False)


def test_looks():
    assert looks(3).tolist() == pytest.approx([1, 1 / 2, 1 / 3])
    assert looks(3, 0.0).tolist() == [1, 1, 1]


def test_worlds_refuse_what_is_no_chance(world):
    with pytest.raises(ValueError, match="from 0 to 1"):
        World(torch.tensor([[1.2]]), torch.ones(1))
    with pytest.raises(ValueError, match="from 0 to 1"):
        World(torch.tensor([[torch.nan]]), torch.ones(1))
    with pytest.raises(ValueError, match="dimensions"):
        World(torch.ones(3), torch.ones(1))
    with pytest.raises(TypeError, match="real"):
        World(torch.ones(2, 2, dtype=torch.int64), torch.ones(1))
    with pytest.raises(ValueError, match="rate"):
        World.draw(3, 3, rate=0.0)
    with pytest.raises(IndexError, match="person"):
        world.expected_clicks([2], torch.tensor([[0, 1]]))
    with pytest.raises(IndexError, match="item"):
        world.expected_clicks([0], torch.tensor([[0, 5]]))
    with pytest.raises(ValueError, match="lists must be"):
        world.expected_clicks([0], torch.tensor([[0, 1, 2]]))


# ----------------------------------------------------------------------------------------------- policies


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_the_chances_of_all_lists_sum_to_one(policy):
    lists = every_list()
    for scores in SCORES:
        assert float(chances_of_lists(policy, scores, lists).sum()) == pytest.approx(1.0, **PRECISE)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_list_that_repeats_an_item_or_holds_one_that_is_left_out_has_no_chance(policy):
    scores = SCORES[:1].clone()
    assert float(policy.given_above(scores, torch.tensor([[1, 1]])).prod()) == 0
    scores[0, 0] = -torch.inf
    for one in ([0, 1], [1, 0]):
        assert float(policy.given_above(scores, torch.tensor([one])).prod()) == 0
    if policy.at_place(scores, torch.tensor([[0, 1]])) is not None:
        assert float(policy.at_place(scores, torch.tensor([[0, 1]]))[0, 0]) == 0


@pytest.mark.parametrize("policy", POLICIES[:-1], ids=repr)
def test_the_chance_of_a_place_is_that_of_all_lists_with_the_item_there(policy):
    lists = every_list()
    for scores in SCORES:
        of_list = chances_of_lists(policy, scores, lists)  # (L,)
        for item, place in itertools.product(range(5), range(2)):
            total = float(of_list[lists[:, place] == item].sum())
            asked = torch.tensor([[item, (item + 1) % 5] if place == 0 else [(item + 1) % 5, item]])
            assert float(policy.at_place(scores[None], asked)[0, place]) == pytest.approx(total, **PRECISE)


@pytest.mark.parametrize("policy", POLICIES[:-1], ids=repr)
def test_the_chance_to_be_looked_at_is_that_of_all_lists(policy):
    lists, examined = every_list(), torch.tensor([1.0, 0.4], dtype=torch.float64)
    for scores in SCORES:
        of_list = chances_of_lists(policy, scores, lists)  # (L,)
        expected = torch.zeros(5, dtype=torch.float64)
        for place in range(2):
            expected.index_add_(0, lists[:, place], of_list * examined[place])
        found = policy.looked_at(scores[None], examined)[0]
        assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-7)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_lists_come_as_often_as_their_chances_say(policy):
    n = 60_000
    shown = policy.show(SCORES[:1].expand(n, -1), 2, generator(7))
    lists = every_list()
    keys = lists[:, 0] * 5 + lists[:, 1]
    drawn = shown.items[:, 0] * 5 + shown.items[:, 1]
    frequency = (drawn[:, None] == keys).double().mean(0)  # (L,)
    chance = chances_of_lists(policy, SCORES[0], lists)
    assert float(frequency.sum()) == pytest.approx(1.0)  # nothing else, no item twice
    assert float((frequency - chance).abs().max()) < 0.006  # three errors of a half
    # What comes with a list is what is asked for it.
    again = policy.given_above(SCORES[:1], shown.items[:1])
    assert torch.equal(shown.given_above[:1], again)


def test_places_without_an_item_are_last_and_certain():
    scores = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]])
    for policy in (Greedy(), UniformLists(), Boltzmann(1.0)):
        shown = policy.show(scores, 3, generator())
        assert shown.items[0, 2] == -1
        assert sorted(shown.items[0, :2].tolist()) == [0, 1]
        assert shown.given_above[0, 2] == 1


def test_extremes_of_exploration():
    scores = torch.randn(50, 8, generator=generator())
    best = Greedy().show(scores, 3, generator()).items
    assert torch.equal(EpsilonGreedy(0.0).show(scores, 3, generator()).items, best)
    assert torch.equal(Boltzmann(1e-6).show(scores, 3, generator()).items, best)
    given_away = EpsilonGreedy(1.0).show(scores, 3, generator()).items
    assert not (given_away[:, :, None] == best[:, None, :]).any()


def test_policies_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="epsilon"):
        EpsilonGreedy(1.5)
    with pytest.raises(ValueError, match="temperature"):
        Boltzmann(0.0)
    scores = torch.zeros(2, 4)
    scores[1, 0] = -torch.inf
    with pytest.raises(ValueError, match="row 1 has 1 items beside"):
        EpsilonGreedy(0.1).show(scores, 2, generator())
    with pytest.raises(ValueError, match=r"row 1.*NaN"):
        Greedy().show(torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]), 1, generator())
    with pytest.raises(ValueError, match="at most"):
        Greedy().show(torch.zeros(1, 2), 3, generator())
    shown = ThompsonSampling().show(SCORES, 2, generator())
    assert shown.at_place is None
    assert shown.given_above is None
    assert Boltzmann(1.0).show(SCORES, 2, generator()).at_place is None
    first = Boltzmann(1.0).show(SCORES, 1, generator())
    assert torch.allclose(first.at_place, SCORES.softmax(1).gather(1, first.items))


# --------------------------------------------------------------------------------------------- off-policy


def outcomes(world, logging):
    """All lists of the first person with all clicks: the chance of each (L,), lists, clicks, scores."""
    lists, clicks = every_list(), torch.tensor(list(itertools.product([0.0, 1.0], repeat=2))).double()
    of_click = world.of_lists(torch.zeros(20, dtype=torch.int64), lists) * world.examined  # (20, k)
    row, fell = torch.cartesian_prod(torch.arange(20), torch.arange(4)).T
    chance = torch.where(clicks[fell] > 0, of_click[row], 1 - of_click[row]).prod(dim=1)  # (L,)
    chance = chance * chances_of_lists(logging, SCORES[0], lists)[row]  # (L,)
    there = chance > 0
    lists, clicks = lists[row[there]], clicks[fell[there]]
    return chance[there], lists, clicks, SCORES[:1].expand(len(lists), -1)


def true_value(world, policy, scores):
    """What a policy earns with the first person, over all its lists."""
    everything = every_list()
    clicks = world.expected_clicks(torch.zeros(20, dtype=torch.int64), everything)
    return float(chances_of_lists(policy, scores, everything) @ clicks)


@pytest.mark.parametrize(
    ("logging", "new"),
    [
        (EpsilonGreedy(0.4), Greedy()),
        (UniformLists(), EpsilonGreedy(0.1)),
        (UniformLists(), Boltzmann(0.5)),
        (Boltzmann(1.0), EpsilonGreedy(0.1)),
        (Boltzmann(1.0), UniformLists()),
    ],
    ids=repr,
)
def test_weighting_is_unbiased_over_every_list_and_every_click(world, logging, new):
    """The new policy ranks the other way round; each outcome is a log of one list."""
    chance, lists, clicks, scores = outcomes(world, logging)
    truth = true_value(world, new, -SCORES[0])
    assert float(chance.sum()) == pytest.approx(1.0, **PRECISE)

    def mean_over_outcomes(estimate):
        return sum(float(p) * estimate(slice(row, row + 1)).value for row, p in enumerate(chance))

    total = clicks.sum(dim=1)  # (L,)
    whole = list_weights(new.given_above(-scores, lists), logging.given_above(scores, lists))  # (L,)
    assert mean_over_outcomes(lambda row: ips(total[row], whole[row])) == pytest.approx(truth, abs=1e-6)
    assert mean_over_outcomes(lambda row: naive(total[row])) != pytest.approx(truth, abs=0.05)
    assert mean_over_outcomes(lambda row: ips(total[row], whole[row], clip=0.5)) < truth - 0.05

    logged, ours = logging.at_place(scores, lists), new.at_place(-scores, lists)
    if logged is None or ours is None:
        return
    w = ours / logged  # (L, k)
    assert mean_over_outcomes(lambda row: ips(clicks[row], w[row])) == pytest.approx(truth, abs=1e-6)
    # A model that is wrong, and says the same of the same item at the same place.
    table = torch.rand(2, 5, generator=generator(), dtype=torch.float64)
    guess = torch.stack([table[0, lists[:, 0]], table[1, lists[:, 1]]], dim=1)  # (L, k)
    everything = every_list()
    said = table[0, everything[:, 0]] + table[1, everything[:, 1]]  # (20,)
    of_new = chances_of_lists(new, -SCORES[0], everything) @ said
    robust = mean_over_outcomes(lambda row: doubly_robust(clicks[row], w[row], guess[row], of_new[None]))
    assert robust == pytest.approx(truth, abs=1e-6)


def test_looks_are_unbiased_where_places_are_blind(world):
    """The new policy has the logged best items in another order: never logged there, but looked at."""
    logging, new = EpsilonGreedy(0.4), EpsilonGreedy(0.1)
    chance, lists, clicks, scores = outcomes(world, logging)
    other = SCORES[0].clone()
    other[:2] = SCORES[0, :2].flip(0)
    truth = true_value(world, new, other)
    asked = other.expand(len(lists), -1)
    by_place = new.at_place(asked, lists) / logging.at_place(scores, lists)  # (L, k)
    ours, theirs = (
        policy.looked_at(given, world.examined).gather(1, lists)
        for policy, given in ((new, asked), (logging, scores))
    )
    assert float(chance @ ((ours / theirs) * clicks).sum(dim=1)) == pytest.approx(truth, abs=1e-6)
    assert float(chance @ (by_place * clicks).sum(dim=1)) < truth - 0.3


def logged_at_random(n=500, k=3, seed=0):
    draw = generator(seed)
    rewards = (torch.rand(n, k, generator=draw) < 0.3).double()
    weights = torch.rand(n, k, generator=draw).double() ** 4 * 8
    return rewards, weights, torch.rand(n, k, generator=draw).double()


def test_doubly_robust_is_ips_without_a_model_and_exact_with_a_perfect_one(world):
    rewards, weights, _ = logged_at_random()
    nothing = torch.zeros_like(rewards)
    assert doubly_robust(rewards, weights, nothing, nothing[:, 0]) == ips(rewards, weights)
    value = torch.rand(500, generator=generator()).double()
    exact = doubly_robust(rewards, weights * 17, rewards, value)
    assert exact.value == pytest.approx(float(value.mean()), **PRECISE)


def test_snips_stays_within_the_rewards_and_ips_does_not():
    rewards = torch.tensor([1.0, 1.0, 0.5])
    weights = torch.tensor([9.0, 0.1, 4.0])
    assert ips(rewards, weights).value > 1
    assert 0.5 <= snips(rewards, weights).value <= 1
    assert snips(torch.full((40,), 0.7), torch.rand(40, generator=generator())).value == pytest.approx(0.7)
    assert snips(rewards, 5 * weights) == pytest.approx(snips(rewards, weights))


def test_snips_of_looks_by_hand(world):
    rewards, weights, _ = logged_at_random()
    looks = torch.tensor([1.0, 0.5, 0.25])
    found = snips(rewards, weights, looks)
    by_hand = 1.75 * (weights * rewards).sum() / (weights @ looks.double()).sum()
    assert found.value == pytest.approx(float(by_hand), **PRECISE)
    # If everybody clicks on all that they look at, the answer is the number of looks, whatever the weights.
    certain = snips(looks.expand(500, -1), weights, looks)
    assert certain.value == pytest.approx(1.75, **PRECISE)
    assert certain.error == pytest.approx(0.0, abs=1e-9)
    # The error is that of the ratio: as of many resamples.
    draws = [
        snips(rewards[rows], weights[rows], looks).value
        for rows in torch.randint(500, (2000, 500), generator=generator(5))
    ]
    assert found.error == pytest.approx(float(torch.tensor(draws).std()), rel=0.1)
    with pytest.raises(ValueError, match="looks must be"):
        snips(rewards, weights, looks[:2])


def test_equal_weights_are_the_mean():
    rewards, weights, _ = logged_at_random()
    ones = torch.ones_like(weights)
    assert ips(rewards, ones) == pytest.approx(naive(rewards))
    assert snips(rewards, ones) == pytest.approx(naive(rewards))
    assert ips(rewards, weights, clip=1e9) == ips(rewards, weights)
    half = torch.arange(500) % 2 == 0
    assert replay(rewards[:, 0], half).value == pytest.approx(float(rewards[half, 0].mean()), **PRECISE)


@pytest.mark.parametrize("estimator", [ips, snips])
def test_intervals_hold_the_truth_as_often_as_they_say(world, estimator):
    """A thousand logs of two hundred lists: 95 of a hundred intervals, give or take three errors."""
    n, logs = 200, 1000
    users = torch.zeros(n * logs, dtype=torch.int64)
    scores = SCORES[:1].expand(n * logs, -1)
    shown = UniformLists().show(scores, 2, generator(3))
    clicks = world.click(users, shown.items, generator(4)).double()  # (N, k)
    weights = EpsilonGreedy(0.4).at_place(scores, shown.items) / shown.at_place  # (N, k)
    truth = true_value(world, EpsilonGreedy(0.4), SCORES[0])
    held = 0
    for rows in torch.arange(n * logs).view(logs, n):
        found = estimator(clicks[rows], weights[rows])
        held += found.low <= truth <= found.high
    assert 0.92 < held / logs < 0.98


def test_estimators_refuse_what_cannot_be_weighted():
    rewards, weights, _ = logged_at_random()
    with pytest.raises(ValueError, match="shapes"):
        ips(rewards, weights[:, 0])
    with pytest.raises(ValueError, match="no chance"):
        ips(rewards, weights / 0.0)
    with pytest.raises(ValueError, match="place 1 is zero"):
        snips(rewards, weights * torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="clip"):
        ips(rewards, weights, clip=0.0)
    with pytest.raises(ValueError, match="new"):
        doubly_robust(rewards, weights, rewards, rewards)
    with pytest.raises(ValueError, match="above 0"):
        list_weights(weights, torch.zeros_like(weights))
    alone = ips(torch.tensor([1.0]), torch.tensor([2.0]))
    assert alone.value == 2.0
    assert math.isnan(alone.error)
    assert f"{naive(torch.tensor([1.0, 0.0])):.1f}".startswith("0.5\N{NO-BREAK SPACE}[")


# ----------------------------------------------------------------------------------------------- learners


def a_log(world, policy, rounds, scores=None, seed=0):
    """Lists of one policy, with all chances."""
    users = torch.arange(world.n_users)
    logs = []
    for number in range(rounds):
        chosen = torch.zeros(world.n_users, world.n_items) if scores is None else scores
        shown = policy.show(chosen, world.k, generator(2 * (seed + number)))
        clicked = world.click(users, shown.items, generator(2 * (seed + number) + 1))
        looked = policy.looked_at(chosen, world.examined)
        logs.append(
            Log.of_lists(
                shown.items,
                clicked,
                world.examined,
                n_users=world.n_users,
                n_items=world.n_items,
                number=number,
                at_place=shown.at_place,
                looked_at=None if looked is None else looked.gather(1, shown.items),
            )
        )
    return Log.joined(logs)


def test_a_log_counted():
    log = Log.of_lists(
        torch.tensor([[2, 0], [1, -1]]),
        torch.tensor([[True, False], [True, False]]),
        torch.tensor([1.0, 0.5]),
        n_users=3,
        n_items=4,
        users=torch.tensor([2, 0]),
        number=5,
    )
    assert len(log) == 3  # a place without an item is no impression
    assert log.users.tolist() == [2, 2, 0]
    assert log.items.tolist() == [2, 0, 1]
    assert log.examined.tolist() == [1.0, 0.5, 1.0]
    assert log.at_place.isnan().all()
    clicks = log.clicks()
    assert (clicks.n_users, clicks.n_items) == (3, 4)
    assert clicks.to_frame()[["user_id", "item_id"]].to_numpy().tolist() == [[0, 1], [2, 2]]
    assert log.sums(torch.tensor([1.0, 2.0, 4.0]))[2].tolist() == [2.0, 0.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="nobody has clicked"):
        log[~log.clicked].clicks()
    with pytest.raises(ValueError, match="different people"):
        Log.joined([log, a_log(World.draw(4, 6, k=2), UniformLists(), 1)])


def test_a_rate_is_its_posterior_mean_and_forgives_low_places():
    log = Log.of_lists(
        torch.tensor([[0, 1]] * 4),
        torch.tensor([[True, False], [True, True], [False, False], [False, False]]),
        torch.tensor([1.0, 0.5]),
        n_users=4,
        n_items=3,
    )
    rates = ClickRate(prior=(1.0, 3.0)).learn(log).score(torch.tensor([0]))[0]
    assert rates.tolist() == pytest.approx([(1 + 2) / (4 + 4), (1 + 1) / (4 + 2), 1 / 4])
    plain = ClickRate(prior=(1.0, 3.0), position=False).learn(log).score(torch.tensor([0]))[0]
    assert plain.tolist() == pytest.approx([3 / 8, 2 / 8, 1 / 4])
    drawn = ClickRate(prior=(1.0, 3.0)).learn(log).sample(torch.zeros(20_000, dtype=torch.int64), generator())
    assert drawn.mean(0).tolist() == pytest.approx(rates.tolist(), abs=0.01)
    beta = torch.distributions.Beta(3.0, 5.0)
    assert float(drawn[:, 0].var()) == pytest.approx(float(beta.variance), rel=0.05)


def test_samples_follow_their_generator_and_leave_the_global_state():
    model = ClickRate().learn(a_log(World.draw(20, 30, seed=1), UniformLists(), 2))
    users, state = torch.arange(20), torch.get_rng_state()
    assert torch.equal(model.sample(users, generator(1)), model.sample(users, generator(1)))
    assert not torch.equal(model.sample(users, generator(1)), model.sample(users, generator(2)))
    assert torch.equal(torch.get_rng_state(), state)


def test_inverse_propensities_find_the_appeal_that_counting_misses():
    """A policy that prefers the worse items: counts follow it, weighted counts follow the truth."""
    world = World.draw(400, 12, k=3, taste=0.0, rate=0.3, seed=2)
    appeal = world.appeal.mean(0).double()
    log = a_log(world, EpsilonGreedy(0.5), 60, scores=-appeal.expand(400, -1))
    weighted = InversePropensityRate(clip=math.inf).learn(log).score(torch.tensor([0]))[0]
    assert float((weighted - appeal).abs().max()) < 0.06
    assert torch.corrcoef(torch.stack([weighted, appeal]))[0, 1] > 0.99
    counted = torch.bincount(log.items[log.clicked], minlength=12)
    assert torch.corrcoef(torch.stack([counted.double(), appeal]))[0, 1] < 0.8
    clipped = InversePropensityRate(clip=2.0).learn(log).score(torch.tensor([0]))[0]
    assert float(clipped.mean()) < float(weighted.mean())


def test_factors_find_taste_and_correct_for_places():
    world = World.draw(300, 60, k=8, taste=2.0, fame=0.5, rate=0.3, seed=5)
    uniform = a_log(world, UniformLists(), 25)
    users = torch.arange(300)

    def fit(log, **options):
        scores = ImpressionFactors(dim=4, l2=2.0, **options).learn(log).score(users)
        return float(torch.corrcoef(torch.stack([scores.flatten(), world.appeal.double().flatten()]))[0, 1])

    assert fit(uniform) > 0.6
    # A log that always shows the famous first: the plain model takes low places for dislike.
    ranked = a_log(world, EpsilonGreedy(0.3), 25, scores=world.appeal.mean(0).neg().expand(300, -1))
    assert fit(ranked, correct="position") > fit(ranked, correct="none") + 0.05
    assert fit(ranked, correct="propensity") > 0.3


def test_factors_solve_their_least_squares():
    """Against one large ridge regression for a user's vector, given the items'."""
    world = World.draw(30, 20, k=5, rate=0.4, seed=1)
    log = a_log(world, UniformLists(), 6)
    model = ImpressionFactors(dim=3, l2=1.5)
    found = model.learn(log)
    weights, targets = model._told(log)
    mean = (weights * targets).sum() / weights.sum()
    user = 4
    mine = log.users == user
    total = torch.zeros(20, dtype=torch.float64).index_add_(0, log.items, weights)
    bias = torch.zeros(20, dtype=torch.float64).index_add_(0, log.items, weights * (targets - mean)) / (
        total + 1.5
    )
    design = found.items[log.items[mine]]  # (n, d)
    rest = (targets - mean - bias[log.items])[mine]
    square = design.mT @ (design * weights[mine, None]) + 1.5 * torch.eye(3, dtype=torch.float64)
    p = torch.linalg.solve(square, design.mT @ (weights[mine] * rest))
    score = mean + bias + found.items @ p
    assert torch.allclose(found.score(torch.tensor([user]))[0], score, atol=1e-8)
    # The posterior: mean and covariance of what is drawn.
    drawn = found.sample(torch.full((40_000,), user), generator()) - score  # (S, n_items)
    covariance = found.noise**2 * found.items @ torch.linalg.inv(square) @ found.items.mT
    assert float(drawn.mean(0).abs().max()) < 0.05 * float(covariance.max()) ** 0.5
    assert torch.allclose(drawn.mT.cov(), covariance, atol=0.03 * float(covariance.max()))


def test_samples_have_the_covariance_of_the_posterior():
    root = torch.tensor([[1.0, 0.0], [2.0, 0.5]], dtype=torch.float64)  # far from symmetric
    scores, items = torch.zeros(1, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    drawn = _Factors(scores, root[None], items, 2.0).sample(
        torch.zeros(50_000, dtype=torch.int64), generator()
    )
    expected = 4 * torch.linalg.inv(root @ root.mT)
    assert torch.allclose(drawn.mT.cov(), expected, atol=0.03 * float(expected.max()))


def test_weights_of_propensity_by_hand():
    log = Log.of_lists(
        torch.tensor([[0, 1], [1, 2]]),
        torch.tensor([[True, False], [False, True]]),
        torch.tensor([1.0, 0.5]),
        n_users=2,
        n_items=3,
        at_place=torch.tensor([[0.5, 0.1], [0.2, 0.01]]),
    )
    weights, targets = ImpressionFactors(correct="propensity", clip=20.0)._told(log)
    raw = torch.tensor([1 / 0.5, 0.5 / 0.1, 1 / 0.2, 0.5 * 20], dtype=torch.float64)
    assert targets.tolist() == [1.0, 0.0, 0.0, 2.0]
    assert weights.tolist() == pytest.approx((raw * 3.0 / raw.sum()).tolist(), rel=1e-6)
    position, _ = ImpressionFactors(correct="position")._told(log)
    assert position.tolist() == [1.0, 0.5, 1.0, 0.5]


def test_learners_refuse_what_they_cannot_learn_from():
    log = a_log(World.draw(20, 30, seed=1), Boltzmann(1.0), 2)
    with pytest.raises(ValueError, match="looked_at"):
        InversePropensityRate().learn(log)
    with pytest.raises(ValueError, match="at_place"):
        ImpressionFactors(correct="propensity").learn(log)
    with pytest.raises(ValueError, match="correct must be"):
        ImpressionFactors(correct="all")
    with pytest.raises(ValueError, match="prior"):
        ClickRate(prior=(0.0, 1.0))
    with pytest.raises(ValueError, match="clip"):
        InversePropensityRate(clip=0.0)
    with pytest.raises(ValueError, match="nothing has been shown"):
        ImpressionFactors().learn(log[log.items < 0])


# --------------------------------------------------------------------------------------------------- loop


def test_two_items_three_rounds_the_rich_get_richer():
    """Nine people, three a round. By luck the worse item was clicked twice, the better one once."""
    world = World(torch.tensor([[0.5, 1.0]]).repeat(9, 1), torch.ones(1))
    start = Log.of_lists(
        torch.tensor([[0], [0], [1]]), torch.ones(3, 1, dtype=torch.bool), torch.ones(1), n_users=9, n_items=2
    )
    loop = FeedbackLoop(world, Popularity, warm_up=0, visitors=3, start=start).run(2, progress=False)
    later = loop.log[loop.log.rounds > 0]
    assert later.items.tolist() == [0] * 6
    assert later.users.tolist() == [3, 4, 5, 6, 7, 8]
    assert loop.rounds["earned"].tolist() == [0.5, 0.5]
    assert int(loop.log.clicked[loop.log.items == 1].sum()) == 1  # the better one stays where it was


def test_a_rate_that_disappoints_lets_the_other_one_in():
    world = World(torch.tensor([[0.5, 1.0]]).repeat(60, 1), torch.ones(1))
    start = Log.of_lists(
        torch.tensor([[0], [0], [1]]),
        torch.ones(3, 1, dtype=torch.bool),
        torch.ones(1),
        n_users=60,
        n_items=2,
    )

    def last(learner):
        loop = FeedbackLoop(world, learner, warm_up=0, visitors=3, start=start).run(19, progress=False)
        return loop.rounds["earned"].iloc[-1]

    assert last(ClickRate((1.0, 1.0))) == 1.0
    assert last(Popularity) == 0.5


def test_a_learner_that_knows_the_truth_earns_all_of_it():
    world = World.draw(30, 40, k=5, seed=1)

    class Oracle:
        def learn(self, log):
            return Table(world.appeal)

    rounds = FeedbackLoop(world, Oracle(), warm_up=1).run(6, progress=False).rounds
    assert rounds["earned"][1:].tolist() == pytest.approx([1.0] * 5, abs=1e-6)
    assert rounds["earned"][0] < 0.6
    explored = FeedbackLoop(world, Oracle(), EpsilonGreedy(0.3), warm_up=1).run(6, progress=False).rounds
    assert explored["learned"][1:].tolist() == pytest.approx([1.0] * 5, abs=1e-6)
    assert (explored["earned"][1:] < 0.95).all()


def test_what_was_clicked_is_not_shown_again():
    world = World(torch.full((10, 30), 0.6), torch.ones(4))
    log = FeedbackLoop(world, EASE, EpsilonGreedy(0.2), warm_up=1).run(5, progress=False).log
    clicked = log.users[log.clicked] * 30 + log.items[log.clicked]
    assert len(clicked.unique()) == len(clicked)
    again = FeedbackLoop(world, EASE, warm_up=1, repeat=True).run(8, progress=False).log
    clicked = again.users[again.clicked] * 30 + again.items[again.clicked]
    assert len(clicked.unique()) < len(clicked)


def test_loops_of_one_seed_start_alike_and_repeat():
    world = World.draw(40, 60, k=5, seed=1)
    a = FeedbackLoop(world, EASE, warm_up=2, seed=3).run(5, progress=False)
    b = FeedbackLoop(world, Popularity, warm_up=2, seed=3).run(5, progress=False)
    again = FeedbackLoop(world, EASE, warm_up=2, seed=3).run(2, progress=False).run(3, progress=False)
    other = FeedbackLoop(world, EASE, warm_up=2, seed=4).run(2, progress=False)
    assert torch.equal(a.log.items, again.log.items)
    assert torch.equal(a.log.clicked, again.log.clicked)
    first = a.log.rounds < 2
    assert torch.equal(a.log.items[first], b.log.items[b.log.rounds < 2])
    assert not torch.equal(a.log.items, b.log.items)
    assert not torch.equal(a.log.items[first], other.log.items)
    assert a.rounds["learned"][:2].isna().all()
    assert a.rounds["learned"][2:].equals(a.rounds["earned"][2:])
    assert a.rounds.index.tolist() == [0, 1, 2, 3, 4]


def test_exploring_loops_have_logs_that_can_be_weighted():
    world = World.draw(40, 60, k=5, seed=1)
    log = FeedbackLoop(world, Popularity, EpsilonGreedy(0.2), warm_up=1).run(4, progress=False).log
    assert bool(((log.at_place > 0) & (log.at_place <= 1)).all())
    assert bool(((log.looked_at > 0) & (log.looked_at <= 1)).all())
    InversePropensityRate().learn(log)
    thompson = FeedbackLoop(world, ClickRate(), ThompsonSampling(), warm_up=1).run(3, progress=False)
    assert thompson.log.at_place[thompson.log.rounds > 0].isnan().all()
    factors = FeedbackLoop(world, ImpressionFactors(), ThompsonSampling(), warm_up=1).run(3, progress=False)
    assert factors.rounds["earned"].notna().all()


def test_overlap_is_the_mean_over_pairs():
    lists = torch.tensor([[0, 1, 2], [2, 3, 4], [0, 2, 5], [6, 7, 8]])
    shares = [len(set(a.tolist()) & set(b.tolist())) / 3 for a, b in itertools.combinations(lists, 2)]
    assert overlap(lists, 9) == pytest.approx(sum(shares) / 6, **PRECISE)
    assert overlap(lists[:1].expand(4, -1), 9) == 1.0
    assert math.isnan(overlap(lists[:1], 9))


def test_total_variation_and_measures():
    assert total_variation(torch.tensor([1, 1]), torch.tensor([3.0, 1.0])) == pytest.approx(0.25)
    assert total_variation(torch.tensor([1, 0]), torch.tensor([0, 5])) == 1.0
    world = World.draw(40, 60, k=5, seed=1)
    loop = FeedbackLoop(world, Popularity, warm_up=1).run(3, progress=False)
    last = loop.log[loop.log.rounds == 2]
    lists = last.items.view(40, 5)
    assert loop.rounds["gini"][2] == pytest.approx(gini(lists, 60))
    assert loop.rounds["clicks"][2] == pytest.approx(float(last.clicked.sum()) / 40)
    before = loop.log[loop.log.rounds == 1].items.view(40, 5)
    kept = [len(set(a.tolist()) & set(b.tolist())) / 5 for a, b in zip(lists, before, strict=True)]
    assert loop.rounds["kept"][2] == pytest.approx(sum(kept) / 40)


def test_loops_refuse_what_cannot_run():
    world = World.draw(20, 30, k=5, seed=1)
    with pytest.raises(TypeError, match="not a model"):
        FeedbackLoop(world, Popularity())
    with pytest.raises(TypeError, match="learner"):
        FeedbackLoop(world, 3)
    with pytest.raises(ValueError, match="k must be"):
        FeedbackLoop(world, Popularity, k=6)
    with pytest.raises(ValueError, match="warm_up"):
        FeedbackLoop(world, Popularity, warm_up=0)
    with pytest.raises(ValueError, match="people"):
        FeedbackLoop(world, Popularity, start=a_log(World.draw(4, 30), UniformLists(), 1))
    with pytest.raises(ValueError, match="at once"):
        FeedbackLoop(world, Popularity, visitors=21)
    with pytest.raises(TypeError, match="has no sample"):
        FeedbackLoop(world, Popularity, ThompsonSampling()).run(2, progress=False)


def test_a_world_on_another_device_gives_the_same_log(device):
    here = World.draw(40, 60, k=5, seed=1)
    there = World(here.appeal.to(device), here.examined.to(device))
    logs = [
        FeedbackLoop(world, ImpressionFactors(), EpsilonGreedy(0.2), warm_up=1).run(3, progress=False).log
        for world in (here, there)
    ]
    assert torch.equal(logs[0].items, logs[1].items)
    assert torch.equal(logs[0].clicked, logs[1].clicked)
