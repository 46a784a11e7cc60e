"""Do posters rank films that nobody has chosen yet? For a machine with a network.

The descriptions of films (``recsys_lib.data.load_descriptions``) come from files that also name a thumbnail
of each article: mostly the film's poster. These are fetched once, whole or not at all, from where the files
say; a published CLIP or ViT makes a vector of each, and MiniLM one of each title. Then films of
MovieLens are taken out with all their likes, some times over, and a ridge regression from posters, from
titles or from both to who likes a film ranks them (``ItemFeatureRidge``). The measure is NDCG@10 among the
films taken out; intervals are over the draws, by Student's t.

A poster that cannot be had is left out and counted, with the reason. What was fetched is listed with its
SHA-256 in ``posters.json`` beside the files; a file that no longer has it is fetched again. Posters
are their makers' property: they are fetched by whoever runs this, and are not passed on.

Usage::

    python benchmarks/posters.py --model openai/clip-vit-base-patch32 [--draws 8] [--record FILE]
"""

import argparse
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from recsys_lib.chapter.runs import write_run
from recsys_lib.cold_items import ColdItems
from recsys_lib.data import Interactions, load_descriptions, load_movielens
from recsys_lib.data.download import DownloadError, cache_root, fetch, file_hash
from recsys_lib.files import write_whole
from recsys_lib.models import ItemFeatureRidge
from recsys_lib.models.published_vision import encode_with_transformers
from recsys_lib.progress import progress_bar
from recsys_lib.text import TextEncoder

MODEL = "openai/clip-vit-base-patch32"
COMMAND = f"python benchmarks/posters.py --model {MODEL} --record book/recorded/posters.json"
CODE = (
    *(f"benchmarks/posters.py::{name}" for name in ("addresses", "fetch_posters", "pictures", "measure")),
    "recsys_lib/models/published_vision.py",
    "recsys_lib/models/item_feature_ridge.py",
    "recsys_lib/cold_items.py",
    "recsys_lib/data/descriptions.py",
)
LIKED = 4.0  # stars
PENALTIES = [10.0, 100.0, 1000.0]


@dataclass(frozen=True)
class Posters:
    """What could be had.

    Attributes:
        files: by item.
        hashes: SHA-256 by item.
        missing: why there is none, by item.
    """

    files: dict[int, Path]
    hashes: dict[int, str]
    missing: dict[int, str]


