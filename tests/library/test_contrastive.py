import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_lib.data import Interactions
from recsys_lib.losses import nt_xent_loss
from recsys_lib.models import ContrastiveSASRec, SASRec
from recsys_lib.models.core.views import cropped, masked, reordered, thinned

quick = settings(max_examples=30, deadline=None)
SMALL = {"dim": 8, "n_layers": 1, "max_length": 8, "epochs": 3, "learning_rate": 0.01}


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
@given(st.integers(0, 2**31), st.floats(0.05, 1.0))
def test_a_crop_is_a_stretch_of_its_share(seed, share):
    rows, lengths, generator = histories(seed)
    found = kept(*cropped(rows, lengths, share, generator))
    for before, after, n in zip(kept(rows, lengths), found, lengths.tolist(), strict=True):
        assert len(after) == max(1, int(torch.tensor(share) * n))
        start = before.index(after[0])
        assert after == before[start : start + len(after)]


@quick
@given(st.integers(0, 2**31), st.floats(0.05, 0.95))
def test_a_mask_hides_events_and_no_padding(seed, share):
    rows, lengths, generator = histories(seed)
    found, same = masked(rows, lengths, share, 999, generator)
    assert torch.equal(same, lengths)
    there = torch.arange(12) < lengths[:, None]
    assert ((found == rows) | (found == 999))[there].all()
    assert (found == -7)[~there].all()


@quick
@given(st.integers(0, 2**31), st.floats(0.05, 1.0))
def test_reordering_keeps_the_events_and_all_but_a_stretch_in_place(seed, share):
    rows, lengths, generator = histories(seed)
    found, same = reordered(rows, lengths, share, generator)
    assert torch.equal(same, lengths)
    for before, after in zip(kept(rows, lengths), kept(found, same), strict=True):
        assert sorted(after) == sorted(before)
        moved = [k for k, (x, y) in enumerate(zip(before, after, strict=True)) if x != y]
        assert not moved or moved[-1] - moved[0] < max(1, int(torch.tensor(share) * len(before)))


@quick
@given(st.integers(0, 2**31), st.floats(0.0, 0.99))
def test_thinning_keeps_an_order_and_one_event_at_least(seed, share):
    rows, lengths, generator = histories(seed)
    found, less = thinned(rows, lengths, share, generator)
    for before, after in zip(kept(rows, lengths), kept(found, less), strict=True):
        assert after
        assert after == [x for x in before if x in set(after)]


def test_shares_are_kept_in_the_mean():
    generator = torch.Generator().manual_seed(0)
    rows, lengths = torch.arange(50).expand(2000, 50), torch.full((2000,), 50)
    hidden, _ = masked(rows, lengths, 0.3, 999, generator)
    assert (hidden == 999).float().mean() == pytest.approx(0.3, abs=0.01)
    _, left = thinned(rows, lengths, 0.3, generator)
    assert left.float().mean() == pytest.approx(35, abs=0.3)
    # Crops begin everywhere alike, from the first place to the last one possible.
    start = cropped(rows, lengths, 0.5, generator)[0][:, 0]
    times = start.bincount(minlength=26)
    assert len(times) == 26
    assert times.float().std() < 2 * (2000 / 26) ** 0.5
    # In a stretch that is the whole history every order is as likely: the first event ends up anywhere.
    mixed, _ = reordered(rows, lengths, 1.0, generator)
    where = (mixed == 0).float().argmax(1)
    assert where.float().mean() == pytest.approx(24.5, abs=1.2)


