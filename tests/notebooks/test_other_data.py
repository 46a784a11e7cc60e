"""The chapters run to their end on other data, with another seed: what they say follows the result."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]


def small_edition(path, n_users=280, n_items=700, seed=5):
    """An archive in the format of the data set "latest-small": half stars, a long tail, ids with gaps."""
    rng = np.random.default_rng(seed)
    taste, kind = rng.normal(size=(n_users, 4)), rng.normal(size=(n_items, 4))
    known = -0.9 * np.log(np.arange(1, n_items + 1))  # log popularity, by rank
    ids = rng.permutation(np.sort(rng.choice(np.arange(1, 50_000), n_items, replace=False)))
    rows = []
    for user in range(n_users):
        count = int(np.clip(rng.lognormal(3.7, 0.6), 20, n_items // 3))
        chance = known + 0.5 * kind @ taste[user] + rng.gumbel(size=n_items)
        items = np.argsort(-chance)[:count]
        stars = 3.7 + 0.2 * kind[items] @ taste[user] + rng.normal(0, 0.9, count)
        rows.append(
            pd.DataFrame(
                {
                    "userId": user + 1,
                    "movieId": ids[items],
                    "rating": np.clip(np.round(2 * stars) / 2, 0.5, 5.0),
                    "timestamp": 1_000_000_000 + 100_000 * user + 60 * rng.permutation(count),
                }
            )
        )
    genres = ["Action", "Comedy", "Drama", "Horror", "Romance", "Western"]
    words = ["Night", "River", "Glass", "King", "Moon", "Road", "Winter", "Storm"]
    films = pd.DataFrame({"movieId": np.sort(ids)})
    films["title"] = [
        f"{rng.choice(words)} {rng.choice(words)} {i} ({1950 + rng.integers(68)})" for i in range(n_items)
    ]
    films["genres"] = ["|".join(sorted(set(rng.choice(genres, 2)))) for _ in range(n_items)]
    films.loc[3, "genres"] = "(no genres listed)"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ml-latest-small/ratings.csv", pd.concat(rows).to_csv(index=False))
        archive.writestr("ml-latest-small/movies.csv", films.to_csv(index=False))


@pytest.mark.slow
@pytest.mark.parametrize(
    "chapter",
    [
        "03_cosine_similarity",
        "04_bpr",
        "05_two_tower",
        "06_cross_encoder",
        "07_llm_embeddings",
        "09_cross_attention",
        "10_pretraining",
        "11_objectives",
        "12_multimodal",
        "13_feedback_loop",
        "14_beyond_one_machine",
        "15_trust",
    ],
)
def test_a_chapter_runs_on_other_data_with_another_seed(chapter, tmp_path):
    (tmp_path / "data" / "movielens").mkdir(parents=True)
    small_edition(tmp_path / "data" / "movielens" / "ml-latest-small.zip")
    # Drawings have no other edition: their chapter gets another seed alone.
    dataset = "openmoji" if chapter == "12_multimodal" else "latest-small"
    given = {"dataset": dataset, "budget": 2, "seed": 1, "device": "cpu"}
    options = [word for name, value in given.items() for word in ("-p", name, str(value))]
    source, copy = ROOT / "notebooks" / f"{chapter}.ipynb", tmp_path / f"{chapter}.ipynb"
    command = [
        sys.executable,
        "-m",
        "papermill",
        "--no-progress-bar",
        "-k",
        "python3",
        str(source),
        str(copy),
    ]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        **({} if dataset == "openmoji" else {"RECSYS_DATA": str(tmp_path / "data")}),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (written,) = tmp_path.rglob(f"results/{chapter}.json")
    results = json.loads(written.read_text("utf8"))
    assert (results["dataset"], results["seed"]) == (dataset, 1)
    assert results["claims"]
