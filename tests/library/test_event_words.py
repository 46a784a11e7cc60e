"""Models that hold a person's events against an item's words: what is read, how it meets, what it costs."""

import dataclasses

import pandas as pd
import pytest
import torch
from torch import Tensor

from recsys_lib.attention import present_tokens
from recsys_lib.data import Interactions
from recsys_lib.models import DIN, AttentionScore, CrossAttentionRecommender
from recsys_lib.models.core import event_words
from recsys_lib.models.core.event_words import EventWords, Tokens
from recsys_lib.text import TextWords

MODELS = pytest.mark.parametrize("cls", [CrossAttentionRecommender, AttentionScore, DIN])
N_USERS, N_ITEMS, N_WORDS = 12, 9, 7
close = torch.testing.assert_close


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ratings(seed: int = 0) -> Interactions:
    """Ratings from one to five; some events of a user share their time."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for user in range(N_USERS):
        items = torch.randperm(N_ITEMS, generator=generator)[:7].tolist()
        for place, item in enumerate(items):
            stars = int(torch.randint(1, 6, (), generator=generator)) if place else 5
            rows.append((user, item, stars, 100 * user + place // 2))
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    return Interactions.from_frame(frame, user_ids=range(N_USERS), item_ids=range(N_ITEMS))


def words() -> TextWords:
    generator = torch.Generator().manual_seed(5)
    rows = torch.randint(N_WORDS, (N_ITEMS, 4), generator=generator)
    rows[2, 1:], rows[3, 3:] = -1, -1
    return TextWords(rows, draw(N_WORDS, 6, seed=6))


def make(cls: type[EventWords] = CrossAttentionRecommender, **options) -> EventWords:
    small = {"dim": 8, "epochs": 2, "batch_size": 16, "max_history": 4, "learning_rate": 0.01}
    return cls(**({"text": words()} | small | options))


def fit(model: EventWords, events: Interactions | None = None) -> EventWords:
    events = ratings().positives(4.0) if events is None else events
    return model.fit(events, device="cpu", progress=False)


def everyone(model: EventWords) -> Tensor:
    return model.score(torch.arange(N_USERS))


def tokens(*shape: int, lengths: Tensor, seed: int) -> Tokens:
    """Random vectors; what stands at padding is as random as the rest."""
    return Tokens(draw(*shape, seed=seed), present_tokens(lengths, shape[-2]))


# --- what is read ------------------------------------------------------------------------------------------


@MODELS
def test_what_is_read_for_a_target_came_strictly_before_it(cls) -> None:
    """Each example's stretch holds just the user's events of earlier times, dislikes included."""
    given = ratings()
    events = given.positives(4.0)
    model = fit(make(cls, actions=given))
    examples = model.prepare(events, torch.Generator())
    seen = set()
    for user, item, end, length in zip(
        *(x.tolist() for x in (examples.users, examples.items, examples.ends, examples.lengths)), strict=True
    ):
        mine = (events.users == user) & (events.items == item)
        time = int(events.timestamps[mine])
        earlier = (given.users == user) & (given.timestamps < time)
        stretch = slice(end - length, end)
        read = zip(
            model.history_items[stretch].tolist(), model.history_actions[stretch].tolist(), strict=True
        )
        expected = zip(
            given.items[earlier].tolist(), (given.ratings[earlier] - 1).long().tolist(), strict=True
        )
        assert sorted(read) == sorted(expected)
        seen.add((user, item))
    # Nothing but targets without any earlier event is left out.
    first = {u: int(given.timestamps[given.users == u].min()) for u in range(N_USERS)}
    expected_pairs = {
        (u, i)
        for u, i, t in zip(
            *(x.tolist() for x in (events.users, events.items, events.timestamps)), strict=True
        )
        if t > first[u]
    }
    assert seen == expected_pairs


@MODELS
def test_what_comes_after_the_events_of_fit_is_not_read(cls) -> None:
    """Held-out events, and dislikes beside them, stay out of sight: without them every number is the same."""
    given = ratings()
    likes = given.positives(4.0)
    newest = torch.zeros(N_USERS, dtype=torch.int64).scatter_reduce(0, likes.users, likes.timestamps, "amax")
    train = likes[likes.timestamps < newest[likes.users]]
    last = torch.full((N_USERS,), -1).scatter_reduce(0, train.users, train.timestamps, "amax")
    past = given[given.timestamps <= last[given.users]]
    assert len(past) < len(given)
    assert torch.equal(
        everyone(fit(make(cls, actions=given), train)), everyone(fit(make(cls, actions=past), train))
    )
    # What came before does count.
    assert not torch.equal(everyone(fit(make(cls, actions=past), train)), everyone(fit(make(cls), train)))


@MODELS
def test_what_a_person_did_counts_where_it_is_read(cls) -> None:
    histories = [[0, 1, 2], [3]]
    liked, disliked = [[5, 5, 5], [5]], [[1, 5, 1], [5]]
    model = fit(make(cls, actions=ratings()))
    plain, mixed = model.score_histories(histories, liked), model.score_histories(histories, disliked)
    assert not torch.allclose(plain[0], mixed[0])
    assert torch.equal(plain[1], mixed[1])
    blind = fit(make(cls, actions=ratings(), action_types=False))
    assert torch.equal(blind.score_histories(histories, liked), blind.score_histories(histories, disliked))
    # Ratings between two that were seen count as the nearer one.
    close(model.score_histories(histories, [[4.9, 5.2, 9], [5]]), plain)
    with pytest.raises(ValueError, match="one entry for each item"):
        model.score_histories(histories, [[5], [5]])


def test_many_ratings_become_sixteen_actions() -> None:
    given = ratings()
    fine = dataclasses.replace(given, ratings=torch.linspace(0, 1, len(given)))
    model = fit(make(), fine)
    assert len(model.action_values) == 16
    assert model.history_actions.bincount().min() >= len(given) // 16 - 1
    alone = dataclasses.replace(given, ratings=torch.full((len(given),), 3.0))
    assert fit(make(), alone).action_values.tolist() == [3.0]


def test_negatives_are_other_items_that_somebody_has(monkeypatch) -> None:
    events = ratings().positives(4.0)
    events = events[(events.items != 4) & (events.items != 8)]
    model, own = (
        make(n_negatives=3),
        {(u, i) for u, i in zip(events.users.tolist(), events.items.tolist(), strict=True)},
    )
    asked: list[Tensor] = []
    meet_rows = EventWords._meet_rows
    monkeypatch.setattr(EventWords, "_meet_rows", lambda self, e, i: asked.append(i) or meet_rows(self, e, i))
    fit(model, events)
    drawn = torch.cat([items[:, 1:].flatten() for items in asked])
    assert not set(drawn.tolist()) & {4, 8}
    assert len(drawn.unique()) > 4
    examples = model.prepare(events, torch.Generator())
    others = examples.known[examples.sampler.sample(examples.users, 50)]
    pairs = {(u, i) for u, row in zip(examples.users.tolist(), others.tolist(), strict=True) for i in row}
    assert not pairs & own


@MODELS
def test_an_item_that_nobody_has_chosen_is_scored_by_its_words(cls) -> None:
    given = words()
    rows = given.rows.clone()
    rows[8] = rows[0]  # nobody has 8, and it has the words of 0
    events = ratings().positives(4.0)
    events = events[(events.items != 8) & (events.items != 4)]
    model = fit(make(cls, text=TextWords(rows, given.vectors), item="words"), events)
    close(everyone(model)[:, 8], everyone(model)[:, 0])
    assert not torch.allclose(everyone(model)[:, 4], everyone(model)[:, 8])
    both = fit(make(cls, text=TextWords(rows, given.vectors)), events)
    assert not both.item_table.weight[[4, 8]].any()
    assert both.item_table.weight[0].any()
    assert everyone(both).isfinite().all()


@MODELS
def test_items_without_any_word_are_scored(cls) -> None:
    silent = TextWords(torch.full((N_ITEMS, 2), -1), torch.zeros(0, 6))
    for item in ("words", "id+words"):
        assert everyone(fit(make(cls, text=silent, item=item))).isfinite().all()


# --- words and padding -------------------------------------------------------------------------------------


@MODELS
def test_the_order_of_words_and_their_padding_do_not_matter(cls) -> None:
    model = fit(make(cls, actions=ratings()))
    expected = everyone(model)
    turned = model.word_rows.clone()
    for item, row in enumerate(turned.tolist()):
        kept = [word for word in row if word >= 0]
        turned[item, : len(kept)] = torch.tensor(kept[::-1])
    model.word_rows = torch.nn.functional.pad(turned, (0, 3), value=-1)  # (n_items, W + 3)
    close(everyone(model), expected, rtol=1e-4, atol=1e-5)


@MODELS
@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
def test_padding_in_a_batch_changes_nothing(cls, pooling: str) -> None:
    """A pair's score does not depend on what is in the batch; padding is as random as the rest."""
    options = {"pooling": pooling} if cls is CrossAttentionRecommender else {}
    model = fit(make(cls, **options))
    events = tokens(3, 1, 5, 8, lengths=torch.tensor([[5], [2], [1]]), seed=1)
    items = tokens(3, 2, 4, 8, lengths=torch.tensor([[4, 1], [3, 2], [0, 4]]), seed=2)
    together = model.meet(events, items)
    assert together.shape == (3, 2)
    for user in range(3):
        for item in range(2):
            n, m = int(events.present[user].sum()), max(1, int(items.present[user, item].sum()))
            alone = model.meet(
                Tokens(events.x[user, None, :, :n], events.present[user, None, :, :n]),
                Tokens(items.x[user, item][None, None, :m], items.present[user, item][None, None, :m]),
            )
            close(together[user, item], alone[0, 0], rtol=1e-4, atol=1e-5)


