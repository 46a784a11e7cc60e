"""What runs on the device under test gives what the CPU gives; ``RECSYS_TEST_DEVICE`` names the device.

The models are held to it by the conformance suite; this is everything below them.
"""

import pytest
import torch
from torch import Tensor

from recsys_lib import calibration, list_losses, losses, metrics, similarity
from recsys_lib.attention import (
    MultiHeadAttention,
    TransformerEncoder,
    attention_weights,
    causal_mask,
    padding_mask,
    scaled_dot_product_attention,
)
from recsys_lib.data.ragged import distinct_events, row_of_each, run_starts, sort_by, take_rows
from recsys_lib.devices import seed_generator
from recsys_lib.negatives import NegativeSampler, other_items
from recsys_lib.ranking import rank_candidates, rank_topk
from recsys_lib.text import TextEncoder, load_minilm, pool
from recsys_lib.training import batches, train


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randint(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, expected: Tensor, device: torch.device, tolerance: float = 1e-4) -> None:
    assert found.device.type == device.type
    torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("fused", [True, False])
def test_attention(device, fused):
    q, k, v = (randn(2, 3, 7, 8, seed=s) for s in range(3))
    mask = padding_mask(torch.tensor([[True] * 7, [True] * 4 + [False] * 3]))
    here = [x.to(device) for x in (q, k, v)]
    for causal in (True, False):
        expected = scaled_dot_product_attention(q, k, v, mask, causal, fused=False)
        close(scaled_dot_product_attention(*here, mask.to(device), causal, fused=fused), expected, device)
    close(attention_weights(*here[:2], mask.to(device)), attention_weights(q, k, mask), device)
    assert causal_mask(5, device=device).device.type == device.type


def test_an_encoder_and_its_gradients(device):
    torch.manual_seed(0)
    encoder = TransformerEncoder(30, 16, 2, 4, max_length=9).eval()
    ids, present = randint(30, 2, 9), torch.tensor([[True] * 9, [True] * 5 + [False] * 4])
    twin = TransformerEncoder(30, 16, 2, 4, max_length=9).eval()
    twin.load_state_dict(encoder.state_dict())
    twin.to(device)
    expected, found = encoder(ids, present), twin(ids.to(device), present.to(device))
    close(found.detach()[:, :5], expected.detach()[:, :5], device)
    for output in (expected, found):
        output[:, :5].square().mean().backward()
    for (name, ours), theirs in zip(encoder.named_parameters(), twin.parameters(), strict=True):
        if ours.grad is not None:
            torch.testing.assert_close(theirs.grad.cpu(), ours.grad, rtol=1e-3, atol=1e-4, msg=name)
    heads = MultiHeadAttention(16, 4).to(device)
    assert heads.weights(randn(2, 5, 16).to(device)).shape == (2, 4, 5, 5)


@pytest.mark.parametrize("name", ["bpr_loss", "bce_loss"])
def test_losses_of_pairs(device, name):
    loss = getattr(losses, name)
    positive, negative = randn(6), randn(6, 4, seed=1)
    close(loss(positive.to(device), negative.to(device)), loss(positive, negative), device)


def test_other_losses(device):
    positive, negative, scores = randn(6), randn(6, 4, seed=1), randn(6, 20, seed=2)
    targets = randint(20, 6)
    close(
        losses.softmax_loss(scores.to(device), targets.to(device)),
        losses.softmax_loss(scores, targets),
        device,
    )
    expected = losses.gbce_loss(positive, negative, 20, 0.75)
    close(losses.gbce_loss(positive.to(device), negative.to(device), 20, 0.75), expected, device)
    log_q = torch.full_like(negative, -3.0)
    expected = losses.sampled_softmax_loss(positive, negative, log_q_negative=log_q)
    arguments = (positive.to(device), negative.to(device))
    close(losses.sampled_softmax_loss(*arguments, log_q_negative=log_q.to(device)), expected, device)


@pytest.mark.parametrize("name", [name for name in list_losses.__all__ if name != "listmle_loss"])
def test_losses_of_lists(device, name):
    loss = getattr(list_losses, name)
    scores, gains, present = randn(6, 5), randint(4, 6, 5), randint(3, 6, 5, seed=1) > 0
    found = loss(scores.to(device), gains.to(device), present.to(device))
    close(found, loss(scores, gains, present), device)


def test_the_likelihood_of_an_order(device):
    scores, order = randn(6, 5), randn(6, 5, seed=1).argsort(dim=1)
    order[:, -1] = -1
    found = list_losses.listmle_loss(scores.to(device), order.to(device))
    close(found, list_losses.listmle_loss(scores, order), device)


def test_calibration(device):
    logits, labels = 3 * randn(200), randint(2, 200, seed=1)
    p = logits.sigmoid()
    for measure in (
        calibration.log_loss,
        calibration.brier_score,
        calibration.expected_calibration_error,
    ):
        found = measure(p.to(device), labels.to(device)).cpu().double()
        torch.testing.assert_close(found, measure(p, labels), rtol=1e-4, atol=1e-6)
    labels = (logits + 2 * randn(200, seed=2) > 0).long()
    found = calibration.temperature_of(logits.to(device), labels.to(device))
    assert found == pytest.approx(calibration.temperature_of(logits, labels), rel=1e-3)


