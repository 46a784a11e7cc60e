"""``CrossEncoder`` beside the one of ``sentence_transformers``: the same weights, the same pairs.

The weights are all-MiniLM-L6-v2 with BERT's head for one number, at random. A pair is what the model reads of
MovieLens-100K: the titles of a user's last ten films, and the text of a film, in full or the title alone.
Both sides work in turn within one process, and each round gives one ratio of their times, so that whatever
slows the machine down slows both.

- answering: ``predict`` on pairs in random order. Scores are compared as well.
- learning: steps on pairs with labels, binary cross-entropy, dropout as published, clipping and Adam. Ours
  puts pairs of like length together, theirs takes them as they come (its trainer's default); and once both
  take the same batches, so that what differs is the encoder, the tokens and what is around them. Their
  trainer needs ``accelerate``; the loop around their loss is a bare one here. The losses of a first batch,
  without dropout, are compared as well.

Usage::

    OMP_NUM_THREADS=1 python benchmarks/cross_encoder.py [--rounds 5] [--pairs 256] [--record FILE]
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import sentence_transformers
import torch
import transformers
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from torch import Tensor, nn

from recsys_lib.chapter.runs import write_run
from recsys_lib.data import leave_last_out, load_movielens
from recsys_lib.devices import seed_generator
from recsys_lib.models import CrossEncoder
from recsys_lib.models.core.fine_tuned import batches_of_like_length
from recsys_lib.models.core.labelled_pairs import LabelledPairs
from recsys_lib.text import minilm_folder

COMMAND = "OMP_NUM_THREADS=1 python benchmarks/cross_encoder.py --record book/recorded/cross_encoder.json"
CODE = (
    *(f"benchmarks/cross_encoder.py::{name}" for name in ("both", "seconds", "step_through", "their_losses")),
    *(f"recsys_lib/models/core/{name}.py" for name in ("fine_tuned", "relevance", "text_pairs")),
    "recsys_lib/text/pairs.py",
    "recsys_lib/attention.py",
)
MAX_LENGTH, BATCH, HISTORY = 128, 32, 10
Pairs = list[tuple[str, str]]


def save_weights(folder: Path) -> None:
    """MiniLM with a head for one number, as published cross-encoders are."""
    transformers.utils.logging.set_verbosity_error()  # that the head is new is meant
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification.from_pretrained(
            minilm_folder(), num_labels=1, use_safetensors=True
        )
        nn.init.normal_(model.classifier.weight, std=0.2)  # far enough from zero to be compared
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(minilm_folder()).save_pretrained(folder)


def some_pairs(n: int) -> dict[str, Pairs]:
    """Histories with candidates, by how much is said of a candidate."""
    data = load_movielens("100k", progress=False)
    events = leave_last_out(data.interactions.positives(4.0), 0.2).history
    generator = torch.Generator().manual_seed(0)
    users = torch.randint(events.n_users, (n,), generator=generator)  # (N,)
    films = torch.randint(events.n_items, (n,), generator=generator)  # (N,)
    titles, texts = data.items["title"].tolist(), data.items["text"].tolist()
    crow, own = events.csr()
    most = torch.randint(1, HISTORY + 1, (n,), generator=generator)  # (N,) read of a history
    said = []
    for user, last in zip(users.tolist(), most.tolist(), strict=True):
        read = own[crow[user] : crow[user + 1]][-last:].tolist()
        said.append("; ".join(titles[item] for item in reversed(read)))
    return {
        name: [(history, words[item]) for history, item in zip(said, films.tolist(), strict=True)]
        for name, words in (("titles", titles), ("texts", texts))
    }


def both(folder: Path) -> tuple[CrossEncoder, sentence_transformers.CrossEncoder]:
    """The two models, from one file."""
    options = {"head": "pooler", "pooling": "cls", "max_length": MAX_LENGTH, "dropout": 0.1}
    ours = CrossEncoder(text_model=str(folder), loss="bce", batch_size=BATCH, **options)
    theirs = sentence_transformers.CrossEncoder(
        str(folder), device="cpu", max_length=MAX_LENGTH, activation_fn=nn.Identity()
    )
    return ours, theirs


def seconds(work: Callable[[], object]) -> float:
    """Processor time, which other programs' turns do not count in."""
    start = time.process_time()
    work()
    return time.process_time() - start


def step_through(module: nn.Module, losses: Iterable[Tensor]) -> None:
    """Steps as both trainers take them, at a rate that changes next to nothing."""
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-9, fused=True)
    for loss in losses:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    module.eval()


def our_examples(model: CrossEncoder, pairs: Pairs, labels: Tensor) -> LabelledPairs:
    """What ``fit_pairs`` learns from; tokenizing is part of it."""
    table, i, j = model._distinct(*columns(pairs))
    return LabelledPairs.of(table, i, j, labels, by_list=False)


def columns(pairs: Pairs) -> tuple[list[str], list[str]]:
    return [query for query, _ in pairs], [document for _, document in pairs]


def their_losses(
    model: sentence_transformers.CrossEncoder, pairs: Pairs, labels: Tensor, batches: Iterable[Tensor]
) -> Iterable[Tensor]:
    """Of batches, numbers of pairs (b,) each."""
    loss = BinaryCrossEntropyLoss(model)
    for batch in batches:
        yield loss(columns([pairs[n] for n in batch.tolist()]), labels[batch])


