"""Users written out as texts, against sentences and cosines by hand."""

import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from recsys_lib.data import Interactions
from recsys_lib.geometry import Whitening
from recsys_lib.models import UserAsText

TEXTS = ["aab", "ab", "b", "cc", "ccd", "d"]


class Letters:
    """How often a text has each of a few letters; remembers what it read."""

    def __init__(self):
        self.read = []

    def encode(self, texts):
        self.read += list(texts)
        return torch.tensor([[text.count(letter) for letter in "abcd"] for text in texts]).float()


@pytest.fixture
def events() -> Interactions:
    rows = [(0, 2, 30), (0, 0, 10), (0, 1, 20), (1, 3, 5), (1, 5, 6), (2, 4, 1), (2, 2, 2), (2, 4, 3)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    return Interactions.from_frame(frame, user_ids=range(4), item_ids=range(6))


def test_what_is_written(events):
    model = UserAsText(TEXTS, template="likes {items}!", separator=", ", encoder=Letters(), max_history=2)
    model.fit(events)
    everyone = torch.arange(4)
    assert model.written(everyone) == ["likes b, ab!", "likes d, cc!", "likes ccd, b!", None]
    assert model.written([[1, 0, 1], []]) == ["likes ab, aab!", None]
    model.newest_first = False
    assert model.written(everyone)[0] == "likes ab, b!"
    model.max_history = 10
    assert model.written(everyone)[0] == "likes aab, ab, b!"


@pytest.mark.parametrize("whitening", [None, 0.0, 0.5])
def test_scores_are_cosines_of_sentences(events, whitening, device):
    model = UserAsText(TEXTS, template="abcd {items}", encoder=Letters(), whitening=whitening)
    model.fit(events, device=device)
    encode = Letters().encode
    told = [sentence for sentence in model.written(torch.arange(4)) if sentence]
    users, items = encode(told), encode(TEXTS)
    if whitening is not None:
        map_ = Whitening.fit(items, whitening)
        items = map_(items)
        users = (users - users.mean(0)) @ (map_.axes * map_.factors).float()
    expected = normalize(users, dim=1) @ normalize(items, dim=1).mT
    scores = model.score(torch.arange(4))
    torch.testing.assert_close(scores[:3], expected, rtol=1e-4, atol=1e-5)
    assert (scores[3] == 0).all()
    histories = [[0, 1, 2], [3, 5], [2, 4], []]
    torch.testing.assert_close(model.score_histories(histories), scores)


def test_the_sentences_own_words_are_heard_unless_centered(events):
    """A template's words pull all users to the same items; the mean over users takes them out."""
    loud = {"template": "aaaaaaaaaa {items}", "encoder": Letters()}
    raw = UserAsText(TEXTS, **loud).fit(events).score(torch.arange(3))
    assert (raw.argmax(1) == 0).all()  # "aab" for everybody
    centered = UserAsText(TEXTS, **loud, whitening=0.0).fit(events).score(torch.arange(3))
    plain = UserAsText(TEXTS, template="{items}", encoder=Letters(), whitening=0.0).fit(events)
    torch.testing.assert_close(centered, plain.score(torch.arange(3)))


def test_a_loaded_model_has_its_texts_and_asks_for_its_encoder(events, tmp_path):
    model = UserAsText(TEXTS, encoder=Letters()).fit(events)
    model.save_pretrained(tmp_path)
    loaded = UserAsText.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="set its attribute encoder"):
        loaded.score(torch.tensor([0]))
    loaded.encoder = Letters()
    assert torch.equal(loaded.score(torch.arange(4)), model.score(torch.arange(4)))
    assert loaded.written(torch.tensor([1])) == model.written(torch.tensor([1]))


def test_users_without_events_are_not_encoded(events):
    model = UserAsText(TEXTS, encoder=Letters()).fit(events)
    model.encoder.read.clear()
    assert (model.score_histories([[], []]) == 0).all()
    assert model.encoder.read == []


def test_wrong_arguments_are_named(events):
    with pytest.raises(ValueError, match=r"template must have \{items\}"):
        UserAsText(TEXTS, template="likes films")
    with pytest.raises(ValueError, match="needs the items' texts"):
        UserAsText(encoder=Letters()).fit(events)
    with pytest.raises(ValueError, match="6 items, 2 texts"):
        UserAsText(["a", "b"], encoder=Letters()).fit(events)
    with pytest.raises(TypeError, match=r"text\[1\] is None"):
        UserAsText(["a", None, "b", "c", "d", "a"], encoder=Letters()).fit(events)
    with pytest.raises(TypeError, match="a single text"):
        UserAsText("abcdef", encoder=Letters()).fit(events)
