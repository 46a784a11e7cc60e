"""Posters from a server on this machine: what is fetched, what is left out, and what is made of them."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from benchmarks import posters as benchmark
from recsys_lib.data import Interactions, download
from recsys_lib.data.download import DownloadError


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    download._unreachable.clear()
    monkeypatch.setattr(download, "_LONGEST_PAUSE", 0.001)


def picture(color: tuple[int, int, int], size: tuple[int, int] = (20, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def urls(server) -> dict[int, str]:
    """Items 3 and 5 have a poster; that of 7 is gone, and in place of that of 9 stands a page."""
    server.files.update(
        {
            "/a.png": picture((255, 0, 0)),
            "/b.png": picture((0, 0, 255)),
            "/page.png": b"<html>log in first</html>",
        }
    )
    return {item: f"{server.url}/{n}.png" for item, n in {3: "a", 7: "gone", 5: "b", 9: "page"}.items()}


def had(urls: dict[int, str], folder: Path) -> benchmark.Posters:
    return benchmark.fetch_posters(urls, folder, progress=False)


def test_what_is_there_is_fetched_and_the_rest_is_counted(server, urls, tmp_path):
    found = had(urls, tmp_path)
    assert sorted(found.files) == [3, 5]
    assert found.files[3].read_bytes() == server.files["/a.png"]
    assert found.hashes[3] == hashlib.sha256(server.files["/a.png"]).hexdigest()
    assert sorted(found.missing) == [7, 9]
    assert "404" in found.missing[7]
    assert "no picture" in found.missing[9]
    listed = json.loads((tmp_path / "posters.json").read_text())
    assert listed == {urls[item]: found.hashes[item] for item in (3, 5)}
    assert not list(tmp_path.glob("*.part"))


def test_a_second_time_asks_for_what_is_missing_alone(server, urls, tmp_path):
    had(urls, tmp_path)
    server.requests.clear()
    had(urls, tmp_path)
    assert {path for path, _ in server.requests} == {"/gone.png", "/page.png"}


def test_a_damaged_file_is_fetched_again(server, urls, tmp_path):
    path = had(urls, tmp_path).files[3]
    path.write_bytes(picture((9, 9, 9)))  # a picture, and not the one that was fetched
    assert had(urls, tmp_path).files[3].read_bytes() == server.files["/a.png"]


def test_nothing_at_all_is_an_error(tmp_path):
    urls = {i: f"http://127.0.0.1:9/{i}.png" for i in range(3)}
    with pytest.raises(DownloadError, match="Not one of 3 posters could be had; a network is needed"):
        had(urls, tmp_path)
    (tmp_path / "posters.json").write_text("[1")
    with pytest.raises(ValueError, match=r"posters\.json is damaged"):
        had(urls, tmp_path)


def test_posters_stay_whole_on_a_square(urls, tmp_path):
    items, images = benchmark.pictures(had(urls, tmp_path), size=30)
    assert items.tolist() == [3, 5]
    assert images.shape == (2, 3, 30, 30)
    assert images[0, :, 15, 15].tolist() == [255, 0, 0]
    assert images[0, :, 15, 0].tolist() == [0, 0, 0]  # beside a poster that is higher than wide


def test_the_thumbnail_of_an_article(tmp_path):
    wiki = "https://en.wikipedia.org/wiki/"
    frame = pd.DataFrame({"url": [wiki + "Heat_%281995_film%29", None, wiki + "Alien", wiki + "Ran"]})
    with pytest.raises(FileNotFoundError, match="load_descriptions"):
        benchmark.addresses(frame, tmp_path)
    records = [
        {"href": "Heat_(1995_film)", "thumbnail": "//upload.example/heat.jpg"},
        {"href": "Alien", "thumbnail": "https://upload.example/alien.jpg"},
        {"href": "Ran", "thumbnail": None},
    ]
    (tmp_path / "movies-1990s.json").write_text(json.dumps(records))
    found = benchmark.addresses(frame, tmp_path)
    assert found == {0: "https://upload.example/heat.jpg", 2: "https://upload.example/alien.jpg"}


def test_posters_that_show_the_taste_rank_new_films_and_noise_does_not():
    rng = np.random.default_rng(0)
    kinds, taste = rng.normal(size=(120, 3)), rng.normal(size=(150, 3))
    rows = [
        (u, i, 5.0, k)
        for u in range(150)
        for k, i in enumerate(np.argsort(-kinds @ taste[u] - rng.gumbel(size=120))[:25])
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    events = Interactions.from_frame(frame, item_ids=list(range(120)))
    items = torch.arange(0, 120, 1)[:110]
    shown, noise = torch.tensor(kinds[:110]).float(), torch.tensor(rng.normal(size=(110, 3))).float()
    rows = {row["model"]: row for row in benchmark.measure(events, items, shown, noise, n_draws=3)}
    assert rows["posters"]["mean"] > rows["titles"]["mean"] + 0.1
    assert rows["posters beside titles, gain"]["low"] > 0


def test_without_a_network_the_command_says_not_run(monkeypatch, tmp_path):
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path))

    def refuse(*_: object) -> None:
        raise DownloadError("no connection")

    monkeypatch.setattr(benchmark, "load_descriptions", refuse)
    with pytest.raises(SystemExit, match="Not run: no connection"):
        benchmark.main([])