@MODELS
def test_a_long_history_is_read_from_its_end(cls) -> None:
    model = fit(make(cls, max_history=3))
    long, short = [[5, 6, 7, 0, 1, 2]], [[0, 1, 2]]
    close(model.score_histories(long), model.score_histories(short))
    assert not torch.allclose(model.score_histories([[2, 1, 0]]), model.score_histories(short))
    set_like = fit(make(cls, max_history=3, positions=False))
    close(set_like.score_histories([[2, 1, 0]]), set_like.score_histories(short), rtol=1e-4, atol=1e-5)


# --- how they meet -----------------------------------------------------------------------------------------


@MODELS
@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
def test_gradients_are_those_of_the_scores(cls, pooling: str) -> None:
    options = {"pooling": pooling} if cls is CrossAttentionRecommender else {}
    model = fit(make(cls, dropout=0.0, **options)).double()
    events = tokens(2, 1, 3, 8, lengths=torch.tensor([[3], [1]]), seed=1)
    items = tokens(2, 2, 3, 8, lengths=torch.tensor([[3, 2], [1, 0]]), seed=2)

    def scores(x: Tensor, y: Tensor) -> Tensor:
        return model.meet(Tokens(x, events.present), Tokens(y, items.present))

    inputs = events.x.double().requires_grad_(), items.x.double().requires_grad_()
    assert torch.autograd.gradcheck(scores, inputs)
    gradients = torch.autograd.grad(scores(*inputs).sum(), inputs)
    assert not gradients[0][~events.present].any()
    assert not gradients[1][~items.present].any()


