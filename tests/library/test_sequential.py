"""SASRec, BERT4Rec and the Markov chain: what they read, what they learn, what they refuse."""

import itertools

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from recsys_lib.attention import present_tokens
from recsys_lib.data import Interactions
from recsys_lib.devices import isolated_rng, seed_generator
from recsys_lib.losses import softmax_loss
from recsys_lib.models import BERT4Rec, MarkovChain, NotFittedError, SASRec, markov
from recsys_lib.models.core import next_item
from recsys_lib.models.core.sequence_encoder import QuickDropout, SequenceEncoder
from recsys_lib.models.core.trained import validation_ndcg
from recsys_lib.models.core.windows import by_length, cut_windows, shuffle_ties
from recsys_lib.negatives import other_items
from recsys_lib.ranking import HeldOut

BOTH = pytest.mark.parametrize("cls", [SASRec, BERT4Rec])
N_ITEMS = 12


def events(
    histories: list[list[int]], n_items: int = N_ITEMS, times: list[list[int]] | None = None
) -> Interactions:
    """Histories as interactions, one second an event unless times are given."""
    times = times or [list(range(len(history))) for history in histories]
    rows = [
        (user, item, time)
        for user, (history, seconds) in enumerate(zip(histories, times, strict=True))
        for item, time in zip(history, seconds, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    return Interactions.from_frame(frame, user_ids=range(len(histories)), item_ids=range(n_items))


def ring(n_users: int = 40, n_items: int = N_ITEMS, length: int = 8) -> tuple[Interactions, Tensor]:
    """Everyone walks round one ring of the items; also (n_items,) the neighbor of each item."""
    generator = torch.Generator().manual_seed(5)
    walk = torch.randperm(n_items, generator=generator)
    neighbor = torch.empty_like(walk)
    neighbor[walk] = walk.roll(-1)
    starts = torch.randint(n_items, (n_users,), generator=generator).tolist()
    return events([follow(neighbor, start, length) for start in starts], n_items), neighbor


def follow(neighbor: Tensor, item: int, length: int) -> list[int]:
    history = [item]
    while len(history) < length:
        history.append(int(neighbor[history[-1]]))
    return history


def small(cls, **changes):
    """A model that fits in a tenth of a second."""
    return cls(**{"dim": 8, "n_layers": 1, "max_length": 6, "epochs": 2, "seed": 3} | changes)


@pytest.fixture(scope="module", params=[SASRec, BERT4Rec])
def fitted(request):
    inter, _ = ring()
    return small(request.param, n_layers=2, epochs=3).fit(inter), inter


# --- what they learn ---------------------------------------------------------------------------------------


@BOTH
def test_the_defaults_learn_that_the_next_item_is_the_neighbor(cls):
    inter, neighbor = ring()
    model = cls(seed=1).fit(inter)
    histories = [follow(neighbor, item, length) for item in range(N_ITEMS) for length in (3, 5, 8)]
    true = neighbor[torch.tensor([history[-1] for history in histories])]
    assert (model.score_histories(histories).argmax(1) == true).float().mean() > 0.95
    assert model.log[-1]["loss"] < model.log[0]["loss"] / 3


@BOTH
@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax", "bce", "gbce"])
def test_every_loss_learns_it(cls, loss):
    inter, neighbor = ring(n_users=24, n_items=8, length=6)
    arguments = {"epochs": 8} if cls is SASRec else {"epochs": 24, "next_rate": 0.9}
    arguments |= {"dim": 32, "n_layers": 1, "dropout": 0.0, "learning_rate": 0.005}
    model = cls(**arguments, loss=loss, n_negatives=4, seed=2).fit(inter)
    histories = [follow(neighbor, item, 5) for item in range(8)]
    true = neighbor[torch.tensor([history[-1] for history in histories])]
    assert (model.score_histories(histories).argmax(1) == true).sum() >= 7


def test_order_matters_to_both_and_positions_carry_it_for_bert4rec():
    """Without positions BERT4Rec reads a bag; SASRec still knows the last item, which looks for itself."""
    inter, _ = ring()
    history, shuffled = [1, 2, 3, 4, 5], [3, 1, 4, 2, 5]
    for cls in (SASRec, BERT4Rec):
        a, b = small(cls).fit(inter).score_histories([history, shuffled])
        assert not torch.allclose(a, b, atol=1e-4)
    bag = small(BERT4Rec, positions=False).fit(inter)
    assert bag.encoder.position_embedding is None
    a, b = bag.score_histories([history, shuffled])
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    a, b = small(SASRec, positions=False).fit(inter).score_histories([history, history[::-1]])
    assert not torch.allclose(a, b, atol=1e-4)


# --- what they read ----------------------------------------------------------------------------------------


def test_company_in_the_batch_does_not_change_a_score(fitted, monkeypatch):
    model, _ = fitted
    generator = torch.Generator().manual_seed(2)
    histories = [torch.randint(N_ITEMS, (n,), generator=generator) for n in (1, 9, 0, 3, 6, 2, 6, 5, 4, 0)]
    together = model.score_histories(histories)
    alone = torch.cat([model.score_histories([history]) for history in histories])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(next_item, "_EVENTS_AT_ONCE", 10)
    torch.testing.assert_close(model.score_histories(histories), together, rtol=1e-5, atol=1e-5)


def test_only_the_most_recent_events_are_read(fitted):
    model, _ = fitted
    recent = [5, 1, 0, 7, 7, 2]
    assert model.max_length == len(recent)
    a, b, c = model.score_histories([recent, [3, 4, *recent], [4, *recent[1:]]])
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(a, c, atol=1e-5)  # the oldest of the most recent does count


def test_users_are_their_histories(fitted):
    model, inter = fitted
    users = torch.tensor([7, 0, 7, 39])
    scores = model.score(users)
    torch.testing.assert_close(scores, model.score_histories(inter.histories(users)), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(scores[0], scores[1], atol=1e-3)


def test_lists_and_tensors_are_the_same_histories(fitted):
    model, _ = fitted
    a = model.score_histories([[3, 4], [5]])
    assert torch.equal(a, model.score_histories([torch.tensor([3, 4]), torch.tensor([5], dtype=torch.int32)]))
    assert torch.equal(a, model.score_histories(((3, 4), torch.tensor([5]))))
    assert a.shape == (2, N_ITEMS)
    assert a.dtype == torch.float32
    assert not a.requires_grad


def test_an_empty_history_gets_popularity():
    inter = events([[0, 1, 1], [1, 2], [], [5]], n_items=7)
    for cls in (SASRec, BERT4Rec):
        model = small(cls).fit(inter)
        expected = torch.tensor([2, 4, 2, 1, 1, 2, 1]).div(13).log()
        torch.testing.assert_close(model.score(torch.tensor([2]))[0], expected)
        torch.testing.assert_close(model.score_histories([[], [1], torch.tensor([])])[0], expected)
        torch.testing.assert_close(model.score_histories([[], [1], torch.tensor([])])[2], expected)
        assert not torch.allclose(model.score_histories([[1]])[0], expected, atol=1e-3)


@pytest.mark.parametrize("causal", [True, False])
def test_positions_are_counted_from_the_end(causal):
    encoder = SequenceEncoder(5, 4, 1, 1, max_length=6, causal=causal)
    torch.nn.init.zeros_(encoder.item_embedding.weight)
    x = encoder.embed(torch.zeros(2, 6, dtype=torch.int64), torch.tensor([6, 2]))  # (2, 6, 4)
    table = encoder.position_embedding.weight * 2.0  # scaled by sqrt(4)
    torch.testing.assert_close(x[0], table.flip(0))
    torch.testing.assert_close(x[1, :2], table[:2].flip(0))


def test_sasrec_looks_back_only_and_bert4rec_both_ways():
    items = torch.tensor([[1, 2, 3, 4, 5]])
    for causal in (True, False):
        encoder = SequenceEncoder(9, 8, 2, 2, max_length=6, causal=causal).eval()
        a = encoder(items, torch.tensor([5]))
        b = encoder(torch.tensor([[1, 2, 3, 4, 8]]), torch.tensor([5]))
        assert torch.allclose(a[:, :4], b[:, :4], atol=1e-6) == causal
        assert not torch.allclose(a[:, 4], b[:, 4], atol=1e-4)


def test_attention_to_a_history(fitted):
    model, _ = fitted
    history = torch.tensor([9, 1, 2, 3, 4, 5, 6])
    causal = isinstance(model, SASRec)
    t = model.max_length + (not causal)
    weights = model.attention(history)
    assert weights.shape == (2, 2, t, t)  # (n_layers, n_heads, T, T)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, t))
    assert (weights.triu(1) == 0).all() == causal
    torch.testing.assert_close(weights, model.attention(history[1:].tolist()))
    assert model.attention([4]).shape == (2, 2, 2 - causal, 2 - causal)
    assert not weights.requires_grad
    assert not model.training
    # The last row of the last block is what the score is made of: h = x + W mean of values.
    rows, lengths = model.prompt(history[None, 1:], torch.tensor([6]))
    seen = {}
    block = model.encoder.blocks[-1]
    hook = block.attention.output.register_forward_pre_hook(lambda _, inputs: seen.update(mean=inputs[0]))
    into = block.attention_norm.register_forward_hook(lambda _, inputs, output: seen.update(x=output))
    model.encoder(rows, lengths)
    hook.remove()
    into.remove()
    values = block.attention.value(seen["x"])[0].unflatten(-1, (2, -1))  # (T, H, d/H)
    mean = torch.einsum("hk,khd->hd", weights[-1, :, -1], values).flatten()
    torch.testing.assert_close(mean, seen["mean"][0, -1], rtol=1e-4, atol=1e-5)


# --- windows, batches, ties --------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(0, 23), min_size=1, max_size=12), st.integers(1, 7), st.integers(0, 99))
def test_every_event_but_the_first_is_the_next_one_exactly_once(counts, size, seed):
    if max(counts) < 2:
        counts = [*counts, 2]
    inter = events([[0] * count for count in counts], n_items=1)
    starts, lengths = cut_windows(inter, size, seed_generator(seed))
    assert (lengths >= 2).all()
    assert (lengths <= size + 1).all()
    questions = [
        place for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
        for place in range(start + 1, start + length)
    ]  # fmt: skip
    first = torch.tensor([0, *counts[:-1]]).cumsum(0)[torch.tensor(counts) > 0].tolist()
    assert sorted(questions) == sorted(set(range(sum(counts))) - set(first))
    # A window stays within its user, and what fits into one window is not cut.
    assert (inter.users[starts] == inter.users[starts + lengths - 1]).all()
    whole = [count for count in counts if 2 <= count <= size + 1]
    assert all(whole.count(count) <= lengths.tolist().count(count) for count in whole)


def test_the_cuts_of_a_long_history_move():
    inter = events([[0] * 50], n_items=1)
    generator = seed_generator(0)
    firsts = {int(cut_windows(inter, 10, generator)[1][0]) for _ in range(40)}
    assert len(firsts) > 5


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 64))
def test_batches_hold_rows_of_similar_length_and_no_more_than_their_budget(lengths, budget):
    batches = by_length(torch.tensor(lengths, dtype=torch.int64), budget)
    assert sorted(itertools.chain(*(batch.tolist() for batch in batches))) == list(range(len(lengths)))
    spans = [[lengths[row] for row in batch.tolist()] for batch in batches]
    assert all(len(span) == 1 or len(span) * max(span) <= budget for span in spans)
    assert all(max(a) <= min(b) for a, b in itertools.pairwise(spans))


def test_little_is_padded():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 102, (1000,), generator=generator)
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in by_length(lengths, 2048))
    assert padded < 1.05 * int(lengths.sum())


