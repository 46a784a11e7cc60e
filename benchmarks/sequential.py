"""SASRec beside the same model on ``torch.nn.TransformerEncoder``: an epoch of training, scoring everyone.

On the positives of MovieLens-100K (ratings of 4 and more), with 64 features, 2 blocks, 2 heads, histories of
up to 100 events, full softmax. All variants run in one process, in turn, and do the same work: every variant
answers the same questions, and computes the loss at real events only. They differ in layers and padding:

- ours: the library's layers, windows of similar length in a batch;
- torch, our batches: torch's layers on exactly our batches, which isolates the layers;
- torch, padded to the batch: torch's layers, windows at random in a batch, padded to the longest of them;
- torch, padded to 100: the same, padded to the full length, as implementations of SASRec commonly do.

Our batches hold 2,048 events each; the others as many windows as make that many events on average, so that
all take about the same number of steps. Usage::

    OMP_NUM_THREADS=1 python benchmarks/sequential.py [--rounds 5] [--dropout 0.2]
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from recsys_lib.attention import present_tokens
from recsys_lib.data import Interactions, load_movielens
from recsys_lib.devices import seed_generator
from recsys_lib.losses import softmax_loss
from recsys_lib.models import SASRec
from recsys_lib.models.core.windows import by_length, cut_windows, rows_of

DIM, LAYERS, HEADS, LENGTH, STEP = 64, 2, 2, 100, 2048
Batches = Callable[[torch.Generator], Iterator[tuple[Tensor, Tensor]]]


class TorchSASRec(nn.Module):
    """The body of SASRec on torch's own layers: the same shapes, places counted from the end, causal."""

    def __init__(self, n_items: int, dropout: float) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            DIM, HEADS, 4 * DIM, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        layer.self_attn.dropout = 0.0  # as ours, which leaves attention weights alone
        self.item_embedding = nn.Embedding(n_items, DIM)
        self.position_embedding = nn.Embedding(LENGTH, DIM)
        self.body = nn.TransformerEncoder(layer, LAYERS, norm=nn.LayerNorm(DIM), enable_nested_tensor=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        """(B, T), (B,) -> (B, T, d)."""
        length = items.shape[1]
        later = (lengths[:, None] - 1 - torch.arange(length)).clamp(min=0)  # (B, T)
        x = (self.item_embedding(items) + self.position_embedding(later)) * math.sqrt(DIM)  # (B, T, d)
        mask = nn.Transformer.generate_square_subsequent_mask(length)  # (T, T)
        return self.body(self.dropout(x), mask=mask, is_causal=True)  # (B, T, d)


def epoch(
    encoder: nn.Module, vectors: Tensor, optimizer: torch.optim.Optimizer, batches: Batches, seed: int
) -> tuple[float, int, int]:
    """Trains for one epoch: seconds, questions answered, events computed (padding included)."""
    encoder.train()
    generator = seed_generator(seed)
    start, questions, events = time.perf_counter(), 0, 0
    for windows, lengths in batches(generator):
        optimizer.zero_grad(set_to_none=True)
        asked = present_tokens(lengths - 1, windows.shape[1] - 1)  # (B, T)
        hidden = encoder(windows[:, :-1], lengths - 1)[asked]  # (N, d)
        loss = softmax_loss(hidden @ vectors.mT, windows[:, 1:][asked])
        loss.backward()
        optimizer.step()
        questions, events = questions + len(hidden), events + asked.numel()
    return time.perf_counter() - start, questions, events


def padded_batches(events: Interactions, full: bool) -> Batches:
    """Windows at random in batches, padded to the longest of the batch or to the full length."""

    def batches(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        starts, lengths = cut_windows(events, LENGTH, generator)  # (M,), (M,)
        rows_a_batch = round(STEP / float(lengths.float().mean()))
        for chosen in torch.randperm(len(starts), generator=generator).split(rows_a_batch):
            rows = rows_of(events.items, starts[chosen], lengths[chosen])  # (B, T)
            if full:
                rows = nn.functional.pad(rows, (0, LENGTH + 1 - rows.shape[1]))
            yield rows, lengths[chosen]

    return batches


@torch.no_grad()
def score_padded(
    encoder: nn.Module, vectors: Tensor, model: SASRec, batch: int = 128
) -> tuple[float, Tensor]:
    """Scores all users, histories padded to the full length: seconds, (U, n_items)."""
    encoder.eval()
    start = time.perf_counter()
    counts = model.history_crow.diff()  # (U,)
    lengths = counts.clamp(max=LENGTH)
    scores = []
    for users in torch.arange(len(counts)).split(batch):
        n = lengths[users]  # (b,)
        rows = rows_of(model.history_items, model.history_crow[users + 1] - n, n)  # (b, T)
        rows = nn.functional.pad(rows, (0, LENGTH - rows.shape[1]))  # (b, 100)
        hidden = encoder(rows, n.clamp(min=1))  # (b, T, d)
        scores.append(hidden[torch.arange(len(users)), n.clamp(min=1) - 1] @ vectors.mT)
    return time.perf_counter() - start, torch.cat(scores)


@torch.no_grad()
def score_our_batches(encoder: nn.Module, vectors: Tensor, model: SASRec) -> float:
    """Scores all users with torch's layers in batches of similar length: seconds."""
    encoder.eval()
    start = time.perf_counter()
    lengths = model.history_crow.diff().clamp(max=LENGTH)  # (U,)
    known = lengths.nonzero().squeeze(1)
    scores = model.log_popularity.repeat(len(lengths), 1)  # (U, n_items)
    for batch in by_length(lengths[known], 2**13):
        users = known[batch]
        n = lengths[users]  # (b,)
        rows = rows_of(model.history_items, model.history_crow[users + 1] - n, n)  # (b, T)
        scores[users] = encoder(rows, n)[torch.arange(len(users)), n - 1] @ vectors.mT
    return time.perf_counter() - start


def score_ours(model: SASRec) -> tuple[float, Tensor]:
    """Scores all users: seconds, (U, n_items)."""
    start = time.perf_counter()
    scores = model.score(torch.arange(model.n_users))
    return time.perf_counter() - start, scores


def copy_weights(source: SASRec, target: TorchSASRec) -> None:
    """Gives torch's layers our weights, so that both must give the same scores."""
    with torch.no_grad():
        target.item_embedding.weight.copy_(source.encoder.item_embedding.weight)
        assert source.encoder.position_embedding is not None
        target.position_embedding.weight.copy_(source.encoder.position_embedding.weight)
        target.body.norm.load_state_dict(source.encoder.norm.state_dict())
        for ours, theirs in zip(source.encoder.blocks, target.body.layers, strict=True):
            qkv = (ours.attention.query, ours.attention.key, ours.attention.value)
            theirs.self_attn.in_proj_weight.copy_(torch.cat([linear.weight for linear in qkv]))
            theirs.self_attn.in_proj_bias.copy_(torch.cat([linear.bias for linear in qkv]))
            theirs.self_attn.out_proj.load_state_dict(ours.attention.output.state_dict())
            theirs.linear1.load_state_dict(ours.feed_forward.up.state_dict())
            theirs.linear2.load_state_dict(ours.feed_forward.down.state_dict())
            theirs.norm1.load_state_dict(ours.attention_norm.state_dict())
            theirs.norm2.load_state_dict(ours.feed_forward_norm.state_dict())


def show(title: str, seconds: dict[str, list[float]], remarks: dict[str, str]) -> None:
    print(f"\n{title}")
    ours = seconds["ours"]
    for name, runs in seconds.items():
        ratio = statistics.median(b / a for a, b in zip(ours, runs, strict=True))
        fastest = min(runs) / min(ours)
        print(
            f"  {name:<28} {statistics.median(runs):7.3f} s (fastest {min(runs):.3f}), {ratio:5.2f} x ours "
            f"(fastest {fastest:.2f})  {remarks.get(name, '')}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dropout", type=float, default=SASRec().dropout)
    args = parser.parse_args()
    events = load_movielens("100k").interactions.positives(4.0)
    print(f"{events}, {torch.get_num_threads()} threads, dropout {args.dropout}")

    sizes = {"dim": DIM, "n_layers": LAYERS, "n_heads": HEADS, "max_length": LENGTH}
    model = SASRec(**sizes, dropout=args.dropout, batch_size=STEP, epochs=1).fit(events, device="cpu")
    vectors = model.encoder.item_embedding.weight
    twin = TorchSASRec(model.n_items, args.dropout)
    copy_weights(model, twin)
    known = events.user_counts() > 0  # (U,)
    difference = (score_padded(twin, vectors, model)[1] - score_ours(model)[1])[known].abs().max()
    print(f"the same weights in both give the same scores to {float(difference):.0e}")

    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    twin_optimizer = torch.optim.Adam(twin.parameters(), fused=True)
    ours_batches = partial(model._batches, events)
    training = {
        "ours": (model.encoder, optimizer, ours_batches),
        "torch, our batches": (twin, twin_optimizer, ours_batches),
        "torch, padded to the batch": (twin, twin_optimizer, padded_batches(events, full=False)),
        "torch, padded to 100": (twin, twin_optimizer, padded_batches(events, full=True)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in training}
    remarks = {}
    for round_ in range(args.rounds + 1):
        for name, (encoder, its_optimizer, batches) in training.items():
            vectors = encoder.item_embedding.weight
            taken, questions, computed = epoch(encoder, vectors, its_optimizer, batches, seed=round_)
            remarks[name] = f"{questions:,} questions, {computed / questions - 1:.1%} padding"
            if round_:  # the first round warms up
                seconds[name].append(taken)
    show("training, one epoch", seconds, remarks)

    seconds = {"ours": [], "torch, our batches": [], "torch, padded to 100": []}
    model.eval()
    for round_ in range(4 * args.rounds + 1):
        taken = (
            score_ours(model)[0],
            score_our_batches(twin, twin.item_embedding.weight, model),
            score_padded(twin, twin.item_embedding.weight, model)[0],
        )
        if round_:
            for runs, value in zip(seconds.values(), taken, strict=True):
                runs.append(value)
    show(f"scoring all {model.n_users} users", seconds, {})


if __name__ == "__main__":
    main()