def events(n_users: int = 30) -> Interactions:
    """Two kinds of people: one goes round items 0 to 5, the other round 6 to 11, from any place on."""
    rows = [(u, 6 * (u % 2) + (u // 2 + t) % 6, 5.0, 100 * u + t) for u in range(n_users) for t in range(8)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    return Interactions.from_frame(frame, item_ids=range(12))


def fit(model, **options):
    return model.fit(events(), device="cpu", progress=False, **options)


def test_the_loss_is_the_sum_of_its_parts():
    options = SMALL | {"epochs": 1, "dropout": 0.0}
    model = fit(ContrastiveSASRec(views="reorder", reorder_share=0.01, **options))  # views that are the rows
    model.train()
    inter = events()
    for weights in (
        {"next_weight": 1.0, "contrast_weight": 0.0},
        {"next_weight": 0.5, "contrast_weight": 2.0},
    ):
        model.next_weight, model.contrast_weight = weights.values()
        windows, lengths = next(model._batches(inter, torch.Generator().manual_seed(4)))
        loss, n = next(model.losses(inter, torch.Generator().manual_seed(4)))
        hidden, targets = model.questions(windows, lengths, torch.Generator())
        expected = model.next_weight * model.objective(hidden, targets, torch.Generator())
        last = model._last(windows[:, :-1], lengths - 1)
        expected = expected + model.contrast_weight * nt_xent_loss(last, last, model.temperature)
        assert n == len(targets)
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("views", ["any", "crop", "mask", "reorder", "drop"])
def test_contrast_alone_tells_the_kinds_of_people_apart(views):
    options = SMALL | {"epochs": 20}
    model = fit(ContrastiveSASRec(next_weight=0.0, contrast_weight=1.0, views=views, seed=1, **options))
    inter = events()
    crow, items = inter.csr()
    listed = [items[crow[u] : crow[u + 1]] for u in range(30)]
    unit = torch.nn.functional.normalize(model.encode(listed), dim=1)
    cosines = unit @ unit.mT
    kind = torch.arange(30) % 2
    alike = kind[:, None] == kind
    assert cosines[alike].mean() > cosines[~alike].mean() + 0.3
    assert len(model.views_log) == 20
    assert model.views_log[-1]["alignment"] < 1.6  # two random directions are 2 apart


def test_without_negatives_everything_becomes_one_vector():
    class Alike(ContrastiveSASRec):
        def contrast(self, a, b):
            return (1 - torch.nn.functional.cosine_similarity(a, b)).mean()

    options = SMALL | {"epochs": 40, "next_weight": 0.0, "contrast_weight": 1.0}
    gone, held = fit(Alike(**options)), fit(ContrastiveSASRec(**options))
    assert gone.views_log[-1]["uniformity"] > -0.5
    assert gone.views_log[-1]["alignment"] < 0.1
    assert held.views_log[-1]["uniformity"] < gone.views_log[-1]["uniformity"] - 0.5


def test_without_contrast_it_is_sasrec_but_for_the_draws():
    inter = events()
    ours, theirs = (
        fit(ContrastiveSASRec(contrast_weight=0.0, **SMALL | {"epochs": 20})),
        fit(SASRec(**SMALL | {"epochs": 20})),
    )
    assert ours.log[-1]["loss"] == pytest.approx(theirs.log[-1]["loss"], rel=0.2)
    assert not ours.views_log
    assert ours.score(torch.arange(inter.n_users)).shape == (30, 12)


def test_vectors_are_of_the_last_events_read():
    model = fit(ContrastiveSASRec(**SMALL))
    found = model.encode([[0, 1, 2], [], list(range(12))])
    assert found.shape == (3, 8)
    assert not found[1].any()
    torch.testing.assert_close(found[2], model.encode([list(range(4, 12))])[0])
    expected = model.encoder(torch.tensor([[0, 1, 2]]), torch.tensor([3]))[0, 2]
    torch.testing.assert_close(found[0], expected.detach())
    with pytest.raises(IndexError, match="12"):
        model.encode([[12]])


def test_it_is_a_start_for_sasrec():
    first = fit(ContrastiveSASRec(next_weight=0.0, contrast_weight=1.0, **SMALL))
    model = fit(SASRec(**SMALL).start_from(first, ["encoder"], frozen=["encoder.item_embedding"]))
    assert torch.equal(model.encoder.item_embedding.weight, first.encoder.item_embedding.weight[:12])


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="nothing to learn"):
        ContrastiveSASRec(next_weight=0.0, contrast_weight=0.0)
    with pytest.raises(ValueError, match="temperature"):
        ContrastiveSASRec(temperature=0.0)
    with pytest.raises(ValueError, match="views"):
        ContrastiveSASRec(views="flip")
