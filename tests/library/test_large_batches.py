"""Large batches: in chunks and in shares, the gradient is that of the whole batch."""

import gc
import weakref
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn import functional

from recsys_lib.data import Interactions
from recsys_lib.large_batches import any_process, average_gradients, in_chunks, in_shares, n_processes
from recsys_lib.losses import in_batch_softmax_loss
from recsys_lib.models import TwoTower
from recsys_lib.training import train


def tower(dropout: float = 0.0, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 4))


def rows(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


def gradients(encode, parameters: nn.Module, n: int = 13) -> tuple[Tensor, list[Tensor]]:
    """The in-batch loss of n rows, and the gradients of the parameters."""
    parameters.zero_grad()
    loss = in_batch_softmax_loss(encode(rows(n, 1)) @ encode(rows(n, 2)).mT)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in parameters.parameters()]


# In chunks.


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 15), st.integers(0, 17))
def test_the_gradient_in_chunks_is_the_plain_one(n, chunk):
    model = tower()
    plain = gradients(model, model, n)
    cached = gradients(lambda x: in_chunks(model, x, chunk=chunk), model, n)
    torch.testing.assert_close(cached, plain, rtol=1e-5, atol=1e-6)


def test_dropout_drops_the_same_in_both_passes():
    model = tower(dropout=0.5)

    def plain(x: Tensor) -> Tensor:
        return torch.cat([model(part) for part in x.split(4)])

    found = []
    for encode in (plain, lambda x: in_chunks(model, x, chunk=4)):
        torch.manual_seed(7)
        found.append(gradients(encode, model))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    torch.manual_seed(8)
    assert gradients(plain, model)[0] != found[0][0]


class Watched(nn.Module):
    """A tower that counts its calls, and how many rows of its activations are alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls, self.most = nn.Linear(5, 4), 0, 0
        self.alive: list[tuple[weakref.ref, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        inside = self.layer(x)  # kept for the gradient of the product
        self.alive.append((weakref.ref(inside), len(inside)))
        gc.collect()
        self.most = max(self.most, sum(n for ref, n in self.alive if ref() is not None))
        return inside * inside


def test_no_more_than_a_chunk_is_held():
    for chunk, calls, most in ((0, 1, 12), (4, 6, 4)):  # each of three chunks is encoded twice
        model = Watched()
        in_chunks(model, rows(12), chunk=chunk).square().sum().backward()
        assert model.calls == calls
        assert most <= model.most <= 2 * most
        assert chunk == 0 or model.most < 12


def test_without_a_gradient_each_chunk_is_encoded_once():
    model = Watched()
    with torch.no_grad():
        found = in_chunks(model, rows(12), chunk=5)
    assert model.calls == 3
    torch.testing.assert_close(found, model(rows(12)))


def test_rows_of_several_inputs_stay_together():
    def encode(a: Tensor, b: Tensor) -> Tensor:
        return a * b[:, None]

    b = torch.arange(7.0)
    torch.testing.assert_close(in_chunks(encode, rows(7), b, chunk=2), encode(rows(7), b))
    with pytest.raises(ValueError, match=r"one length, got \[7, 6\]"):
        in_chunks(encode, rows(7), b[:6], chunk=2)
    with pytest.raises(ValueError, match="chunk must be 0 or more, got -1"):
        in_chunks(encode, rows(7), b, chunk=-1)


class Sentences(nn.Sequential):
    """A tower as sentence-transformers calls it."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": self[0](features["input_ids"])}


def test_the_loss_and_its_gradient_are_those_of_sentence_transformers():
    from sentence_transformers.sentence_transformer import losses

    model = tower(dropout=0.4)
    columns = [{"input_ids": rows(13, 1)}, {"input_ids": rows(13, 2)}]
    theirs = losses.CachedMultipleNegativesRankingLoss(Sentences(model), scale=1 / 0.3, mini_batch_size=4)
    model.zero_grad()
    torch.manual_seed(5)
    expected = theirs(columns, torch.empty(0))
    expected.backward()
    gradient = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch.manual_seed(5)
    u, v = (in_chunks(model, rows(13, seed), chunk=4) for seed in (1, 2))
    scores = functional.normalize(u, dim=1) @ functional.normalize(v, dim=1).mT
    found = in_batch_softmax_loss(scores, temperature=0.3)
    found.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close([p.grad for p in model.parameters()], gradient, rtol=1e-5, atol=1e-6)