def test_an_epoch_of_small_data_has_enough_steps():
    inter, _ = ring()
    model = small(SASRec).fit(inter)
    batches = list(model._batches(inter, seed_generator(0)))
    assert len(batches) >= next_item._STEPS
    asked = torch.cat([rows[:, 1:][present_tokens(n - 1, rows.shape[1] - 1)] for rows, n in batches])
    assert torch.equal(
        asked.bincount(minlength=N_ITEMS), torch.cat([h[1:] for h in inter.histories()]).bincount()
    )


def tied() -> Interactions:
    histories = [[4, 1, 7, 3, 9, 0, 2], [5, 6, 8, 2, 1, 0, 3]]
    return events(histories, times=[[0, 1, 1, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0, 7]])


def test_ties_are_shuffled_within_their_group_and_anew_each_time():
    inter = tied()
    generator = seed_generator(0)
    orders = [shuffle_ties(inter, generator) for _ in range(60)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(len(inter)))
        assert torch.equal(inter.users[order], inter.users)
        assert torch.equal(inter.timestamps[order], inter.timestamps)
    # Each of the six tied events of user 1 comes first about as often as any other.
    firsts = torch.stack(orders)[:, 7].bincount(minlength=14)[7:13]
    assert (firsts >= 3).all()


def test_training_sees_ties_in_a_new_order_each_epoch():
    inter = tied()
    generator = seed_generator(1)
    model = small(SASRec, max_length=10).fit(inter)

    def epoch() -> set[tuple[int, ...]]:
        return {tuple(row[: int(n)].tolist()) for rows, lengths in model._batches(inter, generator)
                for row, n in zip(rows, lengths, strict=True)}  # fmt: skip

    assert epoch() != epoch()
    assert not torch.equal(model.history_items, inter.items)
    assert torch.equal(model.history_items, small(SASRec, max_length=10).fit(inter).history_items)


