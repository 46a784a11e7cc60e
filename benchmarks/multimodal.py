"""When a picture is worth a thousand ids: four kinds of taste, three densities, warm and cold drawings.

Simulated people choose among 1,000 of OpenMoji's drawings. Their taste is about looks, about meaning, about
both or about neither, so that the best possible list is known; every value is NDCG@10 as a share of what the
true taste earns on the same choices. A fifth of the drawings is cold: no choice of them is in training, and
the vision transformer, trained by contrast on pictures with their names, has not seen them. Of the others a
person's first 5, 15 or 30 choices are known, a fifth of these is for stopping, and the last 10 are asked for.

Two models are controls: ``untaught`` reads a vision transformer that was not trained, ``id + text`` is late
fusion that never had a picture.

Every model gets four trials, on other worlds, by NDCG@10 on the events for stopping in the mean of the four
kinds of taste at 15 choices a person. Intervals are over worlds (people and choices), by Student's t.

Usage::

    OMP_NUM_THREADS=1 python benchmarks/multimodal.py [--worlds 4] [--record FILE]
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from torch import Tensor
from torch.nn import functional

from recsys_lib.chapter.runs import write_run
from recsys_lib.cold_items import Among
from recsys_lib.data import load_openmoji
from recsys_lib.data.openmoji import looks, meanings
from recsys_lib.draws import over_draws
from recsys_lib.evaluation import Scorer, evaluate
from recsys_lib.models import MultimodalRecommender, Popularity, Recommender
from recsys_lib.models.image_text import ImageTextTower
from recsys_lib.simulation import Asked, TasteWorld, ask, warm_and_cold
from recsys_lib.simulation.taste import About
from recsys_lib.text import TextEncoder

COMMAND = "OMP_NUM_THREADS=1 python benchmarks/multimodal.py --record book/recorded/multimodal.json"
CODE = (
    *(
        f"benchmarks/multimodal.py::{name}"
        for name in (
            *("KINDS", "DENSITIES", "MODELS", "TRIALS", "FIT"),
            *("shares", "catalog", "world_of", "make", "fitted", "measure"),
        )
    ),
    "recsys_lib/models/multimodal.py",
    "recsys_lib/models/core/fusions.py",
    "recsys_lib/models/vision.py",
    "recsys_lib/models/image_text.py",
    "recsys_lib/simulation/taste.py",
    "recsys_lib/simulation/questions.py",
    "recsys_lib/data/openmoji.py",
    "recsys_lib/training.py::train",
    "recsys_lib/evaluation.py::evaluate",
)
KINDS: tuple[About, ...] = ("looks", "meaning", "both", "neither")
DENSITIES = (5, 15, 30)
MODELS: dict[str, tuple[tuple[str, ...], str]] = {
    "id": (("id",), "late"),
    "text": (("text",), "late"),
    "image": (("image",), "late"),
    "pixels": (("pixels",), "late"),
    "untaught": (("untaught",), "late"),
    "id + text": (("id", "text"), "late"),
    "late": (("id", "text", "image"), "late"),
    "early": (("id", "text", "image"), "early"),
    "gated": (("id", "text", "image"), "gated"),
    "cross-attention": (("id", "text", "image"), "cross_attention"),
}
TRIALS: dict[bool, list[dict[str, float]]] = {
    False: [{"l2": 0.01}, {"l2": 0.03}, {"l2": 0.1}, {"l2": 0.3}],
    True: [{"l2": l2, "modality_dropout": share} for l2 in (0.03, 0.15) for share in (0.0, 0.3)],
}
FIT: dict[str, Any] = {"dim": 32, "n_heads": 1, "epochs": 24, "batch_size": 256, "patience": 5}


def shares(model: Scorer, asked: Asked) -> tuple[float, float]:
    """NDCG@10 on warm and on cold drawings, as shares of what the true taste earns."""
    found = []
    for test, wrap in ((asked.warm, lambda x: x), (asked.cold, lambda x: Among(x, asked.items))):
        values = [
            evaluate(wrap(x), test, seen=asked.known, progress=False).metrics["ndcg@10"]
            for x in (model, asked.world.truth)
        ]
        found.append(values[0] / values[1])
    return found[0], found[1]


def catalog(n_items: int = 1000, n_cold: int = 200, epochs: int = 30) -> tuple[dict[str, Tensor], Tensor]:
    """Vectors of the drawings by name, and which are cold, (n_items,) bool.

    ``image`` are those of a vision transformer that was trained on the drawings that are not cold,
    ``untaught`` those of the same one before its training.
    """
    drawings = load_openmoji(one_per_family=True, progress=False)
    chosen, cold = warm_and_cold(len(drawings), n_items, n_cold)  # (n_items,), (n_items,)
    items, images = drawings.items.iloc[chosen.tolist()].reset_index(drop=True), drawings.images[chosen]
    text = TextEncoder().encode(items["text"].tolist(), progress=False)  # (n_items, 384)
    towers = [
        ImageTextTower(epochs=n).fit(images[~cold], text[~cold], device="cpu", progress=False)
        for n in (epochs, 0)
    ]
    vectors = {
        "text": text,
        "image": towers[0].encode_images(images),
        "untaught": towers[1].encode_images(images),
        "pixels": functional.avg_pool2d(images.float() / 255, 4).flatten(1),  # (n_items, 192)
        "looks": looks(images),
        "meanings": meanings(items),
    }
    return vectors, cold


def world_of(
    vectors: Mapping[str, Tensor], cold: Tensor, about: About, known: int, seed: int, n_people: int = 200
) -> Asked:
    """A world of this kind, cut."""
    world = TasteWorld.draw(
        vectors["looks"], vectors["meanings"], n_people, about=about, events=80, seed=seed
    )
    return ask(world, cold, known)


def make(name: str, vectors: Mapping[str, Tensor], options: Mapping[str, Any], seed: int = 0) -> Recommender:
    """A new model by its name."""
    if name == "popularity":
        return Popularity()
    modalities, fusion = MODELS[name]
    given = {m: None if m == "id" else vectors[m] for m in modalities}
    return MultimodalRecommender(given, fusion=fusion, seed=seed, **{**FIT, **options})


def fitted(name: str, vectors: Mapping[str, Tensor], options: Mapping[str, Any], asked: Asked) -> Recommender:
    """The model, stopped by its world's own events."""
    return make(name, vectors, options).fit(asked.train, asked.stop, device="cpu", progress=False)