USERS, ITEMS = 12, 9
FRAME = pd.DataFrame(
    [(u, (u * t + t) % (ITEMS - 2), t) for u in range(USERS) for t in range(5)],
    columns=["user_id", "item_id", "timestamp"],
)
OPTIONS = [
    {"user_tower": "history_mean", "item_tower": "id+text"},
    {"user_tower": "text", "item_tower": "text", "text_hidden": 6, "masked": "known"},
    {"user_tower": "history_attention", "item_tower": "text", "dropout": 0.0},
    {"user_tower": "id", "item_tower": "text", "loss": "softmax"},
]


def fit(options: dict, **more) -> TwoTower:
    inter = Interactions.from_frame(FRAME, item_ids=range(ITEMS))
    text = torch.randn(ITEMS, 6, generator=torch.Generator().manual_seed(1))
    # 48 examples: two batches of 20 and one of 8.
    model = TwoTower(**{"dim": 4, "epochs": 2, "batch_size": 20, "text": text} | options | more)
    return model.fit(inter, device="cpu", progress=False)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o['user_tower']}-{o['item_tower']}")
def test_two_towers_learn_the_same_in_chunks(options):
    plain, cached = (fit(options, cache_chunk=chunk) for chunk in (0, 3))
    users = torch.arange(USERS)
    torch.testing.assert_close(cached.score(users), plain.score(users), rtol=1e-3, atol=1e-4)


# In shares.


def start(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world
    )


def work(rank: int, world: int, folder: str) -> None:
    """What each process does: gradients of a batch, and whole fits; written to a file of its own."""
    start(rank, world, folder)
    model, found = tower(), {}
    for n in (13, 12, 2, 1):
        loss, _ = gradients(lambda x: in_shares(model, x), model, n)
        average_gradients(model.parameters())
        found[n] = (loss, [p.grad.clone() for p in model.parameters()])
    calls = Watched()
    in_shares(calls, rows(13))
    found["rows"] = sum(n for _, n in calls.alive)
    with torch.no_grad():
        in_shares(calls, rows(13))
    found["rows without gradient"] = sum(n for _, n in calls.alive) - found["rows"]
    found["any"] = [any_process(rank == 1, torch.device("cpu")), any_process(False, torch.device("cpu"))]
    found["scores"] = [fit(options, cache_chunk=3).score(torch.arange(USERS)) for options in OPTIONS]
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(work, args=(2, str(folder)), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_have_the_gradient_of_one_with_the_joined_batch(two_processes):
    model = tower()
    for n in (13, 12, 2, 1):
        whole = gradients(model, model, n)
        for found in two_processes:
            torch.testing.assert_close(found[n], whole, rtol=1e-5, atol=1e-6)
    # Each encoded its part of the rows; all of them where nobody waits for the other.
    assert [found["rows"] for found in two_processes] == [7, 6]
    assert [found["rows without gradient"] for found in two_processes] == [13, 13]


def test_two_processes_learn_what_one_learns(two_processes):
    for place, options in enumerate(OPTIONS):
        alone = fit(options).score(torch.arange(USERS))
        first, second = (found["scores"][place] for found in two_processes)
        assert torch.equal(first, second)
        torch.testing.assert_close(first, alone, rtol=1e-3, atol=1e-4)


def test_processes_take_the_same_turn(two_processes):
    assert all(found["any"] == [True, False] for found in two_processes)


def test_one_process_asks_nobody():
    assert n_processes() == 1
    assert any_process(True, torch.device("cpu"))
    model = tower()
    torch.testing.assert_close(in_shares(model, rows(3)), model(rows(3)))
    before = gradients(model, model)[1]
    average_gradients(model.parameters())
    assert all(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before, strict=True))
    assert train(model, lambda: [(model(rows(3)).sum(), 3)], epochs=1, learning_rate=0.1, progress=False).log