@BOTH
def test_the_order_of_rows_and_the_numbering_of_time_do_not_matter(cls):
    inter = tied()
    frame = inter.to_frame().sample(frac=1.0, random_state=1)
    frame["timestamp"] = frame["timestamp"] * 86_400 + 10**9
    shuffled = Interactions.from_frame(frame, user_ids=range(2), item_ids=range(N_ITEMS))
    users = torch.arange(2)
    assert torch.equal(small(cls).fit(inter).score(users), small(cls).fit(shuffled).score(users))


# --- negatives and losses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n_items"), [(1, 500), (40, 500), (130, 3000)])
def test_the_three_ways_to_score_negatives_agree(k, n_items, monkeypatch):
    """One negative of 500 is gathered, forty are picked from all scores, 130 of 3,000 come block by block."""
    monkeypatch.setattr(next_item, "_GATHERED", 8 * 131 * 7)  # seven rows at a time
    monkeypatch.setattr(next_item, "_COMPARED", 1)  # 64 rows at a time, and six at the end
    generator = torch.Generator().manual_seed(0)
    hidden, vectors = torch.randn(70, 8, generator=generator), torch.randn(n_items, 8, generator=generator)
    targets, negatives = (
        torch.randint(n_items, (70,), generator=generator),
        torch.randint(n_items, (70, k), generator=generator),
    )
    negatives[:, 0] = negatives[0, 0]  # an item that every row has
    hidden.requires_grad_()
    vectors.requires_grad_()
    found = next_item._scores_of(hidden, vectors, targets, negatives)
    expected = (hidden * vectors[targets]).sum(-1), (hidden[:, None] * vectors[negatives]).sum(-1)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
        gradients = [torch.autograd.grad(x.sin().sum(), (hidden, vectors), retain_graph=True) for x in (a, b)]
        torch.testing.assert_close(*gradients)