def addresses(descriptions: pd.DataFrame, folder: Path) -> dict[int, str]:
    """The thumbnail of each item's article, for those that have one.

    Args:
        descriptions: as ``load_descriptions`` gives them.
        folder: that holds its files, ``movies-1970s.json`` and so on.

    Raises:
        FileNotFoundError: there is no such file in the folder.
    """
    files = sorted(folder.glob("movies-*.json"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no movies-*.json; call load_descriptions() first")
    thumbnails: dict[str, str] = {}
    for file in files:
        for record in json.loads(file.read_text(encoding="utf-8")):
            if record.get("href") and record.get("thumbnail"):
                article = unquote(record["href"]).replace(" ", "_")
                # Encoded as in the frame's addresses.
                thumbnails.setdefault(
                    "https://en.wikipedia.org/wiki/" + quote(article, safe="/:,!*~"), record["thumbnail"]
                )
    found = {int(item): thumbnails.get(url) for item, url in descriptions["url"].dropna().items()}
    return {
        item: "https:" + url if url.startswith("//") else url
        for item, url in found.items()
        if url is not None
    }


def fetch_posters(
    urls: Mapping[int, str], folder: Path, *, tries: int = 2, max_bytes: int = 8 << 20, progress: bool = True
) -> Posters:
    """Fetches posters once each; what is there and has its hash is not asked for again.

    Args:
        urls: addresses by item.
        folder: where they go, with ``posters.json``, the hashes by address.
        tries: how often a poster is tried.
        max_bytes: largest size accepted.
        progress: show a bar.

    Raises:
        DownloadError: not one could be had, which is no matter of single posters; the message has the first
            reason.
        ValueError: ``posters.json`` is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listing = folder / "posters.json"
    known: dict[str, str] = {}
    if listing.exists():
        try:
            known = dict(json.loads(listing.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{listing} is damaged ({error}); delete it") from error
    posters = Posters({}, {}, {})
    try:
        for item, url in progress_bar(list(urls.items()), "fetching posters", enabled=progress):
            path = folder / hashlib.sha256(url.encode()).hexdigest()[:24]
            limits: dict[str, Any] = {"tries": tries, "max_bytes": max_bytes, "read_timeout": 10.0}
            try:
                fetch(url, path, sha256=known.get(url), check=_check_picture, progress=False, **limits)
            except (DownloadError, ValueError) as error:
                posters.missing[item] = str(error)
                continue
            known[url] = posters.hashes[item] = file_hash(path)
            posters.files[item] = path
    finally:  # Ctrl-C keeps what is there
        with write_whole(listing) as part:
            part.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if urls and not posters.files:
        reason = next(iter(posters.missing.values()))
        raise DownloadError(
            f"Not one of {len(urls):,} posters could be had; a network is needed. The first: {reason}"
        )
    return posters


def _check_picture(path: Path) -> None:
    try:
        with Image.open(path) as picture:
            picture.verify()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"it is no picture ({error})") from error


def pictures(posters: Posters, size: int = 224) -> tuple[Tensor, Tensor]:
    """The posters, whole, on a black square each.

    Returns:
        (N,) int64 items, ascending, and (N, 3, size, size) uint8.
    """
    items = sorted(posters.files)
    made = []
    for item in items:
        with Image.open(posters.files[item]) as picture:
            square = ImageOps.pad(picture.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
        made.append(torch.from_numpy(np.array(square)).permute(2, 0, 1))  # (3, S, S)
    return torch.tensor(items), torch.stack(made)  # (N,), (N, 3, S, S)


def measure(
    interactions: Interactions, items: Tensor, posters: Tensor, titles: Tensor, n_draws: int = 8
) -> list[dict[str, Any]]:
    """NDCG@10 on new films: a row for titles, posters, both, and the two controls.

    Args:
        interactions: all ratings.
        items: (N,) those with posters, of which alone is spoken.
        posters: (N, D) vectors.
        titles: (N, D') vectors.
        n_draws: how often films are taken out.
    """
    places = [torch.zeros(interactions.n_items, x.shape[1]) for x in (posters, titles)]  # (n_items, D), ...
    for place, vectors in zip(places, (posters, titles), strict=True):
        place[items] = vectors.cpu().float()
    shown = torch.zeros(interactions.n_items, dtype=torch.bool)  # (n_items,)
    shown[items] = True
    likes = interactions[(interactions.ratings >= LIKED) & shown[interactions.items]]
    cold = ColdItems(likes, n_draws=n_draws, device="cpu")
    kinds: dict[str, dict[str, Tensor]] = {
        "titles": {"title": places[1]},
        "posters": {"poster": places[0]},
        "titles and posters": {"title": places[1], "poster": places[0]},
    }
    for name, features in kinds.items():
        cold.add(name, partial(ItemFeatureRidge, features=features), {"l2": PENALTIES})
    cold.add_controls()
    cold.run()
    rows = []
    for name in cold.contenders:
        mean = cold.draws.mean(name)
        rows.append({"model": name, "mean": mean.mean, "low": mean.low, "high": mean.high})
    gain = cold.compare("titles and posters", "titles")
    rows.append(
        {"model": "posters beside titles, gain", "mean": gain.mean, "low": gain.low, "high": gain.high}
    )
    return rows


def main(given: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=MODEL, help="a CLIP or ViT on the hub, or its folder")
    parser.add_argument("--data", default="100k", help="which MovieLens")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--record")
    options = parser.parse_args(given)
    try:
        frame = load_descriptions(options.data)
        urls = addresses(frame, cache_root() / "descriptions")
        posters = fetch_posters(urls, cache_root() / "posters")
    except DownloadError as error:
        raise SystemExit(f"Not run: {error}") from error
    print(
        f"{len(posters.files):,} posters of {len(frame):,} films; {len(posters.missing):,} could not be had"
    )
    items, images = pictures(posters)
    seen = encode_with_transformers(options.model, images)
    movies = load_movielens(options.data)
    titles = TextEncoder().encode(movies.items["raw_title"].iloc[items.tolist()].tolist())
    rows = measure(movies.interactions, items, seen, titles, options.draws)
    print(pd.DataFrame(rows).round(3).to_string(index=False))
    if options.record:
        digest = hashlib.sha256("".join(sorted(posters.hashes.values())).encode()).hexdigest()
        had = {"films": len(frame), "posters": len(posters.files), "missing": len(posters.missing)}
        write_run(
            options.record,
            about=__doc__ or "",
            command=COMMAND,
            versions=("torch", "numpy", "transformers"),
            code=CODE,
            inputs={"posters": digest},
            values={"rows": rows, **had},
            settings={"model": options.model, "data": options.data, "draws": options.draws},
        )


if __name__ == "__main__":
    main()
