"""Towers that read texts: encoders in front of them, and encoders that learn along."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from small_models import own_copy, sentences

import recsys_lib
from recsys_lib.data import Interactions
from recsys_lib.models import TwoTower
from recsys_lib.models.core.item_text import ItemText
from recsys_lib.text import TextEncoder

TEXTS = sentences(6)
ROWS = [(u, (u + t) % 5, t) for u in range(4) for t in range(4)]  # item 5 has no events
EVENTS = Interactions.from_frame(
    pd.DataFrame(ROWS, columns=["user_id", "item_id", "timestamp"]), item_ids=range(6)
)


def fit(**options) -> TwoTower:
    model = TwoTower(**{"dim": 4, "epochs": 2, "batch_size": 4, "item_tower": "text"} | options)
    return model.fit(EVENTS, device="cpu", progress=False)


def everyone(model: TwoTower) -> torch.Tensor:
    return model.score(torch.arange(4))


class Letters:
    """An encoder of one's own: how often each of five letters is in a text."""

    def encode(self, texts):
        return torch.tensor([[float(text.count(letter)) for letter in "w1234"] for text in texts])


def test_texts_are_read_by_the_encoder_of_that_name(models):
    encoder = TextEncoder(models["bert"], device="cpu", cache=False)
    model = fit(text=TEXTS, text_model=str(models["bert"]), user_tower="text")
    by_hand = fit(text=encoder.encode(TEXTS), user_tower="text")
    torch.testing.assert_close(everyone(model), everyone(by_hand))
    torch.testing.assert_close(model.encode_items(TEXTS), model.encode_items())
    new = sentences(3, seed=9)
    torch.testing.assert_close(model.encode_items(new), model.encode_items(encoder.encode(new)))


def test_a_loaded_model_reads_new_texts(models, tmp_path):
    model = fit(text=TEXTS, text_model=str(models["bert"]))
    model.save_pretrained(tmp_path / "a")
    new = sentences(3, seed=9)
    torch.testing.assert_close(recsys_lib.load(tmp_path / "a").encode_items(new), model.encode_items(new))
    # An encoder of one's own is not saved with the model, and no other is taken in its place.
    own = fit(text=TEXTS, encoder=Letters())
    own.save_pretrained(tmp_path / "b")
    loaded = recsys_lib.load(tmp_path / "b")
    with pytest.raises(ValueError, match="set its attribute encoder"):
        loaded.encode_items(new)
    loaded.encoder = Letters()
    torch.testing.assert_close(loaded.encode_items(new), own.encode_items(new))
    with pytest.raises(TypeError, match=r"write \[text\]"):
        loaded.encode_items("w1 w2")


def test_vectors_are_centered_and_scaled_and_new_ones_alike():
    vectors = 0.01 * torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) + 3
    kept = ItemText()
    kept.keep(vectors, 50, None, "", tokens=False)
    assert kept.vectors.mean(0).abs().max() < 1e-4
    assert kept.vectors.square().mean() == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(kept.of_vectors(vectors[3:5]), kept.vectors[3:5])
    torch.testing.assert_close(kept.vectors * kept.size + kept.center, vectors)
    again = ItemText()
    again.keep(vectors.numpy(), 50, None, "", tokens=False)
    assert torch.equal(again.vectors, kept.vectors)
    for n in (1, 50):  # where there is no difference, none is made up
        kept.keep(vectors[:1].expand(n, -1), n, None, "", tokens=False)
        assert kept.vectors.abs().max() < 0.1


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_an_encoder_that_learns_along(models, tmp_path, kind):
    folder = str(models[kind])
    options = {"text": TEXTS, "text_model": folder, "fine_tune": True}
    model = fit(**options, encoder_learning_rate=1e-3)
    first = TextEncoder(folder, device="cpu").model.state_dict()
    # A pooler that no file has is drawn anew at each loading, and not used.
    now = {name: weight for name, weight in model.item.encoder.state_dict().items() if "pooler" not in name}
    moved = {name: (weight - first[name]).abs().max() for name, weight in now.items() if name in first}
    assert max(moved.values()) > 1e-4
    assert max(moved.values()) < 0.1  # at the encoder's own rate, not at that of the map
    # Texts are read one by one, whatever they share a batch with.
    torch.testing.assert_close(model.encode_items(TEXTS[:1]), model.encode_items()[:1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.encode_items(TEXTS), model.encode_items(), rtol=1e-4, atol=1e-5)
    assert model.encode_items(torch.tensor([5])).norm() > 0  # an item without events
    with pytest.raises(ValueError, match="reads the texts themselves"):
        model.encode_items(torch.zeros(1, 16))
    model.save_pretrained(tmp_path)
    loaded = recsys_lib.load(tmp_path)
    assert torch.equal(everyone(loaded), everyone(model))
    torch.testing.assert_close(loaded.encode_items(TEXTS), model.encode_items(TEXTS))
    assert torch.equal(everyone(fit(**options)), everyone(fit(**options)))


def test_what_the_encoder_has_learned_is_in_the_files(models, tmp_path: Path):
    folder = own_copy(models["bert"], tmp_path / "bert")
    model = fit(text=TEXTS, text_model=str(folder), fine_tune=True, encoder_learning_rate=0.01)
    model.save_pretrained(tmp_path / "model")
    loaded = recsys_lib.load(tmp_path / "model")
    first = fit(text=TEXTS, text_model=str(folder), fine_tune=True, encoder_learning_rate=1e-12)
    assert not torch.allclose(loaded.encode_items(TEXTS), first.encode_items(TEXTS), atol=0.01)


def test_an_encoder_that_learns_along_beside_texts_of_histories(models):
    model = fit(text=TEXTS, text_model=str(models["bert"]), fine_tune=True, user_tower="text")
    assert everyone(model).isfinite().all()
    assert model.encode_users([[5]]).shape == (1, 4)