def test_many_negatives_are_scored_without_their_vectors():
    hidden, vectors = torch.randn(40, 16, requires_grad=True), torch.randn(5000, 16, requires_grad=True)
    targets, negatives = torch.randint(5000, (40,)), torch.randint(5000, (40, 200))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        next_item._scores_of(hidden, vectors, targets, negatives)
    assert kept
    assert max(kept) <= vectors.numel() < 40 * 201 * 16


@pytest.mark.parametrize("n", [1, 64, 200])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_softmax_over_the_catalog_is_the_loss_on_all_scores(n, dtype, monkeypatch):
    """Value and gradients, in blocks of 64 questions; 200 end in a block of eight."""
    monkeypatch.setattr(next_item, "_COMPARED", 1)
    generator = torch.Generator().manual_seed(0)
    hidden, vectors = (
        (3 * torch.randn(rows, 8, generator=generator)).to(dtype).requires_grad_() for rows in (n, 30)
    )
    targets = torch.randint(30, (n,), generator=generator)
    wide = torch.promote_types(dtype, torch.float32)
    found = next_item.catalog_softmax(hidden, vectors, targets)
    expected = softmax_loss(hidden.to(wide) @ vectors.to(wide).mT, targets)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(3 * x, (hidden, vectors)) for x in (found, expected)]
    near = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-3}[dtype]
    torch.testing.assert_close(*gradients, rtol=max(near, torch.finfo(dtype).eps), atol=near)


