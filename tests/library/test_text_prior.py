"""Factors with a prior from texts: their objective by hand, and what the prior does."""

import math

import pandas as pd
import pytest
import torch

from recsys_lib.data import Interactions
from recsys_lib.models import TextPriorMF

N_USERS, N_ITEMS, N_NEW = 40, 30, 6


@pytest.fixture(scope="module")
def events() -> Interactions:
    """Even users choose even items; nobody has chosen the last six items yet."""
    generator = torch.Generator().manual_seed(0)
    rows = [
        (user, 2 * int(half) + user % 2, place)
        for user in range(N_USERS)
        for place, half in enumerate(torch.randperm((N_ITEMS - N_NEW) // 2, generator=generator)[:7])
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    return Interactions.from_frame(frame, user_ids=range(N_USERS + 1), item_ids=range(N_ITEMS))


@pytest.fixture(scope="module")
def text() -> torch.Tensor:
    """(n_items, 3): which kind an item is, and noise."""
    noise = 0.1 * torch.randn(N_ITEMS, 3, generator=torch.Generator().manual_seed(1))
    noise[:, 0] += torch.tensor([(-1.0) ** item for item in range(N_ITEMS)])
    return noise


SMALL = {"dim": 4, "epochs": 30, "batch_size": 32, "learning_rate": 0.02}


def test_the_objective_by_hand(events, text):
    model = TextPriorMF(text, dim=4, epochs=1, batch_size=10_000, l2=0.3, bias_l2=0.1, text_l2=0.7)
    model.fit(events)
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        examples = model.prepare(events, generator)
        torch.nn.init.normal_(model.text_map.weight, generator=generator)
        torch.nn.init.normal_(model.item_bias, generator=generator)
        (loss, n), *_ = list(model.losses(examples, generator))
    assert n == len(events)
    x, W = model.item_text.vectors / 3**0.5, model.text_map.weight.detach()
    p, q, b = model.user_factors.detach(), model.item_factors.detach(), model.item_bias.detach()
    chosen = events.item_counts() > 0
    vectors, bias = q + x @ W[:4].mT, b + x @ W[4]
    scores = (p @ vectors.mT + bias)[:, chosen].log_softmax(1)
    place = chosen.long().cumsum(0) - 1
    expected = -scores[events.users, place[events.items]].mean()
    expected += 0.15 * p[events.users].square().sum(1).mean()
    expected += (0.15 * q[chosen].square().sum() + 0.05 * b[chosen].square().sum()) / N_ITEMS
    expected += 0.35 * W.square().sum() / N_ITEMS
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    everyone = torch.arange(N_USERS)
    torch.testing.assert_close(model.score(everyone), (p @ vectors.mT + bias)[everyone])


def test_a_new_item_is_what_its_text_says(events, text):
    model = TextPriorMF(text, **SMALL).fit(events)
    new = torch.arange(N_ITEMS - N_NEW, N_ITEMS)
    assert (model.item_factors[new] == 0).all()
    scores = model.score(torch.arange(N_USERS))
    even, odd = scores[:, new[::2]], scores[:, new[1::2]]  # (n_users, 3)
    assert (even[::2].amin(1) > odd[::2].amax(1)).all()
    assert (odd[1::2].amin(1) > even[1::2].amax(1)).all()
    told = model.score_texts(torch.tensor([0, 5]), text[new])
    torch.testing.assert_close(told, scores[[0, 5]][:, new])


def test_a_large_penalty_leaves_the_text_out(events, text):
    without = TextPriorMF(text, text_l2=1e4, **SMALL).fit(events)
    other = TextPriorMF(-3 * text.flip(1), text_l2=1e4, **SMALL).fit(events)
    assert without.text_map.weight.abs().max() < 0.05
    users = torch.arange(N_USERS)
    torch.testing.assert_close(without.score(users), other.score(users), atol=0.15, rtol=0.1)
    free = TextPriorMF(text, text_l2=0.01, **SMALL).fit(events)
    assert free.text_map.weight.abs().max() > 0.3


def test_users_without_events_get_the_biases(events, text):
    model = TextPriorMF(text, **SMALL).fit(events)
    nobody = model.score(torch.tensor([N_USERS]))
    _, bias = model._all_items()
    torch.testing.assert_close(nobody[0], bias.detach())


class Letters:
    def encode(self, texts):
        return torch.tensor([[text.count(letter) for letter in "abc"] for text in texts]).float()


def test_new_texts_are_read(events, tmp_path):
    texts = [("a" if item % 2 else "b") * 3 + "c" * (item % 3) for item in range(N_ITEMS)]
    model = TextPriorMF(texts, encoder=Letters(), **SMALL).fit(events)
    users = torch.tensor([0, 1])
    torch.testing.assert_close(
        model.score_texts(users, [texts[-1], texts[-2]]), model.score(users)[:, [N_ITEMS - 1, N_ITEMS - 2]]
    )
    model.save_pretrained(tmp_path)
    loaded = TextPriorMF.from_pretrained(tmp_path)
    assert torch.equal(loaded.score(users), model.score(users))
    with pytest.raises(ValueError, match="set its attribute encoder"):
        loaded.score_texts(users, ["a"])


def test_wrong_arguments_are_named(events, text):
    with pytest.raises(ValueError, match="needs the items' texts"):
        TextPriorMF().fit(events)
    with pytest.raises(ValueError, match="30 items, 3 texts"):
        TextPriorMF(text[:3]).fit(events)
    with pytest.raises(ValueError, match="that of item 2 is not"):
        TextPriorMF(text.index_fill(0, torch.tensor([2]), math.inf)).fit(events)