@pytest.mark.parametrize("direction", ["history", "words", "both", "none"])
@pytest.mark.parametrize("head", ["linear", "mlp", "dot"])
def test_cross_attention_is_what_the_formula_says(direction: str, head: str) -> None:
    """One pair at a time: look, add, mean, head."""
    model = fit(make(direction=direction, head=head))
    events, items = draw(5, 8, seed=1), draw(3, 8, seed=2)
    there = torch.ones(1, 1, 5).bool(), torch.ones(1, 1, 3).bool()
    found = model.meet(Tokens(events[None, None], there[0]), Tokens(items[None, None], there[1]))
    h = model.to_words(events, items) if direction in ("history", "both") else events
    c = model.to_events(items, events) if direction in ("words", "both") else items
    h, c = h.mean(dim=0), c.mean(dim=0)
    if head == "linear":
        expected = model.top.weight[0] @ torch.cat([h, c]) + model.top.bias[0]
    elif head == "dot":
        expected = h @ c / 8**0.5 + model.top.weight[0] @ c + model.top.bias[0]
    else:
        expected = model.top(torch.cat([h, c, h * c]))[0]
    close(found[0, 0], expected, rtol=1e-4, atol=1e-5)


def test_late_fusion_by_hand() -> None:
    """No blocks, no attention, a dot product: means of tables, added up by hand."""
    model = fit(make(direction="none", head="dot", n_layers=0, actions=ratings()))
    history, did = [1, 5, 2], [5.0, 1.0, 3.0]
    mapped = model.word_vectors @ model.word_map.weight.T  # (V, d)

    def of_words(item: int) -> Tensor:
        return mapped[[word for word in model.word_rows[item].tolist() if word >= 0]]  # (W, d)

    def table(module, row: int) -> Tensor:
        return module.weight[row]

    u = torch.stack([
        table(model.event_table, item) + of_words(item).mean(dim=0)
        + table(model.action_table, int(stars) - 1) + table(model.place_table, 2 - place)
        for place, (item, stars) in enumerate(zip(history, did, strict=True))
    ]).mean(dim=0)  # fmt: skip
    v = torch.cat([table(model.item_table, 4)[None], of_words(4)]).mean(dim=0)
    expected = u @ v / 8**0.5 + model.top.weight[0] @ v + model.top.bias[0]
    close(model.score_histories([history], [did])[0, 4], expected.detach(), rtol=1e-4, atol=1e-5)