def test_the_softmax_over_the_catalog_keeps_no_scores():
    hidden, vectors = torch.randn(300, 16, requires_grad=True), torch.randn(5000, 16, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        next_item.catalog_softmax(hidden, vectors, torch.randint(5000, (300,)))
    assert kept
    assert max(kept) <= vectors.numel() < 300 * 5000


@BOTH
def test_what_is_asked_for_alone_is_what_all_would_have_given(cls):
    """The same vectors, the same gradients, and in training the same draws of dropout."""
    inter, _ = ring()
    model = small(cls, dropout=0.3, epochs=1).fit(inter)
    generator = torch.Generator().manual_seed(0)
    items = torch.randint(N_ITEMS, (5, 6), generator=generator)
    lengths, asked = torch.tensor([6, 5, 4, 6, 1]), torch.rand(5, 6, generator=generator) < 0.4
    asked[:, 0] = True  # of a length of one, too
    asked &= present_tokens(lengths, 6)
    parameters = list(model.encoder.parameters())
    for training in (False, True):
        model.train(training)
        found = []
        for part in (False, True):
            with isolated_rng(1):
                hidden = (
                    model.encoder(items, lengths, asked) if part else model.encoder(items, lengths)[asked]
                )
                state = torch.get_rng_state()
            found.append((hidden, state, torch.autograd.grad(hidden.sin().sum(), parameters)))
        torch.testing.assert_close(found[0], found[1])
        assert len(found[1][0]) == int(asked.sum())


def test_sampled_softmax_estimates_full_softmax():
    inter, _ = ring()
    generator = torch.Generator().manual_seed(0)
    hidden, targets = (
        torch.randn(50, 8, generator=generator),
        torch.randint(N_ITEMS, (50,), generator=generator),
    )
    losses = {}
    for loss in ("softmax", "sampled_softmax"):
        model = small(SASRec, loss=loss, n_negatives=20_000).fit(inter)
        torch.nn.init.normal_(model.encoder.item_embedding.weight, generator=seed_generator(1))
        losses[loss] = float(model.objective(hidden, targets, seed_generator(2)).detach())
    assert losses["sampled_softmax"] == pytest.approx(losses["softmax"], rel=0.005)


@BOTH
@pytest.mark.parametrize("loss", ["bce", "gbce"])
@pytest.mark.parametrize("n_negatives", [1, 4])
def test_binary_losses_are_cross_entropies_at_odds_of_one_to_k(cls, loss, n_negatives):
    """Logits are scores minus log K: a score of zero says that an item is one among K others."""
    inter, _ = ring()
    model = small(cls, loss=loss, n_negatives=n_negatives, calibration=0.6, dropout=0.0, epochs=1).fit(inter)
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(7, 8, generator=generator, dtype=torch.float64)
    targets = torch.randint(N_ITEMS, (7,), generator=generator)
    vectors = model.double().encoder.item_embedding.weight[:N_ITEMS].detach()  # (n_items, d)
    found = model.objective(hidden, targets, seed_generator(9))

    negatives = other_items(targets, n_negatives, N_ITEMS, seed_generator(9))  # (N, K): the same draw
    scores = torch.einsum("nd,nkd->nk", hidden, vectors[torch.cat([targets[:, None], negatives], dim=1)])
    logits = scores - torch.tensor(float(n_negatives)).log()  # (N, 1 + K)
    labels = torch.zeros_like(logits)
    labels[:, 0] = 1
    weights = torch.ones_like(logits)
    if loss == "gbce":  # beta of the paper's equation 9, at t = 0.6 and alpha = K / (n_items - 1)
        alpha = n_negatives / (N_ITEMS - 1)
        weights[:, 0] = 0.6 * (alpha - 1) + 1
    expected = functional.binary_cross_entropy_with_logits(logits, labels, weights)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_bert4rec_asks_for_hidden_events_and_for_next_ones():
    inter, _ = ring(n_users=400, length=9)
    windows = torch.stack(inter.histories())  # (400, 9)
    lengths = torch.full((400,), 9)
    model = small(BERT4Rec, max_length=9, mask_rate=0.3, next_rate=0.25).fit(inter)
    calls = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    hidden, targets = model.questions(windows, lengths, seed_generator(0))
    (rows, ends), masked = calls[0], calls[0][0] == N_ITEMS
    assert len(hidden) == len(targets) == int(masked.sum())
    assert torch.equal(windows[masked], targets)
    assert torch.equal(rows[~masked], windows[~masked])
    cut = ends < 9
    assert 0.15 < cut.float().mean() < 0.3  # a quarter, of which one in eight keeps its length
    assert (masked[cut].sum(1) == 1).all()
    assert masked[cut].gather(1, ends[cut, None] - 1).all()
    assert set(ends[cut].tolist()) == set(range(2, 9))
    assert masked[~cut].any(1).all()
    assert 0.22 < masked[~cut].float().mean() < 0.36
    # Padding is never asked for.
    model.next_rate = 0.0
    model.questions(windows, torch.arange(400) % 8 + 2, seed_generator(0))
    (rows, ends), masked = calls[1], calls[1][0] == N_ITEMS
    assert not (masked & ~present_tokens(ends, 9)).any()
    assert masked.any(1).all()
    # With next_rate=0 and hardly any masks, the last event is asked for.
    model.mask_rate, model.next_rate = 1e-9, 0.0
    _, targets = model.questions(windows, lengths, seed_generator(0))
    assert torch.equal(targets, windows[:, -1])


# --- training ----------------------------------------------------------------------------------------------


@BOTH
def test_validation_stops_training_and_keeps_the_best_state(cls):
    inter, _ = ring(n_users=30, length=9)
    last = inter.timestamps == 8
    model = small(cls, epochs=40, patience=2, check_every=1, learning_rate=0.02).fit(
        inter[~last], inter[last]
    )
    checks = [entry["ndcg@10"] for entry in model.log]
    assert len(checks) < 40
    assert len(checks) == model.best_epoch + 2
    assert max(checks) == checks[model.best_epoch - 1]
    assert validation_ndcg(model, HeldOut.of(inter[last], inter[~last]), inter[~last]) == pytest.approx(
        max(checks), abs=1e-6
    )
    assert not model.training


@BOTH
def test_the_seed_decides_and_the_global_state_is_left_alone(cls):
    inter, _ = ring()
    users = torch.arange(5)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = small(cls).fit(inter).score(users)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(small(cls).fit(inter).score(users), first)
    assert not torch.allclose(small(cls, seed=4).fit(inter).score(users), first)


@BOTH
def test_saving_and_loading_keeps_everything(cls, tmp_path):
    inter, _ = ring()
    model = small(cls, loss="gbce", n_negatives=3, positions=cls is SASRec).fit(inter)
    model.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    users, histories = torch.arange(40), [[1, 2], [], [3] * 9]
    assert torch.equal(loaded.score(users), model.score(users))
    assert torch.equal(loaded.score_histories(histories), model.score_histories(histories))
    assert torch.equal(loaded.attention([1, 2, 3]), model.attention([1, 2, 3]))
    assert loaded.config == model.config


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax", "bce", "gbce"])
@BOTH
def test_no_tensor_is_made_on_an_implicit_device(cls, loss, explicit_devices):
    inter, _ = ring()
    with explicit_devices:
        model = small(cls, loss=loss, epochs=1).fit(inter)
        model.score_histories([[1, 2], [], [3]])
        model.attention([1, 2])
        MarkovChain().fit(inter).score_histories(inter.histories())


def test_scoring_keeps_to_the_device_of_the_model(fitted):
    """With `meta` as the default device, a tensor made without saying where could not be used."""
    model, inter = fitted
    users = torch.arange(5, device="cpu")
    histories, expected = inter.histories(users), model.score(users)
    with torch.device("meta"):
        assert torch.equal(model.score(users), expected)
        assert torch.allclose(model.score_histories(histories), expected, atol=1e-5)
        assert model.attention(torch.tensor([1, 2], device="cpu")).device.type == "cpu"
    encoder = SequenceEncoder(5, 8, 1, 2, 6, causal=False).to("meta")
    items, lengths = (
        torch.zeros(2, 4, dtype=torch.int64, device="meta"),
        torch.zeros(2, dtype=torch.int64, device="meta"),
    )
    assert encoder(items, lengths).device.type == "meta"


# --- what they refuse --------------------------------------------------------------------------------------

MODELS = pytest.mark.parametrize(
    "make", [lambda: small(SASRec), lambda: small(BERT4Rec)], ids=["SASRec", "BERT4Rec"]
)


@pytest.mark.parametrize(
    ("histories", "error", "message"),
    [
        ([[0, N_ITEMS]], IndexError, f"item {N_ITEMS} is unknown.*fitted on {N_ITEMS} items"),
        ([[0], [3, -1]], IndexError, "item -1 is unknown"),
        ([torch.tensor([0.5])], TypeError, "integer indices, got torch.float32"),
        ([[0.5]], TypeError, "integer indices"),
        ([["a"]], TypeError, "each history must be a list or tensor of item indices"),
        ([[[0, 1]]], ValueError, "one-dimensional"),
        ([3], ValueError, "one-dimensional"),
        ([], ValueError, "histories is empty"),
        (torch.tensor([1, 2]), TypeError, "must be a list with one history a user.*got Tensor"),
        (7, TypeError, "must be a list with one history a user.*got int"),
    ],
)
def test_bad_histories_are_refused(fitted, histories, error, message):
    model, _ = fitted
    with pytest.raises(error, match=message):
        model.score_histories(histories)


def test_an_empty_history_has_no_attention(fitted):
    with pytest.raises(ValueError, match="empty history"):
        fitted[0].attention([])
    with pytest.raises(IndexError, match="item 99 is unknown"):
        fitted[0].attention([99])


@BOTH
def test_unfitted_models_say_so(cls):
    for ask in (lambda: cls().score_histories([[0]]), lambda: cls().attention([0])):
        with pytest.raises(NotFittedError, match=f"this {cls.__name__} is not fitted"):
            ask()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim must be 1 or more, got 0"),
        ({"max_length": 0}, "max_length must be 1 or more"),
        ({"n_negatives": 0}, "n_negatives must be 1 or more"),
        ({"dim": 10, "n_heads": 4}, "dim=10 cannot be shared evenly among n_heads=4"),
        ({"loss": "hinge"}, "loss must be one of softmax, sampled_softmax, bce, gbce"),
        ({"dropout": 1.0}, "dropout"),
        ({"calibration": 1.5}, "calibration"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
@BOTH
def test_hyper_parameters_are_checked(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(**arguments)


def test_bert4rec_checks_its_own():
    with pytest.raises(ValueError, match="mask_rate must be above 0 and below 1, got 1"):
        BERT4Rec(mask_rate=1.0)
    with pytest.raises(ValueError, match="next_rate"):
        BERT4Rec(next_rate=-0.1)


@BOTH
def test_data_without_a_next_item_are_refused(cls):
    with pytest.raises(ValueError, match=f"no user has two events, .*{cls.__name__}"):
        small(cls).fit(events([[0], [1]]))
    with pytest.raises(ValueError, match='loss="bce" needs other items as negatives'):
        small(cls, loss="bce").fit(events([[0, 0]], n_items=1))
    assert small(cls).fit(events([[0, 0]], n_items=1)).score(torch.tensor([0])).isfinite().all()
    with pytest.raises(
        ValueError, match="at most as many negatives as there are other items, 11; got n_negatives=12"
    ):
        small(cls, loss="gbce", n_negatives=12).fit(ring()[0])


def test_diverged_training_says_so():
    with pytest.raises(FloatingPointError, match=r"diverged; lower learning_rate=1e\+30"):
        small(SASRec, learning_rate=1e30, epochs=5).fit(ring()[0])


# --- the Markov chain --------------------------------------------------------------------------------------


def counted(histories: list[list[int]], times: list[list[int]], n_items: int) -> Tensor:
    """Transitions counted in every order of the ties, by brute force: (n_items, n_items)."""
    total = torch.zeros(n_items, n_items, dtype=torch.float64)
    for history, seconds in zip(histories, times, strict=True):
        groups = [
            [item for item, time in zip(history, seconds, strict=True) if time == moment]
            for moment in sorted(set(seconds))
        ]
        orders = list(itertools.product(*(itertools.permutations(group) for group in groups)))
        for order in orders:
            for a, b in itertools.pairwise(itertools.chain(*order)):
                total[a, b] += 1 / len(orders)
    return total


HISTORIES = st.lists(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=6), min_size=1, max_size=3
)


@settings(deadline=None, max_examples=60)
@given(HISTORIES.filter(any))
def test_transitions_are_the_mean_over_all_orders_of_ties(drawn):
    drawn = [sorted(history, key=lambda event: event[1]) for history in drawn]
    histories, times = ([[event[i] for event in history] for history in drawn] for i in (0, 1))
    inter = events(histories, n_items=5, times=times)
    expected = counted(histories, times, 5)
    for pairs in (2**23, 3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(markov, "_PAIRS", pairs)
            keys, counts, _, group_items = markov._transitions(inter)
        assert not len(group_items)  # none is large
        found = torch.zeros(25, dtype=torch.float64).index_add_(0, keys, counts.double()).view(5, 5)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert (keys.diff() > 0).all()

    # A user's scores are P of the last item, or its mean over the tied last items.
    model = MarkovChain(shrink=2.0).fit(inter)
    popularity = (inter.items.bincount(minlength=5) + 1.0) / (len(inter) + 5)
    p = (expected + 2.0 * popularity) / (expected.sum(1, keepdim=True) + 2.0)
    scores = model.score(torch.arange(len(histories)))
    for large, pairs in ((0, 2**20), (6, 2**20), (2**40, 2)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(markov, "_LARGE", large)
            patch.setattr(markov, "_PAIRS", pairs)
            patch.setattr(markov, "_CELLS", 1)  # one user at a time
            other = MarkovChain(shrink=2.0).fit(inter)
            assert bool(len(other.group_items)) or large > 0
            torch.testing.assert_close(other.score(torch.arange(len(histories))), scores)
    for user, (history, seconds) in enumerate(zip(histories, times, strict=True)):
        last = sorted({item for item, time in zip(history, seconds, strict=True) if time == max(seconds)})
        row = p[last].mean(0) if last else popularity.double()
        torch.testing.assert_close(scores[user].double(), row, rtol=1e-4, atol=1e-6)


def test_a_large_tied_group_is_kept_as_a_group():
    """One of 8,000 events has 64 million pairs; another follows it, and other users have small ones."""
    n, after, shrink = 8000, 3, 5.0
    frame = pd.DataFrame(
        [(0, i, 0) for i in range(n)] + [(0, i, 1) for i in range(after)] + [(1, 0, 0), (1, 1, 1), (2, 7, 0)],
        columns=["user_id", "item_id", "timestamp"],
    )
    inter = Interactions.from_frame(frame, item_ids=range(n))
    model = MarkovChain(shrink=shrink).fit(inter)
    assert len(model.transition_items) == after * (after - 1)  # 0 to 1 is among them
    assert model.group_crow.tolist() == [0, n, n + after]
    popularity = (inter.items.bincount(minlength=n) + 1.0) / (len(inter) + n)  # (n,)
    scores = model.score_histories([[n - 1], [0]])  # (2, n)
    count = torch.full((n,), 1 / n)  # of the last item
    count[:after] += 1 / (n * after)
    count[n - 1] = 0.0
    expected = (count + shrink * popularity) / (count.sum() + shrink)
    torch.testing.assert_close(scores[0], expected, rtol=1e-5, atol=0)
    count = torch.full((n,), 1 / n)  # of item 0, which is in both groups and in the pair 0, 1
    count[:after] += 1 / (n * after) + 1 / after
    count[0] -= 1 / n + 1 / after
    count[1] += 1.0
    expected = (count + shrink * popularity) / (count.sum() + shrink)
    torch.testing.assert_close(scores[1], expected, rtol=1e-5, atol=0)


def test_the_markov_chain_learns_the_neighbor_and_reads_the_last_item_only(tmp_path):
    inter, neighbor = ring()
    model = MarkovChain().fit(inter)
    scores = model.score_histories([torch.tensor([item]) for item in range(N_ITEMS)])
    assert torch.equal(scores.argmax(1), neighbor)
    torch.testing.assert_close(scores.sum(1), torch.ones(N_ITEMS))
    a, b = model.score_histories([torch.tensor([1, 2, 3]), torch.tensor([8, 7, 3])])
    assert torch.equal(a, b)
    empty = model.score_histories([torch.tensor([], dtype=torch.int64)])[0]
    torch.testing.assert_close(empty, (inter.items.bincount() + 1.0) / (len(inter) + N_ITEMS))
    model.save_pretrained(tmp_path)
    assert torch.equal(
        MarkovChain.from_pretrained(tmp_path).score(torch.arange(40)), model.score(torch.arange(40))
    )


def test_more_shrinkage_is_nearer_to_popularity():
    inter, _ = ring()
    little, much = (MarkovChain(shrink=shrink).fit(inter).score(torch.arange(4)) for shrink in (1e-6, 1e6))
    torch.testing.assert_close(much, MarkovChain().fit(inter).popularity.expand(4, -1), rtol=1e-3, atol=1e-4)
    assert (little.amax(1) > 0.99).all()
    for shrink in (0.0, -1.0):
        with pytest.raises(ValueError, match="shrink"):
            MarkovChain(shrink=shrink)


@pytest.mark.parametrize("p", [0.1, 0.2, 0.7])
def test_quick_dropout_drops_its_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(500, 401, device="cpu", requires_grad=True)
    y = QuickDropout(p)(x)
    dropped = (y == 0).double()
    spread = 4 * (p * (1 - p) / x.numel()) ** 0.5
    assert abs(dropped.mean().item() - p) < spread
    # ... each by itself: a neighbor to the right or below is dropped no more often
    for a, b in ((dropped[:, 1:], dropped[:, :-1]), (dropped[1:], dropped[:-1])):
        assert abs((a * b).mean().item() - p**2) < 2 * spread
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)), rtol=1e-4, atol=0)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], y.detach())


def test_quick_dropout_is_off_where_dropout_is_and_follows_the_seed():
    x = torch.randn(7, 3, 5)
    assert torch.equal(QuickDropout(0.5).eval()(x), x)
    assert torch.equal(QuickDropout(0.0)(x), x)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(QuickDropout(0.5)(x))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
