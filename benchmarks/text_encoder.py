"""``TextEncoder`` beside ``sentence_transformers``, the same model on the same texts; and its cache.

Both encode in turn within one process, and each round gives one ratio of their times, so that whatever slows
the machine down slows both. The cache is off. Two kinds of text: the descriptions of MovieLens films, about
of 16 tokens, and several of them joined to about 100 tokens. Each library takes its own default batches, then
both take the same number of texts a batch.

Then a call with one text, where the cache holds many others: known, new, and without the cache. Usage::

    OMP_NUM_THREADS=2 python benchmarks/text_encoder.py [--rounds 9] [--texts 600] [--cached 100000]
"""

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import sentence_transformers
import torch
import transformers
from sentence_transformers import SentenceTransformer

from recsys_lib.data import load_movielens
from recsys_lib.text import TextEncoder
from recsys_lib.text.vectors import VectorStore, text_key


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure_cache(model: Path, stored: int, rounds: int) -> None:
    """Calls with one text, in a cache of their own that holds ``stored`` vectors."""
    with TemporaryDirectory() as folder, mock.patch.dict(os.environ, RECSYS_DATA=folder):
        encoder = TextEncoder(model, device="cpu")
        encoder.encode(["a text"])
        (store,) = (Path(folder) / "vectors").iterdir()
        texts = [f"text {i}" for i in range(stored)]
        vectors = torch.randn(stored, encoder.dim, generator=torch.Generator().manual_seed(0))
        VectorStore(store).add([text_key(text) for text in texts], vectors)
        size = sum(path.stat().st_size for path in store.iterdir())
        print(f"\none text a call, {stored} vectors in the cache ({size / 1e6:.0f} MB); ms, the median")
        print(f"first known {1e3 * seconds(lambda: encoder.encode(texts[:1])):8.2f}")
        for kind, options in (("known", {}), ("new", {}), ("not cached", {"cache": False})):
            chosen = texts if kind == "known" else [f"{kind} {i}" for i in range(rounds)]
            times = [seconds(partial(encoder.encode, [text], **options)) for text in chosen[:rounds]]
            print(f"{kind:>11} {1e3 * statistics.median(times):8.2f}")
        print(f"  all known {1e3 * seconds(lambda: encoder.encode(texts)):8.2f} (one call)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--cached", type=int, default=100_000)
    args = parser.parse_args()

    ours = TextEncoder(device="cpu", cache=False)
    theirs = SentenceTransformer(str(ours.folder), device="cpu")
    films = sorted(set(load_movielens("100k", progress=False).items["text"]))
    rng = random.Random(0)
    kinds = {
        "short": rng.sample(films, args.texts),
        "long": [" ".join(rng.sample(films, 7)) for _ in range(args.texts // 5)],
    }
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"sentence-transformers {sentence_transformers.__version__}, {torch.get_num_threads()} threads"
    )
    print("ratio: their time over ours, so above 1 ours is faster; median, then the least and the greatest")
    print(f"{'texts':>6} {'tokens':>7} {'batch':>8} {'ours s':>8} {'theirs s':>9} {'ratio':>6}  spread")
    for kind, texts in kinds.items():
        tokens = statistics.mean(len(ids) for ids in ours.tokenizer(texts)["input_ids"])
        difference = (ours.encode(texts) - theirs.encode(texts, convert_to_tensor=True)).abs().max().item()
        for batch in (None, 32, 8):
            own = {} if batch is None else {"batch_size": batch}
            times = []
            for i in range(args.rounds):
                order = (ours, theirs) if i % 2 else (theirs, ours)  # neither is always the first
                taken = {encoder: seconds(partial(encoder.encode, texts, **own)) for encoder in order}
                times.append((taken[ours], taken[theirs]))
            ratios = sorted(b / a for a, b in times)
            a, b = (statistics.median(column) for column in zip(*times, strict=True))
            row = f"{kind:>6} {tokens:7.1f} {batch or 'default':>8} {a:8.3f} {b:9.3f}"
            print(f"{row} {statistics.median(ratios):6.2f}  {ratios[0]:.2f} to {ratios[-1]:.2f}")
        print(f"{kind:>6} greatest difference between the two: {difference:.1e}")
    measure_cache(ours.folder, args.cached, args.rounds)


if __name__ == "__main__":
    main()