def test_it_starts_as_late_fusion_and_learns_what_to_add() -> None:
    def first(**options) -> Tensor:
        return everyone(fit(make(epochs=1, learning_rate=1e-12, **options)))

    late = first(direction="none")
    close(first(direction="both"), late, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first(direction="both", zero_start=False), late, atol=1e-3)
    trained = fit(make())
    for cross in (trained.to_words, trained.to_events):
        assert cross.attention.output.weight.any()
        assert cross.attention.query.weight.grad.any()


def test_with_late_fusion_a_linear_head_gives_everybody_the_same_list() -> None:
    late = everyone(fit(make(direction="none", head="linear")))
    close(late - late[:, :1], (late - late[:, :1])[:1].expand_as(late), rtol=1e-3, atol=1e-5)
    for direction in ("history", "words", "both"):
        crossed = everyone(fit(make(direction=direction, head="linear", epochs=6, learning_rate=0.05)))
        differences = crossed - crossed[:, :1]
        assert float((differences - differences[:1]).abs().max()) > 1e-3


def test_a_causal_encoder_does_not_see_the_future() -> None:
    history = torch.tensor([[0, 1, 2]])

    def read(model: CrossAttentionRecommender, items: Tensor) -> Tensor:
        past = event_words.Stretches(items[0], torch.zeros(3).long(), torch.tensor([3]), torch.tensor([3]))
        return model.events_side(past).x[0]  # (T, d)

    changed = torch.tensor([[0, 1, 5]])
    decoder, encoder = fit(make(causal=True)), fit(make())
    close(read(decoder, history)[:2], read(decoder, changed)[:2])
    assert not torch.allclose(read(encoder, history)[0], read(encoder, changed)[0])


def test_attention_can_be_looked_at() -> None:
    model = fit(make(actions=ratings()))
    users, items = torch.tensor([0, 3, 3]), torch.tensor([2, 1, 3])
    to_words, to_events = model.attention(users, items)
    n_words = 1 + (model.word_rows[items] >= 0).sum(dim=1)  # (N,) the number is the first
    assert to_words.shape == (3, 2, 4, 5)
    assert to_events.shape == (3, 2, 5, 4)
    for row in range(3):
        close(to_words[row].sum(dim=-1), torch.ones(2, 4))
        assert not to_words[row, :, :, n_words[row] :].any()
        close(to_events[row, :, : n_words[row]].sum(dim=-1), torch.ones(2, int(n_words[row])))
        assert not to_events[row, :, n_words[row] :].any()
    for direction, there in (("history", [True, False]), ("words", [False, True]), ("none", [False, False])):
        of_one = fit(make(direction=direction)).attention(users, items)
        assert [bool(weights.any()) for weights in of_one] == there
    events = ratings().positives(4.0)
    with pytest.raises(ValueError, match="user 3 has no events"):
        fit(make(), events[events.users != 3]).attention(users, items)
    with pytest.raises(IndexError, match="user 12 is unknown"):
        model.attention(torch.tensor([12]), torch.tensor([0]))
    with pytest.raises(IndexError, match="item 9 is unknown"):
        model.attention(torch.tensor([1]), torch.tensor([9]))