def measure(n_worlds: int = 4, densities: Sequence[int] = DENSITIES, **sizes: int) -> dict[str, Any]:
    """The choices of settings, and the table: a row a kind, density, model and side."""
    people = {"n_people": sizes.pop("n_people", 200)}
    vectors, cold = catalog(**sizes)
    middle = densities[len(densities) // 2]
    tuning = [world_of(vectors, cold, about, middle, 1000 + i, **people) for i, about in enumerate(KINDS)]
    chosen: dict[str, dict[str, float]] = {}
    for name, (modalities, _) in MODELS.items():
        found = []
        for options in TRIALS[len(modalities) > 1]:
            models = [fitted(name, vectors, options, asked) for asked in tuning]
            logs = [model.log for model in models if isinstance(model, MultimodalRecommender)]
            found.append((sum(max(epoch.get("ndcg@10", 0.0) for epoch in log) for log in logs), options))
        chosen[name] = max(found, key=lambda pair: pair[0])[1]
        print(name, chosen[name], flush=True)
    rows: list[dict[str, Any]] = []
    gates: list[dict[str, Any]] = []
    for about in KINDS:
        for known in densities:
            values: dict[tuple[str, str], list[float]] = {}
            weights: dict[tuple[str, str], list[float]] = {}
            for number in range(n_worlds):
                asked = world_of(vectors, cold, about, known, number, **people)
                for name in ("popularity", *MODELS):
                    model = fitted(name, vectors, chosen.get(name, {}), asked)
                    for side, value in zip(("warm", "cold"), shares(model, asked), strict=True):
                        values.setdefault((name, side), []).append(value)
                    if name == "gated" and isinstance(model, MultimodalRecommender):
                        gate = model.gates()
                        for side, which in (("warm", ~cold), ("cold", cold)):
                            for m, mean in zip(model.names, gate[which].mean(dim=0).tolist(), strict=True):
                                weights.setdefault((m, side), []).append(mean)
            for table, of_worlds, key in ((rows, values, "model"), (gates, weights, "modality")):
                for (name, side), listed in of_worlds.items():
                    mean, low, high, *_ = over_draws(listed)
                    row = {"about": about, "known": known, key: name, "side": side}
                    table.append(row | {"mean": mean, "low": low, "high": high, "worlds": listed})
            print(about, known, {k: round(sum(v) / len(v), 2) for k, v in values.items()}, flush=True)
    return {"chosen": chosen, "shares": rows, "gates": gates}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", type=int, default=4)
    parser.add_argument("--record")
    arguments = parser.parse_args()
    start = time.process_time()
    values = measure(arguments.worlds)
    seconds = time.process_time() - start
    table = pd.DataFrame(values["shares"])
    print(table.pivot_table(index=["about", "known", "side"], columns="model", values="mean").round(2))
    print(f"{seconds:.0f} seconds")
    if arguments.record:
        write_run(
            arguments.record,
            about=__doc__ or "",
            command=COMMAND,
            versions=("torch", "numpy"),
            code=CODE,
            inputs={},
            values=values | {"cpu_seconds": round(seconds)},
            settings={"worlds": arguments.worlds, **FIT},
        )


if __name__ == "__main__":
    main()
