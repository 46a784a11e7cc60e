from itertools import pairwise

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_lib.data import Interactions
from recsys_lib.models import SASRec, SequenceDenoiser
from recsys_lib.models.core.corruptions import cut_off, deleted, infilled, permuted

quick = settings(max_examples=30, deadline=None)
SMALL = {"dim": 8, "n_layers": 1, "max_length": 8, "epochs": 3, "learning_rate": 0.01}
MASK = 999


def histories(seed: int):
    """Rows (B, T) of distinct numbers, with -7 at their padding, and lengths (B,)."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (6,), generator=generator)
    rows = torch.arange(6 * 12).view(6, 12)
    there = torch.arange(12) < lengths[:, None]
    return rows.masked_fill(~there, -7), lengths, generator


def kept(rows, lengths):
    return [row[:n].tolist() for row, n in zip(rows, lengths.tolist(), strict=True)]


@quick
@given(st.integers(0, 2**31), st.floats(0.0, 0.99))
def test_deletion_keeps_the_order_of_what_is_left(seed, share):
    rows, lengths, generator = histories(seed)
    for before, after in zip(
        kept(rows, lengths), kept(*deleted(rows, lengths, share, generator)), strict=True
    ):
        assert after
        assert after == [x for x in before if x in set(after)]


@quick
@given(st.integers(0, 2**31), st.floats(0.05, 1.0))
def test_permutation_keeps_the_events(seed, share):
    rows, lengths, generator = histories(seed)
    for before, after in zip(
        kept(rows, lengths), kept(*permuted(rows, lengths, share, generator)), strict=True
    ):
        assert sorted(after) == sorted(before)


@quick
@given(st.integers(0, 2**31), st.floats(0.05, 0.95), st.floats(0.2, 6.0))
def test_infilling_puts_one_mask_in_the_place_of_a_span(seed, share, span):
    rows, lengths, generator = histories(seed)
    found = infilled(rows, lengths, share, span, MASK, generator)
    for before, after in zip(kept(rows, lengths), kept(*found), strict=True):
        assert after
        assert -7 not in after
        # No two masks side by side, and one between events if and only if some are missing there.
        edges = [before[0] - 1, *after, before[-1] + 1]
        for left, right in pairwise(edges):
            if MASK not in (left, right):
                assert right == left + 1
            assert (left, right) != (MASK, MASK)
        for left, middle, right in zip(edges, edges[1:], edges[2:], strict=False):
            if middle == MASK:
                assert right > left + 1


def test_spans_have_their_share_and_their_size():
    generator = torch.Generator().manual_seed(0)
    rows, lengths = torch.arange(200).expand(500, 200), torch.full((500,), 200)
    found, left = infilled(rows, lengths, 0.3, 3.0, MASK, generator)
    there = torch.arange(200) < left[:, None]
    masks = ((found == MASK) & there).sum()
    missing = 500 * 200 - (left.sum() - masks)
    assert missing / (500 * 200) == pytest.approx(0.3, abs=0.01)
    assert 3.05 < missing / masks < 4.2  # spans that touch are one, so above the mean of one span
    tiny, left = infilled(rows, lengths, 0.01, 3.0, MASK, generator)
    there = torch.arange(200) < left[:, None]
    masks = ((tiny == MASK) & there).sum()
    missing = 500 * 200 - (left.sum() - masks)
    assert missing / masks == pytest.approx(3 + 2.718281828**-3, abs=0.25)


def test_ends_are_cut_evenly_and_something_is_left():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.full((4000,), 5)
    left = cut_off(lengths, 0.5, generator)
    times = left.bincount(minlength=6)
    assert times[5] == pytest.approx(2000, abs=150)
    assert times[0] == 0
    assert times[1:5].tolist() == pytest.approx([500] * 4, abs=100)
    assert torch.equal(cut_off(lengths, 0.0, generator), lengths)
    assert (cut_off(torch.ones(50, dtype=torch.int64), 1.0, generator) == 1).all()


def events(n_users: int = 30) -> Interactions:
    """Two kinds of people: one goes round items 0 to 5, the other round 6 to 11, from any place on."""
    rows = [(u, 6 * (u % 2) + (u // 2 + t) % 6, 5.0, 100 * u + t) for u in range(n_users) for t in range(8)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    return Interactions.from_frame(frame, item_ids=range(12))


def fit(**options):
    return SequenceDenoiser(**(SMALL | options)).fit(events(), device="cpu", progress=False)


def test_the_decoder_never_sees_what_it_must_write():
    model = fit(n_decoder_layers=2)
    generator = torch.Generator().manual_seed(1)
    row = torch.randint(12, (1, 7), generator=generator)
    n = torch.tensor([7])
    damaged, left = torch.tensor([[0, 1]]), torch.tensor([2])
    with torch.no_grad():
        said = model.restore(damaged, left, row[:, :-1], n)
        for place in range(7):
            other = row.clone()
            other[0, place:] = (other[0, place:] + 1) % 12
            again = model.restore(damaged, left, other[:, :-1], n)
            # What stands at a place, and what follows, changes nothing up to it; later it does.
            torch.testing.assert_close(again[0, : place + 1], said[0, : place + 1])
            if place < 6:
                assert not torch.allclose(again[0, place + 1], said[0, place + 1], atol=1e-4)


@pytest.mark.parametrize("damage", ["any", "delete", "permute", "infill", "nothing"])
def test_questions_are_all_events_and_see_only_what_is_left(damage):
    model = fit(damage=damage, next_rate=1.0, dropout=0.0)
    rows, lengths = torch.tensor([[0, 1, 2, 3, 4, 5], [6, 7, 8, 0, 0, 0]]), torch.tensor([6, 3])
    for seed in range(5):
        hidden, targets = model.questions(rows, lengths, torch.Generator().manual_seed(seed))
        assert targets.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
        # The last event is cut off in every history, and nothing writes it but the answer itself.
        changed = rows.clone()
        changed[0, 5], changed[1, 2] = 11, 10
        again, other = model.questions(changed, lengths, torch.Generator().manual_seed(seed))
        assert other.tolist() == [0, 1, 2, 3, 4, 11, 6, 7, 10]
        torch.testing.assert_close(again, hidden)


def test_padding_changes_nothing():
    model = fit()
    rows, lengths = torch.tensor([[0, 1, 2]]), torch.tensor([3])
    wide = torch.tensor([[0, 1, 2, 9, 9], [3, 4, 5, 0, 1]])
    with torch.no_grad():
        alone = model.restore(rows, lengths, rows, lengths + 1)
        beside = model.restore(wide, torch.tensor([3, 5]), wide, torch.tensor([4, 6]))
    torch.testing.assert_close(beside[:1, :4], alone)


def test_scores_are_products_of_the_vectors_that_it_encodes():
    model = fit()
    listed = [[0, 1, 2], [], [6] * 20]
    vectors = model.encode(listed)
    assert vectors.shape == (3, 8)
    assert vectors.dtype == torch.float32
    assert (vectors[1] == 0).all()
    items = model.encoder.item_embedding.weight[:12].detach()
    scores = model.score_histories(listed)
    torch.testing.assert_close(scores[[0, 2]], vectors[[0, 2]] @ items.mT)
    torch.testing.assert_close(scores[1], model.log_popularity)
    with pytest.raises(IndexError, match="item 99"):
        model.encode([[99]])


@pytest.mark.parametrize("damage", ["any", "delete", "permute", "infill"])
def test_what_comes_next_is_learned(damage):
    model = fit(damage=damage, epochs=40, dim=16)
    scores = model.score_histories([[0, 1, 2], [8, 9, 10, 11]])
    assert scores.argmax(dim=1).tolist() == [3, 6]


def test_deleted_events_are_restored():
    model = fit(damage="delete", epochs=60, dim=16, next_rate=0.0)
    whole, n = torch.tensor([[0, 1, 2, 3, 4, 5]]), torch.tensor([6])
    with torch.no_grad():
        said = model.restore(torch.tensor([[0, 2, 4, 5]]), torch.tensor([4]), whole[:, :-1], n)
        said = said @ model.encoder.item_embedding.weight[:12].mT
    assert (said[0].argmax(dim=1) == whole[0]).sum() >= 5


def test_its_encoder_starts_another_transformer():
    model = fit()
    other = SASRec(**SMALL).start_from(model, ["encoder.item_embedding", "encoder.blocks"])
    other.epochs, other.learning_rate = 1, 1e-12
    other.fit(events(), device="cpu", progress=False)
    torch.testing.assert_close(
        other.encoder.item_embedding.weight, model.encoder.item_embedding.weight[:12], atol=1e-6, rtol=0
    )


def test_an_impossible_damage_is_refused():
    with pytest.raises(ValueError, match="damage"):
        SequenceDenoiser(damage="burn")