def test_the_attention_score_is_its_formula() -> None:
    model = fit(make(AttentionScore))
    u, v = draw(3, 8, seed=1), draw(2, 8, seed=2)
    pairs = [(i, j) for i in range(3) for j in range(2)]
    f = torch.stack([
        model.out(torch.nn.functional.gelu(model.from_events(u[i]) + model.from_words(v[j])))[0]
        for i, j in pairs
    ])  # fmt: skip
    alpha = f.exp() / f.exp().sum()
    expected = sum(a * (u[i] @ v[j]) for a, (i, j) in zip(alpha, pairs, strict=True))
    expected = expected + model.bias(v.mean(dim=0))[0]
    events, items = (Tokens(x[None, None], torch.ones(1, 1, len(x)).bool()) for x in (u, v))
    close(model.meet(events, items)[0, 0], expected, rtol=1e-4, atol=1e-5)
    close(model.weights(events, items).sum(), torch.tensor(1.0))


def test_din_is_its_formula() -> None:
    """The first layer over [x, v, x * v, x - v], as the paper has it, with weights that say the same."""
    model = fit(make(DIN))
    x, words = draw(3, 8, seed=1), draw(2, 8, seed=2)
    v = words.mean(dim=0)
    first = torch.nn.Linear(32, 16)
    with torch.no_grad():
        difference = draw(16, 8, seed=3)
        parts = [
            model.from_event.weight - difference,
            model.from_item.weight + difference,
            model.from_product.weight,
            difference,
        ]
        first.weight.copy_(torch.cat(parts, dim=1))
        first.bias.copy_(model.from_item.bias)
    a = torch.stack([
        model.out(torch.nn.functional.gelu(first(torch.cat([t, v, t * v, t - v]))))[0] for t in x
    ])  # fmt: skip
    u = (a[:, None] * x).sum(dim=0)
    expected = model.top(torch.cat([u, v, u * v]))[0]
    events, items = (Tokens(y[None, None], torch.ones(1, 1, len(y)).bool()) for y in (x, words))
    close(model.meet(events, items)[0, 0], expected, rtol=1e-4, atol=1e-5)


# --- a task that late fusion cannot solve ------------------------------------------------------------------