def test_lists_and_ties_are_the_same_on_every_device(device):
    scores, users = randint(4, 50, 40).float(), randint(1000, 50, seed=1)
    items, values = rank_topk(scores, 10, users=users, seed=3)
    found, found_values = rank_topk(scores.to(device), 10, users=users.to(device), seed=3)
    assert torch.equal(found.cpu(), items)
    assert torch.equal(found_values.cpu(), values)
    candidates = torch.stack([torch.randperm(40, generator=seed_generator(i))[:6] for i in range(50)])
    given = scores.gather(1, candidates)
    expected, _ = rank_candidates(given, candidates, users=users)
    found, _ = rank_candidates(given.to(device), candidates.to(device), users=users.to(device))
    assert torch.equal(found.cpu(), expected)


def test_metrics(device):
    hits = randint(2, 30, 10).bool()
    n_relevant = hits.sum(1) + 2
    for name, metric in metrics.RANKING.items():
        found = metric(hits.to(device), n_relevant.to(device)).cpu().double()
        torch.testing.assert_close(found, metric(hits, n_relevant).double(), rtol=1e-6, atol=1e-6, msg=name)
    scores, relevant = randint(9, 30, 20).float(), randint(2, 30, 20, seed=1).bool()
    relevant[:, 0], relevant[:, 1] = True, False
    found = metrics.auc(scores.to(device), relevant.to(device)).cpu().double()
    torch.testing.assert_close(found, metrics.auc(scores, relevant).double(), rtol=1e-6, atol=1e-6)


def test_similarities(device):
    a, b = randn(9, 6), randn(7, 6, seed=1)
    for measure in (similarity.dot, similarity.cosine, similarity.euclidean):
        close(measure(a.to(device), b.to(device)), measure(a, b), device)
    neighbors, _ = similarity.top_neighbors(a.to(device), 3)
    assert torch.equal(neighbors.cpu(), similarity.top_neighbors(a, 3)[0])


def test_ragged_rows(device):
    users, items, times = randint(6, 40), randint(9, 40, seed=1), randint(5, 40, seed=2)
    order = sort_by(users, times)
    assert torch.equal(sort_by(users.to(device), times.to(device)).cpu(), order)
    expected = distinct_events(users, items, times, 6, 9)
    found = distinct_events(users.to(device), items.to(device), times.to(device), 6, 9)
    for name in ("users", "items", "timestamps", "crow"):
        assert torch.equal(getattr(found, name).cpu(), getattr(expected, name))
    rows = torch.tensor([3, 0, 3])
    for ours, theirs in zip(
        take_rows(found.crow, rows.to(device)), take_rows(expected.crow, rows), strict=True
    ):
        assert torch.equal(ours.cpu(), theirs)
    assert torch.equal(row_of_each(found.crow).cpu(), row_of_each(expected.crow))
    assert torch.equal(run_starts(found.users).cpu(), run_starts(expected.users))


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_negatives(device, kind):
    crow, items = torch.tensor([0, 2, 3]), torch.tensor([1, 4, 0])
    sampler = NegativeSampler(crow.to(device), items.to(device), 6, kind)
    users = torch.tensor([0, 1], device=device)
    drawn = sampler.sample(users, 500, seed_generator(0, device))
    assert drawn.device.type == device.type
    assert set(drawn[0].tolist()) == {0, 2, 3, 5}
    assert set(drawn[1].tolist()) == {1, 2, 3, 4, 5}
    targets = torch.tensor([2, 0], device=device)
    assert (other_items(targets, 50, 3, seed_generator(0, device)) != targets[:, None]).all()
    assert torch.cat(list(batches(10, 3, seed_generator(0, device)))).device.type == device.type


def test_the_loop(device):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1).to(device)
    x = randn(32, 4).to(device)
    y = x.sum(1, keepdim=True)
    done = train(
        model,
        lambda: [((model(x) - y).square().mean(), len(x))] * 1,
        epochs=60,
        learning_rate=0.1,
        progress=False,
    )
    assert done.log[-1]["loss"] < 0.05 * done.log[0]["loss"]


def test_texts(device):
    texts = ["a film about the sea", "tax law", ""]
    published = TextEncoder(device=device, cache=False).encode(texts, progress=False)  # (3, 384)
    close(published, TextEncoder(device="cpu", cache=False).encode(texts, progress=False), device, 1e-3)
    batch = TextEncoder(device=device, cache=False).tokenize(texts)
    hidden = load_minilm(device)(batch["input_ids"], batch["attention_mask"])  # (3, T, 384)
    own = torch.nn.functional.normalize(pool(hidden, batch["attention_mask"]), dim=-1)
    torch.testing.assert_close(own.detach(), published, rtol=1e-3, atol=1e-4)
