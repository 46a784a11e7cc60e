"""What of a world is known and asked, and which items are cold."""

import pytest
import torch

from recsys_lib.simulation import TasteWorld, ask, warm_and_cold


def world(seed: int = 0, people: int = 20) -> TasteWorld:
    generator = torch.Generator().manual_seed(0)
    looks = torch.randn(120, 4, generator=generator)
    return TasteWorld.draw(looks, looks, people, about="looks", events=60, seed=seed)


def test_a_catalog_is_drawn_by_its_seed():
    chosen, cold = warm_and_cold(500, 120, 24, seed=3)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) == 120
    assert int(chosen.max()) < 500
    assert cold.dtype == torch.bool
    assert int(cold.sum()) == 24
    again = warm_and_cold(500, 120, 24, seed=3)
    assert torch.equal(chosen, again[0])
    assert torch.equal(cold, again[1])
    other = warm_and_cold(500, 120, 24, seed=4)
    assert not torch.equal(chosen, other[0])
    assert not torch.equal(cold, other[1])


@pytest.mark.parametrize(
    ("given", "wrong"), [((10, 11, 2), "at most the 10"), ((10, 5, 5), "below n_items=5")]
)
def test_catalogs_that_cannot_be(given, wrong):
    with pytest.raises(ValueError, match=wrong):
        warm_and_cold(*given)


def test_histories_are_what_is_learned_from_person_by_person():
    asked = ask(world(), torch.arange(120) % 6 == 0, known=10, asked=5)
    histories = asked.histories()
    assert len(histories) == 20
    for person, items in enumerate(histories):
        own = asked.train.items[asked.train.users == person]
        assert items.tolist() == own.tolist()
        assert len(items) == 8
    assert asked.items.tolist() == list(range(0, 120, 6))


def test_other_people_are_asked_of_the_same_items():
    here, cold = world(), torch.arange(120) % 6 == 0
    there = ask(here.more_people(30, seed=9), cold, known=10, asked=5)
    assert there.train.n_users == 30
    assert there.world.attributes is here.attributes
    assert not torch.equal(there.world.tastes[:20], here.tastes)


def test_what_is_asked_of_a_world_must_fit():
    with pytest.raises(ValueError, match=r"cold must be \(120,\) bool"):
        ask(world(), torch.zeros(119, dtype=torch.bool))
    with pytest.raises(ValueError, match="fewer than 58 \\+ 5 warm"):
        ask(world(), torch.zeros(120, dtype=torch.bool), known=58, asked=5)
