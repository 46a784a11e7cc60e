"""A model that starts from parts of another one."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn

from recsys_lib.data import Interactions
from recsys_lib.models import BERT4Rec, MatrixFactorization, MultVAE, SASRec, TwoTower

SMALL = {"dim": 8, "n_layers": 1, "max_length": 6, "epochs": 2, "learning_rate": 0.01}


def events(n_users: int = 12, n_items: int = 9, first: int = 0) -> Interactions:
    """Everyone goes round the items, each from another one on."""
    rows = [(u, first + (u + t) % n_items, 5.0, 100 * u + t) for u in range(n_users) for t in range(7)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    return Interactions.from_frame(frame, item_ids=range(first, first + n_items))


def fit(model, inter=None, **options):
    return model.fit(events() if inter is None else inter, device="cpu", progress=False, **options)


def sasrec(**options) -> SASRec:
    return SASRec(**SMALL | options)


@pytest.fixture(scope="module")
def learned() -> SASRec:
    return fit(sasrec(epochs=20, seed=7))


def state(model: nn.Module, part: str = "") -> dict[str, torch.Tensor]:
    return {name: t.detach().clone() for name, t in model.named_parameters() if name.startswith(part)}


def test_a_frozen_start_is_the_other_models_part(learned):
    model = fit(sasrec(epochs=3).start_from(learned, ["encoder.blocks"], frozen=["encoder.blocks"]))
    for name, tensor in state(learned, "encoder.blocks").items():
        assert torch.equal(model.state_dict()[name], tensor), name
    # What was not named began at random, and learned.
    assert not torch.equal(model.encoder.item_embedding.weight, learned.encoder.item_embedding.weight)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_without_training_steps_that_move_it_stays_what_it_was(learned):
    # A rate near nothing: after an epoch every part is where it started.
    rates = {"encoder": 1e-9}
    model = fit(sasrec(epochs=1).start_from(learned, ["encoder"], rates=rates))
    for name, tensor in state(learned, "encoder").items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.score(torch.arange(12)), learned.score(torch.arange(12)))


def test_a_start_is_a_head_start(learned):
    cold = fit(sasrec(epochs=1))
    warm = fit(sasrec(epochs=1).start_from(learned, ["encoder"]))
    assert warm.log[0]["loss"] < 0.6 * cold.log[0]["loss"]


def test_the_copy_is_made_when_it_is_asked_for():
    other = fit(sasrec(epochs=2, seed=3))
    before = state(other, "encoder.item_embedding")
    model = sasrec(epochs=1).start_from(other, ["encoder.item_embedding"], frozen=["encoder.item_embedding"])
    with torch.no_grad():
        other.encoder.item_embedding.weight.zero_()
    fit(model)
    ((name, tensor),) = before.items()
    assert torch.equal(model.state_dict()[name], tensor)
    assert not [name for name in model.state_dict() if "start" in name]


def test_parts_thaw_in_their_epoch(learned):
    seen = []

    class Watched(SASRec):
        def losses(self, examples, generator):
            seen.append(self.encoder.item_embedding.weight.requires_grad)
            yield from super().losses(examples, generator)

    model = Watched(**SMALL | {"epochs": 4})
    model.start_from(learned, ["encoder"], frozen={"encoder.item_embedding": 2, "encoder.norm": None})
    fit(model)
    assert seen == [False, False, True, True]
    assert torch.equal(model.encoder.norm.weight, learned.encoder.norm.weight)
    assert not torch.equal(model.encoder.item_embedding.weight, learned.encoder.item_embedding.weight)
    seen.clear()
    fit(model)  # again, from the same start: the epochs are counted anew
    assert seen == [False, False, True, True]


def test_the_smaller_part_decides_the_rate(learned):
    rates = {"encoder": 0.5, "encoder.item_embedding": 0.1}
    model = sasrec(learning_rate=0.02).start_from(learned, ["encoder"], rates=rates)
    fit(model)
    groups = model._start.groups(model, [(model.encoder, 9.0)], 0.02)
    by_rate = {round(rate, 6): {id(p) for p in module.parameters()} for module, rate in groups}
    assert set(by_rate) == {0.01, 0.002}  # nothing is left to the model's own slower part
    assert by_rate[0.002] == {id(model.encoder.item_embedding.weight)}
    assert len(by_rate[0.01]) == len(list(model.encoder.parameters())) - 1


def test_a_share_of_the_rate_moves_a_part_by_that_share(learned):
    # Adam's first step has the length of the rate in every coordinate that has a gradient.
    moved = {}
    for share in (1.0, 0.25):
        options = {"epochs": 1, "batch_size": 10_000, "dropout": 0.0, "learning_rate": 1e-4}
        model = sasrec(**options).start_from(learned, ["encoder"], rates={"encoder.blocks": share})
        fit(model)
        part = state(model, "encoder.blocks")
        moved[share] = max(
            float((part[n] - t).abs().max()) for n, t in state(learned, "encoder.blocks").items()
        )
    assert moved[0.25] == pytest.approx(0.25 * moved[1.0], rel=0.05)


def test_another_name_and_another_model():
    towers = fit(TwoTower(user_tower="id", dim=8, epochs=2, batch_size=32))
    (there,) = [name for name, p in towers.named_parameters() if name[:5] == "item." and p.shape == (9, 8)]
    parts = {"item_factors": there}
    model = fit(MatrixFactorization(dim=8, epochs=1).start_from(towers, parts, frozen=["item_factors"]))
    assert torch.equal(model.item_factors, dict(towers.named_parameters())[there])


def test_the_row_of_a_mask_stays_out(learned):
    masked = BERT4Rec(**SMALL).start_from(
        learned, ["encoder.item_embedding"], frozen=["encoder.item_embedding"]
    )
    fit(masked)
    assert masked.encoder.item_embedding.weight.shape == (10, 8)
    assert torch.equal(masked.encoder.item_embedding.weight[:9], learned.encoder.item_embedding.weight)
    back = sasrec().start_from(masked, ["encoder.item_embedding"], frozen=["encoder.item_embedding"])
    fit(back)
    assert torch.equal(back.encoder.item_embedding.weight, learned.encoder.item_embedding.weight)


def test_a_part_that_does_not_fit_is_named(learned):
    wide = sasrec(dim=16).start_from(learned, ["encoder.item_embedding"])
    with pytest.raises(ValueError, match=r"encoder.item_embedding.weight is \(9, 8\) .* and \(9, 16\) here"):
        fit(wide)
    assert not wide.fitted
    long = sasrec(max_length=20).start_from(learned, ["encoder"])
    with pytest.raises(ValueError, match=r"encoder.position_embedding.weight is \(6, 8\)"):
        fit(long)
    more = sasrec().start_from(learned, ["encoder"])
    with pytest.raises(ValueError, match=r"encoder.item_embedding.weight is \(9, 8\) .* and \(11, 8\)"):
        fit(more, events(n_items=11))
    deep = sasrec(n_layers=2).start_from(learned, ["encoder"])
    with pytest.raises(ValueError, match=r"has no encoder.blocks.1"):
        fit(deep)
    shallow = sasrec().start_from(fit(sasrec(n_layers=2)), ["encoder"])
    with pytest.raises(ValueError, match=r"SASRec has no encoder.blocks.1"):
        fit(shallow)


def test_other_items_are_refused(learned):
    model = sasrec().start_from(learned, ["encoder"])
    with pytest.raises(ValueError, match="item's number means another one"):
        fit(model, events(first=100))
    # The blocks know no item, so they may go anywhere.
    fit(sasrec().start_from(learned, ["encoder.blocks"]), events(first=100))


def test_wrong_arguments_are_named(learned):
    model = sasrec()
    with pytest.raises(KeyError, match="no part 'decoder'; at the top there are encoder"):
        model.start_from(learned, ["decoder"])
    with pytest.raises(TypeError, match=r"write \['encoder'\]"):
        model.start_from(learned, "encoder")
    with pytest.raises(TypeError, match=r"write \['encoder'\]"):
        model.start_from(learned, ["encoder"], frozen="encoder")
    with pytest.raises(ValueError, match="no part is named"):
        model.start_from(learned, [])
    with pytest.raises(ValueError, match="must be above 0"):
        model.start_from(learned, ["encoder"], rates={"encoder": 0.0})
    with pytest.raises(ValueError, match="at least 1"):
        model.start_from(learned, ["encoder"], frozen={"encoder": 0})
    with pytest.raises(KeyError, match="no part 'encodre'"):
        fit(sasrec().start_from(learned, ["encoder"], frozen=["encodre"]))
    with pytest.raises(ValueError, match="nothing to learn"):
        fit(sasrec().start_from(learned, ["encoder"], frozen=["encoder"]))


def test_a_start_that_failed_leaves_everything_free_to_learn(learned):
    model = sasrec(learning_rate=1e30).start_from(learned, ["encoder"], frozen={"encoder.norm": 5})
    with pytest.raises(FloatingPointError):
        fit(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_saved_model_is_a_start(learned, tmp_path):
    learned.save_pretrained(tmp_path)
    model = sasrec(epochs=1).start_from(
        SASRec.from_pretrained(tmp_path), ["encoder.blocks"], frozen=["encoder.blocks"]
    )
    fit(model)
    for name, tensor in state(learned, "encoder.blocks").items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_without_a_start_nothing_changes():
    assert torch.equal(fit(sasrec()).score(torch.arange(12)), fit(sasrec()).score(torch.arange(12)))
    vae = {"dim": 4, "hidden": 8, "epochs": 3}
    other = fit(MultVAE(**vae, seed=5))
    started = fit(MultVAE(**vae).start_from(other, ["item_rows", "first_bias", "to_code"]))
    assert not torch.equal(started.score(torch.arange(12)), fit(MultVAE(**vae)).score(torch.arange(12)))


def test_ids_of_items_are_compared_by_value(learned):
    inter = events()
    renamed = replace(inter, item_ids=pd.Index([int(i) for i in inter.item_ids]))
    fit(sasrec().start_from(learned, ["encoder"]), renamed)
