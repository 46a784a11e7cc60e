"""``TwoTower`` beside the ``MultipleNegativesRankingLoss`` of ``sentence_transformers``: the same towers.

Both learn from the same examples of MovieLens-100K, in turn within one process, and each round gives one
ratio of their times, so that whatever slows the machine down slows both. Two pairs of towers:

- frozen: the mean of the vectors of a history's texts, and the vector of an item's text, a linear map behind
  each. One epoch. Both run the same modules on the same batches, so that what differs is the loss and what is
  around it. Ours with and without the correction for popularity, which the other has not.
- learning: the same user tower, and all-MiniLM-L6-v2 with a linear map as the item tower, learning along.
  Some steps of an epoch. Theirs is built of its own modules (``Transformer``, ``Pooling``) and tokenizes each
  batch, as its data collator does.

Their trainer needs ``accelerate``; the loop around their loss is a bare one here, with Adam as in ours.
Usage::

    OMP_NUM_THREADS=1 python benchmarks/two_tower.py [--rounds 5] [--steps 3] [--batch 256]
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice

import sentence_transformers
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor, nn

from recsys_lib.data import leave_last_out, load_movielens
from recsys_lib.devices import seed_generator
from recsys_lib.models import TwoTower
from recsys_lib.models.two_tower import UserItemPairs
from recsys_lib.text import TextEncoder
from recsys_lib.training import batches

TEMPERATURE = 0.2


class Columns(nn.Module):
    """Two towers as sentence-transformers calls a model: users in one column, items in the other."""

    def __init__(self, model: TwoTower, encoder: SentenceTransformer | None) -> None:
        super().__init__()
        self.user, self.encoder = model.user, encoder
        self.item = model.item if encoder is None else nn.Linear(encoder.get_embedding_dimension(), model.dim)
        self.text = model.item_text.vectors  # (n_items, D)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """One column: users if it has histories, items if not."""
        if "starts" in features:
            history = (features[name] for name in ("read", "starts", "lengths"))
            vectors = self.user(*history, self.text)  # (B, d)
        elif self.encoder is None:
            vectors = self.item(None, self.text[features["items"]])  # (B, d)
        else:
            vectors = self.item(self.encoder(features)["sentence_embedding"])  # (B, d)
        return {"sentence_embedding": vectors}


def ours(model: TwoTower, examples: UserItemPairs) -> Iterator[Tensor]:
    return (loss for loss, _ in model.losses(examples, seed_generator(0)))


def theirs(columns: Columns, examples: UserItemPairs, texts: list[str], batch_size: int) -> Iterator[Tensor]:
    loss = MultipleNegativesRankingLoss(columns, scale=1 / TEMPERATURE)
    for batch in batches(len(examples.users), batch_size, seed_generator(0)):
        starts, lengths = examples.starts[batch], examples.lengths[batch]
        items = examples.items[batch]
        users = {"read": examples.read, "starts": starts, "lengths": lengths}
        if columns.encoder is None:
            chosen = {"items": items}
        else:
            chosen = columns.encoder.preprocess([texts[item] for item in items.tolist()])
        yield loss([users, chosen], torch.empty(0))


def seconds(module: nn.Module, losses: Iterator[Tensor]) -> float:
    """Processor time of the steps."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-5, fused=True)
    start = time.process_time()
    for loss in losses:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return time.process_time() - start


def compare(name: str, rounds: int, sides: tuple[Callable[[], float], Callable[[], float]]) -> None:
    times = []
    for i in range(rounds):
        order = (0, 1) if i % 2 else (1, 0)  # neither is always the first
        taken = {side: sides[side]() for side in order}
        times.append((taken[0], taken[1]))
    ratios = sorted(b / a for a, b in times)
    a, b = (statistics.median(column) for column in zip(*times, strict=True))
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    print(f"{name:>26} {a:8.2f} {b:9.2f} {statistics.median(ratios):6.2f}  {spread}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of the encoder that learns along")
    parser.add_argument("--batch", type=int, default=256, help="examples in each of those")
    args = parser.parse_args()

    data = load_movielens("100k", progress=False)
    texts = data.items["text"].tolist()
    events = leave_last_out(data.interactions.positives(4.0), 0.2).history
    encoder = TextEncoder(device="cpu")
    vectors = encoder.encode(texts, progress=False)
    print(
        f"torch {torch.__version__}, sentence-transformers {sentence_transformers.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    print(
        "seconds of processor time; ratio: theirs over ours, so above 1 ours is faster; median, then spread"
    )
    print(f"{'towers':>26} {'ours s':>8} {'theirs s':>9} {'ratio':>6}  least to greatest")

    options = {"user_tower": "text", "item_tower": "text", "temperature": TEMPERATURE, "epochs": 1}
    for log_q, masked in (("none", "nothing"), ("all", "hits")):
        model = TwoTower(**options, text=vectors, log_q=log_q, masked=masked)
        model.fit(events, device="cpu", progress=False)
        examples, columns = model.prepare(events, seed_generator(0)), Columns(model, None)
        compare(
            f"frozen, {'not ' if log_q == 'none' else ''}corrected",
            args.rounds,
            (
                lambda m=model, e=examples: seconds(m, ours(m, e)),
                lambda c=columns, e=examples: seconds(c, theirs(c, e, texts, 1024)),
            ),
        )

    options |= {"fine_tune": True, "batch_size": args.batch}
    model = TwoTower(**options, text=texts, log_q="none", masked="nothing")
    model._n_users, model._n_items = events.n_users, events.n_items  # as fit does, without a whole epoch
    model.train()
    model.build()
    examples = model.prepare(events, seed_generator(0))
    columns = Columns(model, SentenceTransformer(str(encoder.folder), device="cpu").train())
    compare(
        f"learning, {args.steps} steps of {args.batch}",
        args.rounds,
        (
            lambda: seconds(model, islice(ours(model, examples), args.steps)),
            lambda: seconds(columns, islice(theirs(columns, examples, texts, args.batch), args.steps)),
        ),
    )


if __name__ == "__main__":
    main()
