"""Items of several modalities: what each fusion computes, and what it does where something is missing."""

import pandas as pd
import pytest
import torch

from recsys_lib.attention import CrossAttention
from recsys_lib.data import Interactions
from recsys_lib.models import MultimodalRecommender
from recsys_lib.models.core.fusions import CrossFusion, EarlyFusion, GatedFusion, LateFusion

FUSIONS = ("late", "early", "gated", "cross_attention")
N_USERS, N_ITEMS = 12, 15
EVERYONE = torch.arange(N_USERS)


@pytest.fixture(scope="module")
def events() -> Interactions:
    """Everybody has five of the first twelve items; the last three have no event."""
    generator = torch.Generator().manual_seed(0)
    items = torch.stack([torch.randperm(12, generator=generator)[:5] for _ in range(N_USERS)])  # (U, 5)
    frame = pd.DataFrame(
        {"user_id": EVERYONE.repeat_interleave(5).numpy(), "item_id": items.flatten().numpy()}
    )
    return Interactions.from_frame(frame, user_ids=range(N_USERS), item_ids=range(N_ITEMS))


@pytest.fixture(scope="module")
def content() -> dict[str, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(N_ITEMS, 6, generator=generator)  # (n_items, 6)
    image = 50 + 9 * torch.randn(N_ITEMS, 4, generator=generator)  # (n_items, 4)
    image[[2, 13]] = torch.nan
    return {"id": None, "text": text, "image": image}


def made(content, events, fusion="late", **options) -> MultimodalRecommender:
    given = {"dim": 8, "epochs": 4, "batch_size": 16, "modality_dropout": 0.2, "fusion": fusion} | options
    return MultimodalRecommender(content, **given).fit(events, device="cpu", progress=False)


@pytest.fixture(scope="module", params=FUSIONS)
def fitted(request, content, events) -> MultimodalRecommender:
    return made(content, events, request.param)


def parts(n_people=5, n_items=7, m=3, d=8):
    """Random people, tokens, and which are present: every item has some."""
    generator = torch.Generator().manual_seed(2)
    users = torch.randn(n_people, m, d, generator=generator)  # (B, M, d)
    tokens = torch.randn(n_items, m, d, generator=generator)  # (N, M, d)
    present = torch.rand(n_items, m, generator=generator) < 0.6  # (N, M)
    present[:, 0] |= ~present.any(dim=1)
    return users, tokens, present


def randomized(fusion, *sizes):
    """A fusion whose weights are all random: what starts at zero would hide a fault."""
    torch.manual_seed(3)
    made = fusion(*sizes)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


# What each fusion computes.


def test_late_fusion_is_the_sum_of_the_parts():
    users, tokens, present = parts()
    found = LateFusion(8, 3, 2)(users, tokens, present)
    for b in range(5):
        for n in range(7):
            by_hand = sum(float(users[b, m] @ tokens[n, m]) for m in range(3))
            assert float(found[b, n]) == pytest.approx(by_hand, rel=1e-4, abs=1e-5)


def test_late_fusion_of_a_fitted_model_is_the_sum_of_what_its_modalities_score(content, events):
    model = made(content, events)
    total = torch.zeros(N_USERS, N_ITEMS)
    for name, features in (("id", None), ("text", content["text"]), ("image", content["image"])):
        m = model.names.index(name)
        if features is None:
            x, there = torch.eye(N_ITEMS), torch.arange(N_ITEMS) < 12
        else:
            there = ~features.isnan().any(dim=1)
            x = features - features[there].mean(dim=0)
            x = x / x[there].square().sum(dim=1).mean().sqrt()
        said = x.nan_to_num() @ model.of_items[m].detach()  # (n_items, d)
        said[~there] = model.missing[m].detach()
        read = x.nan_to_num() @ model.of_histories[m].detach()
        for user in range(N_USERS):
            own = events.items[events.users == user]
            own = own[there[own]]
            total[user] += said @ read[own].mean(dim=0)
    torch.testing.assert_close(model.score(EVERYONE), total, rtol=1e-4, atol=1e-5)


def test_the_gate_is_the_softmax_of_its_logits():
    users, tokens, present = parts()
    fusion = randomized(GatedFusion, 8, 3, 2)
    gates = fusion.gates(tokens, present)
    for n in range(7):
        seen = [tokens[n, m].tanh() * present[n, m] for m in range(3)]
        logits = fusion.gate.weight @ torch.cat([*seen, present[n].float()]) + fusion.gate.bias
        shares = logits.exp() * present[n]
        torch.testing.assert_close(gates[n], shares / shares.sum())
        item = sum(gates[n, m] * tokens[n, m].tanh() for m in range(3))
        torch.testing.assert_close(fusion(users, tokens, present)[:, n], users.sum(dim=1) @ item)


def test_early_fusion_starts_as_the_mean_and_is_the_block_of_the_tokens():
    users, tokens, present = parts()
    fusion = EarlyFusion(8, 3, 2)
    torch.testing.assert_close(fusion.item(tokens), tokens.mean(dim=1))
    fusion = randomized(EarlyFusion, 8, 3, 2)
    by_hand = torch.stack([fusion.block(token[None] + fusion.kind)[0].mean(dim=0) for token in tokens])
    assert not torch.allclose(by_hand, tokens.mean(dim=1), atol=0.1)
    torch.testing.assert_close(fusion(users, tokens, present), users.sum(dim=1) @ by_hand.mT)


def test_cross_fusion_is_the_cross_attention_of_every_pair():
    users, tokens, present = parts()
    fusion = CrossFusion(8, 3, 2)
    start = users.sum(dim=1) @ tokens.sum(dim=1).mT
    torch.testing.assert_close(fusion(users, tokens, present), start)

    fusion = randomized(CrossFusion, 8, 3, 2)
    assert isinstance(fusion.cross, CrossAttention)
    x = users.sum(dim=1)  # (B, d)
    context = tokens + fusion.kind  # (N, M, d)
    found = fusion.cross(x[:, None, None], context[None], present[None, :, None])[:, :, 0]  # (B, N, d)
    by_hand = (found * tokens.sum(dim=1)).sum(dim=-1)  # (B, N)
    torch.testing.assert_close(fusion(users, tokens, present), by_hand, rtol=1e-4, atol=1e-4)
    looks = fusion.cross.weights(x[:, None, None], context[None], present[None, :, None])  # (B, N, H, 1, M)
    found = fusion.weights(x, tokens, present).permute(2, 3, 1, 0)  # (B, N, H, M)
    torch.testing.assert_close(found, looks[..., 0, :])


def test_an_item_with_nothing_has_finite_gradients():
    for fusion in (GatedFusion, CrossFusion):
        users, tokens, present = parts()
        present[3] = False
        users.requires_grad_()
        tokens.requires_grad_()
        randomized(fusion, 8, 3, 2)(users, tokens, present).sum().backward()
        assert users.grad.isfinite().all()
        assert tokens.grad.isfinite().all()


# What is missing.


def test_gates_sum_to_one_and_are_zero_for_what_is_missing(content, events):
    model = made(content, events, "gated", epochs=10)
    gates = model.gates()
    assert model.names == ["id", "image", "text"]
    torch.testing.assert_close(gates.sum(dim=1), torch.ones(N_ITEMS))
    assert (gates[12:, 0] == 0).all()  # no event, no number
    assert (gates[[2, 13], 1] == 0).all()
    assert (gates[:, 2] > 0).all()
    assert gates[:12].std(dim=0).max() > 1e-4  # it says something of each item
    torch.testing.assert_close(model.gates(torch.tensor([13, 0])), gates[[13, 0]])
    assert (model.without("text").gates()[:, 2] == 0).all()
    assert (model.without("text", "image", "id").gates() == 0).all()


def test_who_looks_at_what_sums_to_one(content, events):
    model = made(content, events, "cross_attention")
    looks = model.attention(torch.tensor([4, 0]))
    assert looks.shape == (2, 2, N_ITEMS, 3)
    torch.testing.assert_close(looks.sum(dim=-1), torch.ones(2, 2, N_ITEMS))
    assert (looks[:, :, [2, 13], 1] == 0).all()


def test_content_that_is_missing_cannot_be_seen(fitted):
    """Whatever an image showed, without it nobody knows."""
    generator = torch.Generator().manual_seed(5)
    other = fitted.with_content(image=1e3 * torch.randn(N_ITEMS, 4, generator=generator))
    assert not torch.allclose(other.score(EVERYONE), fitted.score(EVERYONE))
    torch.testing.assert_close(
        other.without("image").score(EVERYONE), fitted.without("image").score(EVERYONE), rtol=0, atol=0
    )


def test_what_is_hidden_in_training_cannot_be_seen(content, events):
    hidden = torch.arange(N_ITEMS) % 4 == 1
    changed = content["text"].clone()
    changed[hidden] += 1000
    for fusion in FUSIONS:
        a = made(content, events, fusion, present={"text": ~hidden})
        b = made(content | {"text": changed}, events, fusion, present={"text": ~hidden})
        assert torch.equal(a.score(EVERYONE), b.score(EVERYONE)), fusion
        gone = content["text"].clone()
        gone[hidden] = torch.nan
        c = made(content | {"text": gone}, events, fusion)
        assert torch.equal(a.score(EVERYONE), c.score(EVERYONE)), fusion


def test_only_the_items_that_lack_it_change(fitted):
    """Of the items scored; a history that holds one of them is read without it as well."""
    lacking = torch.arange(N_ITEMS) == 14  # in nobody's history
    before, after = fitted.score(EVERYONE), fitted.without("text", items=lacking).score(EVERYONE)
    torch.testing.assert_close(before[:, :14], after[:, :14])
    assert not torch.allclose(before[:, 14], after[:, 14])


def test_a_copy_without_leaves_the_model_alone(fitted, tmp_path):
    before = fitted.score(EVERYONE)
    other = fitted.without("text")
    assert not torch.allclose(other.score(EVERYONE), before)
    assert torch.equal(fitted.score(EVERYONE), before)
    other.save_pretrained(tmp_path)
    again = MultimodalRecommender.from_pretrained(tmp_path)
    assert torch.equal(again.score(EVERYONE), other.score(EVERYONE))


def test_the_same_content_is_the_same_model(fitted, content):
    same = fitted.with_content(text=content["text"], image=content["image"])
    torch.testing.assert_close(same.score(EVERYONE), fitted.score(EVERYONE))


def test_items_without_events_are_told_apart_by_content_alone(content, events):
    """Two with the same content get the same scores, whatever their numbers."""
    text, image = content["text"].clone(), content["image"].clone()
    text[13], image[13] = text[14], image[14]
    for fusion in FUSIONS:
        scores = made({"id": None, "text": text, "image": image}, events, fusion).score(EVERYONE)
        assert torch.equal(scores[:, 13], scores[:, 14])
        assert not torch.allclose(scores[:, 12], scores[:, 14])
    numbers = made(None, events).score(EVERYONE)
    assert torch.equal(numbers[:, 12], numbers[:, 14])


def test_the_shared_vector_is_learned_where_something_is_missing(content, events):
    whole = {"id": None, "text": content["text"]}
    assert not made(whole, events, modality_dropout=0.0).missing.any()
    assert made(whole, events, modality_dropout=0.3).missing.abs().amin() > 0
    lacking = made(content, events, modality_dropout=0.0)  # an item with events has no image
    assert lacking.missing[lacking.names.index("image")].abs().amin() > 0
    assert not lacking.missing[lacking.names.index("text")].any()


def test_modality_dropout_hides_its_share_and_never_all(content, events):
    model = made(content, events, modality_dropout=0.5, epochs=1)
    generator = torch.Generator().manual_seed(0)
    shown = torch.stack([model._shown(generator) for _ in range(4000)])  # (4000, n_items, M)
    assert shown.any(dim=2).all()
    assert not (shown & ~model.there).any()
    # All three would be hidden with probability 1/8; then the best of three is shown: 1/2 + 1/8 / 3.
    assert float(shown[:, 0].float().mean()) == pytest.approx(1 / 2 + 1 / 24, abs=0.02)
    # Item 13 has its text alone.
    assert shown[:, 13, model.names.index("text")].all()


# The order, people, and what makes no sense.


def test_the_order_of_the_modalities_changes_nothing(content, events):
    for fusion in FUSIONS:
        turned = dict(reversed(content.items()))
        assert list(turned) != list(content)
        a, b = (made(given, events, fusion).score(EVERYONE) for given in (content, turned))
        assert torch.equal(a, b)


@pytest.mark.parametrize("fusion", [LateFusion, EarlyFusion, GatedFusion, CrossFusion])
def test_modalities_have_no_places(fusion):
    """Turned around together with what belongs to them, they score the same."""
    users, tokens, present = parts()
    order = torch.tensor([2, 0, 1])
    one = randomized(fusion, 8, 3, 2)
    other = fusion(8, 3, 2)
    state = one.state_dict()
    if "kind" in state:
        state["kind"] = state["kind"][order]
    if "gate.weight" in state:
        weight = state["gate.weight"][order]  # (M, M d + M)
        read, there = weight.split([24, 3], dim=1)
        read = read.unflatten(1, (3, 8))[:, order].flatten(1)
        state |= {
            "gate.weight": torch.cat([read, there[:, order]], dim=1),
            "gate.bias": state["gate.bias"][order],
        }
    other.load_state_dict(state)
    turned = other(users[:, order], tokens[:, order], present[:, order])
    torch.testing.assert_close(turned, one(users, tokens, present), rtol=1e-4, atol=1e-4)


def test_the_size_and_place_of_the_content_do_not_matter(content, events):
    moved = content | {"text": 1000 * content["text"] + 7}
    torch.testing.assert_close(
        made(moved, events).score(EVERYONE), made(content, events).score(EVERYONE), rtol=1e-2, atol=1e-3
    )


def test_an_item_is_not_read_when_it_is_asked_for(content, events):
    """Its history side gets no gradient from its own events."""
    frame = pd.DataFrame({"user_id": [0, 0], "item_id": [0, 1]})
    pair = Interactions.from_frame(frame, user_ids=range(1), item_ids=range(2))
    model = made(None, pair, epochs=1)
    examples = model.prepare(pair, torch.Generator().manual_seed(0))
    model.fuse = Spy()
    list(model.losses(examples, torch.Generator().manual_seed(0)))
    table = model.of_histories[0].detach()
    read = {tuple(person[0].tolist()) for person in model.fuse.people}
    assert read == {tuple(table[0].tolist()), tuple(table[1].tolist())}  # not their mean


class Spy(torch.nn.Module):
    """Keeps the people that it is asked about."""

    def forward(self, users, tokens, present):
        self.people = users.detach()
        return LateFusion(8, 1, 1)(users, tokens, present)


def test_what_makes_no_sense_is_refused(content, events):
    fit = lambda **options: made(options.pop("content", content), events, **options)  # noqa: E731
    with pytest.raises(ValueError, match="empty"):
        fit(content={})
    with pytest.raises(ValueError, match=r'"id" is the number'):
        fit(content={"id": content["text"]})
    with pytest.raises(ValueError, match=r'"id" is the number'):
        fit(content={"text": None})
    with pytest.raises(ValueError, match=r"'text' must be \(15, D\)"):
        fit(content={"text": content["text"][:3]})
    with pytest.raises(ValueError, match="missing for every item"):
        fit(content={"text": torch.full((N_ITEMS, 2), torch.nan)})
    half = content["text"].clone()
    half[4, 1] = torch.nan
    with pytest.raises(ValueError, match="not finite for item 4; an item without it has a whole row of NaN"):
        fit(content={"text": half})
    with pytest.raises(KeyError, match="present names id"):
        fit(present={"id": torch.ones(N_ITEMS, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"present\['text'\] must be \(15,\) bool"):
        fit(present={"text": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ValueError, match="cannot be shared evenly"):
        MultimodalRecommender(fusion="early", dim=9)
    model = fit()
    with pytest.raises(ValueError, match="has no gates"):
        model.gates()
    with pytest.raises(ValueError, match="no such attention"):
        model.attention(EVERYONE)
    with pytest.raises(KeyError, match="no modality 'sound'; there are id, image, text"):
        model.without("sound")
    with pytest.raises(ValueError, match=r"items must be \(15,\) bool"):
        model.without("text", items=torch.tensor([1]))
    with pytest.raises(ValueError, match=r"'text' must be \(15, 6\), got \(15, 2\)"):
        model.with_content(text=torch.zeros(N_ITEMS, 2))
    with pytest.raises(ValueError, match="no content that could be given"):
        model.with_content(id=None)
