"""Profiles of text vectors, against loops over users and items."""

import math

import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from recsys_lib.data import Interactions
from recsys_lib.geometry import Whitening
from recsys_lib.models import TextProfile

N_USERS, N_ITEMS, DIM = 6, 9, 4


@pytest.fixture(scope="module")
def vectors():
    return torch.randn(N_ITEMS, DIM, generator=torch.Generator().manual_seed(0)) + 1


@pytest.fixture(scope="module")
def events() -> Interactions:
    generator = torch.Generator().manual_seed(1)
    rows = [
        (user, int(item), 86_400 * place)
        for user in range(N_USERS - 1)  # the last one has no events
        for place, item in enumerate(torch.randperm(N_ITEMS, generator=generator)[: user + 2])
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    return Interactions.from_frame(frame, user_ids=range(N_USERS), item_ids=range(N_ITEMS))


def compared(vectors, whitening, similarity):
    x = vectors if whitening is None else Whitening.fit(vectors, whitening)(vectors)
    return normalize(x, dim=1) if similarity == "cosine" else x


def by_hand(events, x, profile, similarity, temperature=1.0, recency=0.0):
    scores = torch.zeros(N_USERS, N_ITEMS)
    for user, history in enumerate(events.histories()):
        if not len(history):
            continue
        weights = torch.tensor([(len(history) - place) ** -recency for place in range(len(history))])
        for item in range(N_ITEMS):
            alike = x[history] @ x[item]  # (L,)
            if profile == "max":
                scores[user, item] = alike.max()
            elif profile == "attention":
                share = (alike / temperature).exp() * weights
                scores[user, item] = (share * alike).sum() / share.sum()
            else:
                mean = (weights[:, None] * x[history]).sum(0) / weights.sum()
                mean = normalize(mean, dim=0) if similarity == "cosine" else mean
                scores[user, item] = mean @ x[item]
    return scores


@pytest.mark.parametrize("whitening", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize(
    "options",
    [
        {"profile": "mean"},
        {"profile": "mean", "recency": 0.7},
        {"profile": "attention", "temperature": 0.5},
        {"profile": "attention", "temperature": 2.0, "recency": 0.7},
        {"profile": "max"},
    ],
)
def test_scores_are_those_of_loops(events, vectors, whitening, similarity, options, device, monkeypatch):
    expected = by_hand(events, compared(vectors, whitening, similarity), similarity=similarity, **options)
    model = TextProfile(vectors, similarity=similarity, whitening=whitening, **options)
    model.fit(events, device=device)
    everyone = torch.arange(N_USERS)
    torch.testing.assert_close(model.score(everyone), expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr("recsys_lib.models.text_profile._CELLS", 3 * N_ITEMS)  # in several blocks
    torch.testing.assert_close(model.score(everyone), expected, rtol=1e-4, atol=1e-5)
    assert (model.score(everyone)[-1] == 0).all()


def test_temperature_goes_from_the_mean_similarity_to_the_nearest(events, vectors):
    users = torch.arange(N_USERS - 1)
    score = lambda **options: TextProfile(vectors, **options).fit(events).score(users)  # noqa: E731
    nearest = score(profile="max")
    torch.testing.assert_close(score(profile="attention", temperature=1e-3), nearest, rtol=1e-3, atol=1e-3)
    x = compared(vectors, 0.5, "cosine")
    alike = [x[history] @ x.mT for history in events.histories()[:-1]]
    means = torch.stack([a.mean(0) for a in alike])
    torch.testing.assert_close(score(profile="attention", temperature=1e4), means, rtol=1e-3, atol=1e-3)
    assert (score(profile="attention", temperature=0.3) <= nearest + 1e-6).all()


@pytest.mark.parametrize("profile", ["mean", "attention", "max"])
@pytest.mark.parametrize("whitening", [None, 0.5])
def test_a_text_is_scored_as_if_the_catalog_had_it(events, vectors, profile, whitening):
    model = TextProfile(vectors, profile=profile, whitening=whitening).fit(events)
    users = torch.tensor([3, 0, 5])
    scores = model.score(users)
    torch.testing.assert_close(model.score_texts(users, vectors[[2, 7]]), scores[:, [2, 7]])
    histories = [events.histories()[user] for user in users.tolist()]
    torch.testing.assert_close(model.score_texts(histories, vectors[[2, 7]]), scores[:, [2, 7]])


class Letters:
    """How often a text has each of a few letters."""

    def encode(self, texts):
        return torch.tensor([[text.count(letter) for letter in "abcd"] for text in texts]).float()


def test_new_texts_are_read_by_the_encoder_that_made_the_others(events, tmp_path):
    texts = ["aab", "ab", "b", "cc", "ccd", "d", "abcd", "a", "c"]
    model = TextProfile(texts, encoder=Letters(), whitening=0.0).fit(events)
    users = torch.arange(N_USERS)
    torch.testing.assert_close(model.score_texts(users, ["cc", "d"]), model.score(users)[:, [3, 5]])
    model.save_pretrained(tmp_path)
    loaded = TextProfile.from_pretrained(tmp_path)
    assert torch.equal(loaded.score(users), model.score(users))
    with pytest.raises(ValueError, match="cannot read a new text: set its attribute encoder"):
        loaded.score_texts(users, ["cc"])
    loaded.encoder = Letters()
    assert torch.equal(loaded.score_texts(users, ["cc"]), model.score_texts(users, ["cc"]))
    assert torch.equal(loaded.fit(events).score(users), model.score(users))  # the texts are kept


def test_other_peoples_events_play_no_part(events, vectors):
    model = TextProfile(vectors).fit(events)
    fewer = TextProfile(vectors).fit(events[events.users < 2])
    assert torch.equal(model.score(torch.tensor([0, 1])), fewer.score(torch.tensor([0, 1])))


def test_catalogs_out_of_the_ordinary(events):
    equal = TextProfile(torch.ones(N_ITEMS, 3)).fit(events)
    assert (equal.score(torch.arange(N_USERS)) == 0).all()  # centered, nothing is left
    raw = TextProfile(torch.ones(N_ITEMS, 3), whitening=None).fit(events)
    assert torch.allclose(raw.score(torch.tensor([0])), torch.tensor(1.0))
    one = Interactions.from_frame(pd.DataFrame({"user_id": [0], "item_id": [0]}))
    assert TextProfile(torch.ones(1, 3)).fit(one).score(torch.tensor([0])).isfinite().all()


def test_wrong_arguments_are_named(events, vectors):
    with pytest.raises(ValueError, match=r'takes the nearest item whatever its age.*profile="attention"'):
        TextProfile(vectors, profile="max", recency=0.5)
    with pytest.raises(ValueError, match="needs the items' texts"):
        TextProfile().fit(events)
    with pytest.raises(ValueError, match="9 items, 8 texts"):
        TextProfile(vectors[:8]).fit(events)
    with pytest.raises(ValueError, match="that of item 4 is not"):
        TextProfile(vectors.index_fill(0, torch.tensor([4]), math.nan)).fit(events)
    with pytest.raises(ValueError, match="whitening must be 0 or more"):
        TextProfile(vectors, whitening=-1.0)
    model = TextProfile(vectors, half_life_days=3.0).fit(events)
    with pytest.raises(ValueError, match="a history needs its times"):
        model.score_texts([[1, 2]], vectors[:1])
    with pytest.raises(ValueError, match=r"must be \(1, 4\)"):
        model.score_texts(torch.tensor([0]), torch.ones(1, 5))
    with pytest.raises(IndexError, match="user 6 is unknown"):
        model.score_texts(torch.tensor([6]), vectors[:1])