def in_turn(rounds: int, ours: Callable[[], object], theirs: Callable[[], object]) -> dict[str, Any]:
    """Times of both, and of each round the ratio."""
    ours(), theirs()  # what is made once
    times = []
    for turn in range(rounds):
        order = (ours, theirs) if turn % 2 else (theirs, ours)  # neither is always the first
        taken = {work: seconds(work) for work in order}
        times.append((taken[ours], taken[theirs]))
    ratios = sorted(b / a for a, b in times)
    a, b = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "ours_s": round(a, 3),
        "theirs_s": round(b, 3),
        "ratio": {
            "median": round(statistics.median(ratios), 3),
            "low": round(ratios[0], 3),
            "high": round(ratios[-1], 3),
        },
    }


def run(rounds: int, n_pairs: int) -> dict[str, Any]:
    """The whole measurement."""
    rows, largest, loss_gap = [], 0.0, 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_weights(folder)
        for kind, pairs in some_pairs(n_pairs).items():
            ours, theirs = both(folder)
            found = ours.predict(pairs)  # (N,)
            expected = theirs.predict(pairs, convert_to_tensor=True)  # (N,)
            largest = max(largest, float((found - expected).abs().max()))
            lengths = torch.tensor([len(x) for x in theirs.tokenizer(*zip(*pairs, strict=True)).input_ids])
            about = {"texts": kind, "pairs": n_pairs, "tokens": round(float(lengths.float().mean()), 1)}
            measured = in_turn(
                rounds, lambda o=ours, p=pairs: o.predict(p), lambda t=theirs, p=pairs: t.predict(p)
            )
            rows.append({"of": "answering", **about, **measured})

            labels = torch.rand(n_pairs, generator=torch.Generator().manual_seed(1)).round()  # (N,)
            examples = our_examples(ours, pairs, labels)
            # The same batches as ours: the examples are in an order of their own.
            distinct = list(dict.fromkeys(text for column in columns(pairs) for text in column))
            i, j = examples.first.tolist(), examples.second.tolist()
            listed = [(distinct[a], distinct[b]) for a, b in zip(i, j, strict=True)]
            total = examples.texts.lengths[examples.first] + examples.texts.lengths[examples.second]  # (N,)
            like = batches_of_like_length(total, BATCH, ours.epoch_generator(1, "order"))
            mixed = list(torch.randperm(n_pairs, generator=seed_generator(0)).split(BATCH))

            mine, _ = next(iter(ours.epoch_losses(examples, 1, 0)))
            other = next(iter(their_losses(theirs.eval(), listed, examples.labels, like)))
            loss_gap = max(loss_gap, abs(mine.item() - other.item()))

            def learn(model: CrossEncoder = ours, p: Pairs = pairs, y: Tensor = labels) -> None:
                epoch = (loss for loss, _ in model.epoch_losses(our_examples(model, p, y), 1, 0))
                step_through(model.scorer, epoch)

            for batches, say in ((mixed, "as they come"), (like, "of like length")):
                measured = in_turn(
                    rounds,
                    learn,
                    lambda t=theirs, p=listed, y=examples.labels, b=batches: step_through(
                        t, their_losses(t, p, y, b)
                    ),
                )
                rows.append({"of": f"learning, theirs {say}", **about, **measured})
    for row in rows:
        row["ours_pairs_a_second"] = round(row["pairs"] / row["ours_s"], 1)
        row["theirs_pairs_a_second"] = round(row["pairs"] / row["theirs_s"], 1)
    return {
        "inputs": {"ratings": load_movielens("100k").sha256},
        "settings": {"rounds": rounds, "pairs": n_pairs, "threads": torch.get_num_threads()},
        "values": {
            "load_average": [round(load, 1) for load in os.getloadavg()],  # of the last 1, 5 and 15 minutes
            "largest_difference_of_scores": largest,
            "difference_of_losses": loss_gap,
            "rows": rows,
        },
    }


def table(found: dict[str, Any]) -> str:
    """The run as text."""
    values = found["values"]
    lines = [
        f"{found['settings']['threads']} threads; scores differ by "
        f"{values['largest_difference_of_scores']:.1e} at most, the losses of a batch by "
        f"{values['difference_of_losses']:.1e}",
        "pairs a second of processor time; ratio: above 1 ours is faster; median, then spread",
        f"{'':32}{'texts':>8}{'tokens':>8}{'ours':>9}{'theirs':>9}{'ratio':>7}  least to greatest",
    ]
    lines += [
        f"{row['of']:32}{row['texts']:>8}{row['tokens']:8.1f}{row['ours_pairs_a_second']:9.1f}"
        f"{row['theirs_pairs_a_second']:9.1f}{row['ratio']['median']:7.2f}  "
        f"{row['ratio']['low']:.2f} to {row['ratio']['high']:.2f}"
        for row in values["rows"]
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--record", type=Path, help="a file for the results, as JSON")
    arguments = parser.parse_args()
    found = run(arguments.rounds, arguments.pairs)
    print(table(found))
    if arguments.record:
        write_run(
            arguments.record,
            about=__doc__ or "",
            command=COMMAND,
            versions=("torch", "transformers", "sentence-transformers"),
            code=CODE,
            **found,
        )


if __name__ == "__main__":
    main()
