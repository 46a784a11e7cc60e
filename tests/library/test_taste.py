"""People whose true taste is known: what it is about, what they choose, how good anybody can be."""

import math

import pytest
import torch
from torch import Tensor

from recsys_lib.data import cold_item_split, leave_last_out
from recsys_lib.evaluation import evaluate
from recsys_lib.simulation import TasteWorld, TrueTaste
from recsys_lib.simulation.taste import _choices

N, P = 400, 60


def attributes(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, 5, generator=generator), torch.randn(N, 4, generator=generator)


LOOKS, MEANINGS = attributes(0)


def draw(about: str = "looks", n_people: int = P, **options: float) -> TasteWorld:
    return TasteWorld.draw(LOOKS, MEANINGS, n_people, about=about, **options)


def explained(appeal: Tensor, by: Tensor) -> float:
    """The share of the appeal's variance that a ridge from these attributes explains, on items left out."""
    x = torch.cat([by, torch.ones(len(by), 1)], dim=1).double()
    train, test = slice(0, N // 2), slice(N // 2, N)
    y = appeal.double().mT
    weights = torch.linalg.solve(x[train].mT @ x[train] + torch.eye(x.shape[1]), x[train].mT @ y[train])
    return float(1 - (y[test] - x[test] @ weights).square().mean() / y[test].var())


# ---------------------------------------------------------------------- appeal


@pytest.mark.parametrize(
    ("about", "by_looks", "by_meaning"),
    [
        ("looks", (0.95, 1.0), (-0.2, 0.1)),
        ("meaning", (-0.2, 0.1), (0.95, 1.0)),
        ("both", (0.35, 0.65), (0.35, 0.65)),
        ("neither", (-0.2, 0.1), (-0.2, 0.1)),
    ],
)
def test_taste_is_about_what_it_says(
    about: str, by_looks: tuple[float, float], by_meaning: tuple[float, float]
) -> None:
    appeal = draw(about).appeal
    for by, (low, high) in ((LOOKS, by_looks), (MEANINGS, by_meaning)):
        assert low <= explained(appeal, by) <= high
    if about == "both":
        assert explained(appeal, torch.cat([LOOKS, MEANINGS], dim=1)) > 0.95


@pytest.mark.parametrize("about", ["looks", "meaning", "both", "neither"])
def test_everyone_is_equally_sharp(about: str) -> None:
    appeal = draw(about, sharpness=2.5).appeal
    torch.testing.assert_close(appeal.mean(1), torch.zeros(P), atol=1e-5, rtol=0)
    torch.testing.assert_close(appeal.std(1, correction=0), torch.full((P,), 2.5), atol=1e-4, rtol=0)


def test_three_items_by_hand() -> None:
    looks = torch.tensor([[0.0], [1.0], [2.0]])
    world = TasteWorld.draw(looks, torch.zeros(3, 1), 40, about="looks", events=1, sharpness=2.0)
    # One attribute: a person likes more of it or less. Deviation of 0, 1, 2: sqrt(2/3).
    step = 2.0 / math.sqrt(2 / 3)
    for taste, appeal in zip(world.tastes[:, 0].tolist(), world.appeal, strict=True):
        expected = torch.tensor([-step, 0.0, step]) * math.copysign(1, taste)
        torch.testing.assert_close(appeal, expected)
    # All alike in meaning: no taste at all, and nothing that is not a number.
    flat = TasteWorld.draw(looks, torch.zeros(3, 1), 4, about="meaning", events=1)
    assert torch.equal(flat.appeal, torch.zeros(4, 3))


def test_both_weighs_its_two_parts_alike() -> None:
    # The looks are a hundred times as large and twice as many: that must not matter.
    world = TasteWorld.draw(100 * torch.cat([LOOKS, LOOKS], 1), MEANINGS, 400, about="both")
    by_looks, by_meaning = explained(world.appeal, LOOKS), explained(world.appeal, MEANINGS)
    assert abs(by_looks - by_meaning) < 0.1


# ---------------------------------------------------------------------- choices


def test_the_same_seed_gives_the_same_people() -> None:
    one, two, other = draw(seed=1), draw(seed=1), draw(seed=2)
    assert torch.equal(one.appeal, two.appeal)
    assert torch.equal(one.interactions.items, two.interactions.items)
    assert not torch.equal(one.appeal, other.appeal)
    assert not torch.equal(one.interactions.items, other.interactions.items)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    draw()
    assert torch.equal(torch.get_rng_state(), before)


def test_each_person_chooses_so_many_and_none_twice() -> None:
    inter = draw(events=7).interactions
    assert (inter.n_users, inter.n_items, len(inter)) == (P, N, 7 * P)
    assert inter.user_counts().tolist() == [7] * P
    assert len((inter.users * N + inter.items).unique()) == 7 * P


def test_fewer_choices_are_a_part_of_more() -> None:
    few, many = draw(events=5).interactions, draw(events=20).interactions
    pairs = {inter: set((inter.users * N + inter.items).tolist()) for inter in (few, many)}
    assert pairs[few] < pairs[many]


def test_choices_are_drawn_without_replacement_from_the_softmax() -> None:
    # Two of three items, by the exact chances of the sets: P(a, then b) = p_a p_b / (1 - p_a).
    logits = torch.tensor([0.0, 1.0, 2.0])
    p = logits.softmax(0).tolist()
    people = 20_000
    inter = _choices(logits.expand(people, 3), 2, torch.Generator().manual_seed(0))
    sets = inter.items.view(people, 2).sort(1).values
    for a, b in ((0, 1), (0, 2), (1, 2)):
        exact = p[a] * p[b] * (1 / (1 - p[a]) + 1 / (1 - p[b]))
        share = float(((sets[:, 0] == a) & (sets[:, 1] == b)).double().mean())
        assert share == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / people))
    # And in no order: the better liked is first as often as last.
    first = inter.items.view(people, 2)[:, 0] == sets[:, 1]
    assert float(first.double().mean()) == pytest.approx(0.5, abs=0.015)