def test_cross_attention_learns_what_late_fusion_cannot() -> None:
    """An item is wanted where one of its two words is that of some event: matching, not adding up."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor([[a, b] for a in range(4) for b in range(4) if a != b])  # (12, 2) words of the items
    frame = []
    for user in range(40):
        word = int(torch.randint(4, (), generator=generator))
        wanted = (rows == word).any(dim=1).nonzero().flatten()
        for place, item in enumerate(wanted[torch.randperm(len(wanted), generator=generator)].tolist()):
            frame.append((user, item, 5, place))
    data = pd.DataFrame(frame, columns=["user_id", "item_id", "rating", "timestamp"])
    events = Interactions.from_frame(data, user_ids=range(40), item_ids=range(12))
    shared = {"text": TextWords(rows, torch.eye(4)), "item": "words", "event": "words", "head": "linear",
              "dim": 16, "epochs": 30, "batch_size": 32, "learning_rate": 0.01, "dropout": 0.0}  # fmt: skip
    losses = {}
    for direction in ("none", "both"):
        model = CrossAttentionRecommender(direction=direction, **shared).fit(
            events, device="cpu", progress=False
        )
        losses[direction] = model.log[-1]["loss"]
    assert losses["none"] > 0.45
    assert losses["both"] < 0.15


# --- objectives and cost -----------------------------------------------------------------------------------


@MODELS
def test_squared_error_learns_the_ratings(cls) -> None:
    given = ratings()
    stars = (given.items % 5 + 1).float()  # an item's rating is always the same
    given = dataclasses.replace(given, ratings=stars)
    model = fit(make(cls, objective="squared_error", epochs=60, dropout=0.0, learning_rate=0.02), given)
    predicted = model.predict(given.users, given.items)
    assert float((predicted - stars).abs().mean()) < 0.3
    close(model.score(given.users).gather(1, given.items[:, None])[:, 0], predicted, rtol=1e-4, atol=1e-4)
    # Where likes alone are given, the ratings of all actions are what is learned.
    assert len(make(cls, objective="squared_error", actions=given, text=words()).fit(
        given.positives(4.0), device="cpu", progress=False).prepare(
        given.positives(4.0), torch.Generator()).items) > len(given.positives(4.0))  # fmt: skip


def test_the_objectives_are_the_losses_of_the_library() -> None:
    from recsys_lib.losses import bce_loss, bpr_loss

    scores, stars = draw(6, 3), draw(6, seed=1)
    for objective, loss in (("bce", bce_loss), ("bpr", bpr_loss)):
        close(make(objective=objective).loss(scores, stars), loss(scores[:, 0], scores[:, 1:]))
    model = fit(make(objective="squared_error"))
    mean, deviation = model.rating_scale
    close(model.loss(scores, stars), (scores[:, 0] - (stars - mean) / deviation).square().mean())


@MODELS
def test_a_catalog_is_scored_in_bounded_memory(cls, monkeypatch) -> None:
    model = fit(make(cls))
    expected, sizes = everyone(model), []
    meet = type(model).meet

    def watched(self, events: Tokens, words: Tokens) -> Tensor:
        scores = meet(self, events, words)
        sizes.append(scores.numel())
        return scores

    monkeypatch.setattr(type(model), "meet", watched)
    monkeypatch.setattr(event_words, "_CELLS", 4 * model.max_history * (1 + model.max_words))
    close(everyone(model), expected, rtol=1e-4, atol=1e-5)
    users, items = torch.arange(N_USERS).repeat_interleave(N_ITEMS), torch.arange(N_ITEMS).repeat(N_USERS)
    close(model.predict(users, items).view(N_USERS, N_ITEMS), expected, rtol=1e-4, atol=1e-5)
    assert max(sizes) <= 4
    assert sum(sizes) == 2 * N_USERS * N_ITEMS


def test_validation_looks_at_some_users() -> None:
    given = ratings().positives(3.0)
    newest = torch.zeros(N_USERS, dtype=torch.int64).scatter_reduce(0, given.users, given.timestamps, "amax")
    old = given.timestamps < newest[given.users]
    model = make(check_users=3)
    asked: list[Tensor] = []
    score = model.score
    model.score = lambda users: asked.append(users) or score(users)  # type: ignore[method-assign]
    model.fit(given[old], given[~old], device="cpu", progress=False)
    assert [len(users) for users in asked] == [3, 3]
    assert "ndcg@10" in model.log[0]


# --- what is refused ---------------------------------------------------------------------------------------


@MODELS
def test_what_cannot_be_read_is_refused(cls) -> None:
    with pytest.raises(ValueError, match="reads the items' words: give text="):
        fit(make(cls, text=None))
    assert everyone(fit(make(cls, text=None, item="id", event="id"))).isfinite().all()
    with pytest.raises(ValueError, match="one an item: 9 items, 2 texts"):
        fit(make(cls, text=TextWords(torch.tensor([[0], [0]]), torch.ones(1, 3))))
    with pytest.raises(TypeError, match="a single text"):
        fit(make(cls, text="a film"))
    other = Interactions.from_frame(pd.DataFrame({"user_id": [0, 1], "item_id": [0, 1]}))
    with pytest.raises(ValueError, match=r"actions=.*the events count \(2, 2\)"):
        fit(make(cls, actions=other))
    with pytest.raises(TypeError, match=r"actions=.* takes Interactions, got list"):
        fit(make(cls, actions=[1]))


def test_heads_share_the_features() -> None:
    with pytest.raises(ValueError, match="dim=9 cannot be shared evenly among n_heads=2"):
        make(dim=9)