def test_the_last_choices_are_like_the_first() -> None:
    world = draw("looks", 400, events=20)
    liked = world.appeal[world.interactions.users, world.interactions.items].view(400, 20)
    gap = liked[:, :10].mean(1) - liked[:, 10:].mean(1)
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / 20


def test_no_sharpness_is_no_taste() -> None:
    world = draw(sharpness=0.0)
    assert torch.equal(world.appeal, torch.zeros(P, N))
    assert world.interactions.item_counts().max() < 15


# ---------------------------------------------------------------------- the best possible


@pytest.mark.parametrize("about", ["looks", "meaning", "both", "neither"])
def test_nobody_ranks_better_than_the_truth(about: str) -> None:
    world = draw(about, 300)
    split = leave_last_out(world.interactions, n=0.25)
    best = world.best(split.test, seen=split.history)
    generator = torch.Generator().manual_seed(1)
    noisy = TrueTaste(world.appeal + torch.randn(world.appeal.shape, generator=generator))
    chance = TrueTaste(torch.rand(world.appeal.shape, generator=generator))
    values = [
        evaluate(model, split.test, seen=split.history, progress=False).metrics["ndcg@10"]
        for model in (world.truth, noisy, chance)
    ]
    assert best.metrics["ndcg@10"] == values[0] > values[1] > 3 * values[2]
    assert values[0] < 1


def test_the_truth_ranks_new_items_too() -> None:
    world = draw("meaning", 200)
    split = cold_item_split(world.interactions)
    best = world.best(split.test, seen=split.history)
    popular = TrueTaste(split.train.item_counts().float().expand(200, -1))
    other = evaluate(popular, split.test, seen=split.history, progress=False)
    assert best.metrics["ndcg@10"] > 5 * other.metrics["ndcg@10"]


@pytest.mark.parametrize("about", ["looks", "neither"])
def test_more_people_live_in_the_same_world(about: str) -> None:
    world = draw(about)
    more = world.more_people(25, seed=9)
    assert torch.equal(more.attributes, world.attributes)
    assert more.appeal.shape == (25, N)
    assert len(more.interactions) == 25 * 20
    assert not torch.equal(more.tastes[:5], world.tastes[:5])
    # Nobody's taste leaves the space that the items have.
    assert (
        torch.linalg.matrix_rank(torch.cat([world.appeal, more.appeal]), rtol=1e-4)
        <= world.attributes.shape[1]
    )
    assert len(world.more_people(3, events=4, seed=9).interactions) == 12


# ---------------------------------------------------------------------- what is refused


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="about must be one of looks, meaning, both, neither"):
        draw("price")
    with pytest.raises(ValueError, match="fewer than the 400 items"):
        draw(events=400)
    with pytest.raises(ValueError, match="sharpness must be 0 or more"):
        draw(sharpness=-1.0)
    with pytest.raises(ValueError, match="a row for each item"):
        TasteWorld.draw(LOOKS, MEANINGS[:-1], 3, about="looks")
    with pytest.raises(ValueError, match="must be finite"):
        TasteWorld.draw(LOOKS.index_fill(0, torch.tensor([3]), math.nan), MEANINGS, 3, about="meaning")
    with pytest.raises(TypeError, match="n_people"):
        draw(n_people=2.5)
